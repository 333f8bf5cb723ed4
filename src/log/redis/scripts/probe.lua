-- Returns the facts of the store and the end of the feed, so that a replica can tell whether it has read
-- everything. Now and then it also sweeps, one batch at a time.
local is_sweep = ARGV[7] == '1'
local BATCH = 200
local is_more = false
learn()
if is_sweep then
  is_more = sweep(BATCH)
  local unknown = now - math.max(max_age + AFTER_EXPIRY, INDEX_AGE)
  local function forget(least, most)
    local old = redis.call('ZRANGE', index, least, most, 'BYSCORE', 'LIMIT', 0, BATCH, 'WITHSCORES')
    for at = 1, #old, 2 do
      forgotten = math.max(forgotten, math.abs(tonumber(old[at + 1])))
      redis.call('ZREM', index, old[at])
      redis.call('ZREM', names, old[at])
      redis.call('HDEL', state, old[at])
    end
    is_more = is_more or #old == 2 * BATCH
  end
  -- Expired messages are still counted in the state of their topics, so forget topics only after the sweep.
  if not is_more then
    forget('(0', str(unknown))
    forget(str(-unknown), '(0')
  end
  redis.call('HSET', state, '*forgotten', str(forgotten))
end
local place = close_feed()
return {facts(), is_more and 1 or 0, place}
