-- Fetches some messages by topic and id, as many as fit in a page. Also reads what is retained of other
-- topics, each after a point of its own. The arguments: how many messages, each topic and id, then each other
-- topic and its point.
local count, MESSAGES = tonumber(ARGV[7]), 8
local others = MESSAGES + 2 * count
local found, bytes = {}, PAGE_BYTES
for at = MESSAGES, others - 1, 2 do
  local topic, id = ARGV[at], ARGV[at + 1]
  if bytes <= 0 then break end
  local entry = (on_stream(topic, 'XRANGE', id .. '-0', id .. '-0') or {})[1]
  if entry then bytes = bytes - size(entry) end
  -- For a missing message return when its topic last lost something, and its last deletion.
  if not entry then
    local scores = redis.call('ZMSCORE', index, ',' .. topic, ' ' .. topic)
    entry = {'', scored(scores[1]), scored(scores[2])}
  end
  found[#found + 1] = entry
end
local known_topics = {}
for at = others, #ARGV, 2 do
  local topic, given = ARGV[at], tonumber(ARGV[at + 1])
  local scores = redis.call('ZMSCORE', index, topic, ' ' .. topic)
  known_topics[#known_topics + 1] = retained(scores, entries(topic, str(math.max(given + 1, expired_of(topic))), 1)[1])
end
return {facts(), found, known_topics}
