-- Says what the store holds and where the feed ends, so that a replica sees whether it has read it all. Now and then
-- it sweeps, so many at once.
local is_sweep = ARGV[7] == '1'
local BATCH = 200
local is_more = false
learn()
if is_sweep then
  is_more = sweep(BATCH)
  local unknown = now - math.max(max_age + AFTER_EXPIRY, INDEX_AGE)
  -- A topic is counted until all of it is swept. Its marks go with it.
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
end
local place = close_feed()
return {facts(), is_more and 1 or 0, place}
