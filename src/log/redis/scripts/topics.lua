-- The counts of the topics that are the arguments.
local TOPICS = 7
local known_topics = {}
for at = TOPICS, #ARGV do
  local topic = ARGV[at]
  local newest, bytes, known_topic = 0, 0, redis.call('HGET', state, topic)
  if known_topic then newest, bytes = cmsgpack.unpack(known_topic) end
  known_topics[#known_topics + 1] = {str(newest), redis.call('XLEN', stream(topic)), str(bytes)}
end
return known_topics
