-- What is known of some topics.
local known_topics = {}
for at = 7, #ARGV do
  local newest, bytes, known_topic = 0, 0, redis.call('HGET', state, ARGV[at])
  if known_topic then newest, bytes = cmsgpack.unpack(known_topic) end
  known_topics[#known_topics + 1] = {str(newest), redis.call('XLEN', stream(ARGV[at])), str(bytes)}
end
return {facts(), known_topics}
