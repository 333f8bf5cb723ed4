-- For some topics the message to begin with: the oldest since an id, or the nth newest.
sweep(1000)
local since, count = tonumber(ARGV[6]), tonumber(ARGV[7])
local firsts = {}
for at = 8, #ARGV do
  local newest = redis.call('ZSCORE', index, ARGV[at])
  local first
  if newest and count < 0 then
    first = redis.call('XRANGE', stream(ARGV[at]), str(math.max(since, expired)), '+', 'COUNT', 1)[1]
  elseif newest and count > 0 then
    local batch = redis.call('XREVRANGE', stream(ARGV[at]), '+', str(expired), 'COUNT', count)
    first = batch[#batch]
  end
  firsts[#firsts + 1] = {newest or '', first and first[1] or '', first and first[2][2] or ''}
end
return {facts(), firsts}
