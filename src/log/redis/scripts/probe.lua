-- Proves that this primary takes writes, and that the link brings what is announced: how many connections listen here
-- is said too, since a copy passes the probe on to those that listen there. Now and then it sweeps.
local channel, token, is_sweep = ARGV[7], ARGV[8], ARGV[9] == '1'
local is_more = false
learn()
if is_sweep then
  is_more = sweep(200)
  -- The index forgets a topic after 7 days, or after as long as messages are kept.
  local unknown = now - math.max(max_age, 604800000000)
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
end
redis.call('HSET', state, '*forgotten', str(forgotten))
local listeners = redis.call('PUBLISH', channel, string.format('p %d %d %s\n', began, last, token))
return {facts(), is_more and 1 or 0, listeners}
