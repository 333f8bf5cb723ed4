-- The counts of the topics that are the arguments.
local TOPICS = 7
local known_topics = {}
for at = TOPICS, #ARGV do
  local topic = ARGV[at]
  local newest, bytes = counts(topic, redis.call('HGET', state, topic))
  known_topics[#known_topics + 1] = {str(newest or 0), on_stream(topic, 'XLEN') or 0, str(math.max(0, bytes or 0))}
end
return known_topics
