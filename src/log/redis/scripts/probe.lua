-- Says what the store holds and where the feed ends, so that a replica sees whether it has read it all. Now and then
-- it sweeps, so many at once.
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
  -- What is still to be swept is counted by its topic.
  if not is_more then
    forget('(0', str(unknown))
    forget(str(-unknown), '(0')
  end
  redis.call('HSET', state, '*forgotten', str(forgotten))
end
local place = close_feed()
return {facts(), is_more and 1 or 0, place}
