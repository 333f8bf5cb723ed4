-- Deletes the retained messages of a topic. The deletion takes an id of its own, so that a replica that
-- missed it can tell.
local topic, newest = subject, subject_newest
if newest then
  local chain = last
  last = math.max(now, last + 1)
  local mark_at = mark()
  total, messages = total - subject_bytes, messages - (on_stream(topic, 'XLEN') or 0)
  redis.call('HSET', state, '*', packed(), topic, cmsgpack.pack(newest, 0))
  redis.call('DEL', stream(topic))
  redis.call('ZADD', index, str(-last), ' ' .. topic, mark_at, ',' .. topic)
  tell(str(last) .. '-0', 'x', linked(chain) .. ' ' .. str(newest) .. carrying(topic, '', ''))
end
return {facts(), str(newest or 0)}
