-- The topics of the index, newest first, a page at a time; or what is known of those that are named.
if ARGV[6] then
  local known_topics = {}
  for at = 6, #ARGV do
    known_topics[#known_topics + 1] = {
      redis.call('ZSCORE', index, ARGV[at]) or '0',
      redis.call('XLEN', stream(ARGV[at])),
      redis.call('HGET', sizes, ARGV[at]) or '0',
    }
  end
  return {facts(), known_topics}
end
local names = {}
for _, member in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  if not string.find(member, '^[*, ]') then names[#names + 1] = member end
end
return {facts(), names}
