-- Returns the facts of the store and the end of the feed, so that a replica can tell whether it has read
-- everything. Now and then it also sweeps, one batch at a time.
local is_sweep = ARGV[7] == '1'
local BATCH = 200
local is_more = false
must_learn()

if is_sweep and not FROZEN then
  local is_due
  is_more, is_due = sweep(BATCH, BATCH)
  local unknown = math.min(all_expired - AFTER_EXPIRY, now - INDEX_AGE)
  -- Expired messages are still counted in the state of their topics, so forget topics only after the sweep. The marks of
  -- a topic go with it.
  local old = is_more and {} or redis.call('ZRANGE', index, '(0', str(unknown), 'BYSCORE', 'LIMIT', 0, BATCH, 'WITHSCORES')
  for at = 1, #old, 2 do
    local topic = old[at]
    forgotten = math.max(forgotten, tonumber(old[at + 1]))
    redis.call('ZREM', index, topic, ',' .. topic, ' ' .. topic)
    redis.call('ZREM', names, topic)
    if has_rules then redis.call('ZREM', due, topic) end
    redis.call('HDEL', state, topic)
  end
  is_more = is_more or is_due or #old == 2 * BATCH
  redis.call('HSET', state, '*forgotten', str(forgotten))
end
local place = close_feed()
return {facts(), is_more and 1 or 0, place}
