-- Some messages by topic and id, and of other topics the oldest retained after an id.
local found, bytes = {}, tonumber(ARGV[7])
local count = tonumber(ARGV[8])
local at = 9
for _ = 1, count do
  local entry = bytes > 0 and redis.call('XRANGE', stream(ARGV[at]), ARGV[at + 1], ARGV[at + 1])[1]
  if bytes <= 0 then break end
  if entry then
    bytes = bytes - #entry[2][6]
    found[#found + 1] = {entry[2][2], entry[2][4], entry[2][6]}
  else
    found[#found + 1] = {}
  end
  at = at + 2
end
local firsts = {}
at = 9 + 2 * count
while ARGV[at] do
  local first = redis.call('XRANGE', stream(ARGV[at]), str(math.max(tonumber(ARGV[at + 1]) + 1, expired)), '+', 'COUNT', 1)[1]
  local newest = redis.call('ZSCORE', index, ARGV[at])
  firsts[#firsts + 1] = {first and first[1] or '', first and first[2][2] or '', newest or '0'}
  at = at + 2
end
return {facts(), found, firsts}
