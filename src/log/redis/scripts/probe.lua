-- Returns the facts of the store and the end of the feed, so that a replica can tell whether it has read
-- everything. Now and then it also sweeps, one batch at a time.
local is_sweep = ARGV[7] == '1'
local BATCH = 200
local is_more = false
must_learn()

-- Removes what has expired by the rules of single topics: some topics at a time, by name. True until it has come to the
-- last one.
local function sweep_topics()
  local walked = redis.call('HGET', state, '*walked') or ''
  local budget = BATCH
  local found = redis.call('ZRANGE', names, '(' .. walked, '+', 'BYLEX', 'LIMIT', 0, BATCH)
  for _, topic in ipairs(found) do
    if topic ~= '*' then budget = budget - expire(topic, budget) end
    if budget == 0 then break end
    walked = topic
  end
  if budget > 0 and #found < BATCH then walked = '' end
  redis.call('HSET', state, '*', packed(), '*walked', walked)
  return walked ~= '' or budget == 0
end

if is_sweep and not FROZEN then
  is_more = sweep(BATCH)
  local unknown = math.min(all_expired - AFTER_EXPIRY, now - INDEX_AGE)
  -- Expired messages are still counted in the state of their topics, so forget topics only after the sweep. The marks of
  -- a topic go with it.
  local old = is_more and {} or redis.call('ZRANGE', index, '(0', str(unknown), 'BYSCORE', 'LIMIT', 0, BATCH, 'WITHSCORES')
  for at = 1, #old, 2 do
    local topic = old[at]
    forgotten = math.max(forgotten, tonumber(old[at + 1]))
    redis.call('ZREM', index, topic, ',' .. topic, ' ' .. topic)
    redis.call('ZREM', names, topic)
    redis.call('HDEL', state, topic)
  end
  is_more = is_more or #old == 2 * BATCH
  redis.call('HSET', state, '*forgotten', str(forgotten))
  if has_rules then is_more = sweep_topics() or is_more end
end
local place = close_feed()
return {facts(), is_more and 1 or 0, place}
