-- For some topics the message to begin with: the oldest since an id, or the nth newest up to a point of its own.
-- How many of these were passed is said too, since one step passes no more than a few.
sweep(1000)
local since, count = tonumber(ARGV[7]), tonumber(ARGV[8])
local firsts = {}
for at = 9, #ARGV, 2 do
  local newest, passed = redis.call('ZSCORE', index, ARGV[at]), 0
  local first
  if newest and count < 0 then
    first = redis.call('XRANGE', stream(ARGV[at]), str(math.max(since, expired)), '+', 'COUNT', 1)[1]
  elseif newest then
    local upto = ARGV[at + 1]
    while passed < count do
      local batch = redis.call('XREVRANGE', stream(ARGV[at]), upto, str(expired), 'COUNT', math.min(count - passed, 64))
      if not batch[1] then break end
      first, passed = batch[#batch], passed + #batch
      upto = '(' .. first[1]
    end
  end
  firsts[#firsts + 1] = {newest or '', first and first[1] or '', first and first[2][2] or '', passed}
end
return {facts(), firsts}
