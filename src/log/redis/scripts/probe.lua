-- Says what the store holds and where the feed ends, so that a replica sees whether it has read it all. Now and then
-- it sweeps.
local is_sweep = ARGV[7] == '1'
local is_more = false
learn()
if is_sweep then
  is_more = sweep(200)
  -- The index forgets a topic after 7 days, and never within a day after its last message has expired.
  local unknown = now - math.max(max_age + 86400000000, 604800000000)
  local function forget(least, most)
    local old = redis.call('ZRANGE', index, least, most, 'BYSCORE', 'LIMIT', 0, 200, 'WITHSCORES')
    for at = 1, #old, 2 do
      forgotten = math.max(forgotten, math.abs(tonumber(old[at + 1])))
      redis.call('ZREM', index, old[at])
      redis.call('HDEL', state, old[at])
    end
    is_more = is_more or #old == 400
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
