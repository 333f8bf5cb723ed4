-- Gives a sign of life of a replica, and says which replicas there are. It needs nothing of the log, so it has no prelude.
local base, name, does, place = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local gone_after, pause, forget_after, settled_after = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local roll, own = base .. 'replicas', base .. 'replica:' .. name

local function str(ms) return string.format('%.0f', ms) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', roll, '*last', '*since', '*made', '*lost', name, '*present', '*keeper', '*kept')
local last, since, made, lost, heard = tonumber(known[1]), tonumber(known[2]), tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
made, lost = made or now, lost or 0
-- If nobody was heard for a while, Redis was away. The silence before that is nobody's.
if not last or not since or now - last > pause then since = now end

local is_gone, is_made, is_keeper = 0, 0, 0
if does == 'beat' and now - math.max(heard or 0, since) > gone_after then
  is_gone = 1
elseif does == 'leave' then
  redis.call('HDEL', roll, name)
  if known[7] == name then redis.call('HDEL', roll, '*kept') end
  redis.call('UNLINK', own)
elseif does ~= 'look' then
  -- This replica has joined before, so Redis has lost what it knew, and others may have to join again too.
  if does == 'beat' and not heard then lost = now end
  redis.call('HSET', roll, name, str(now), '*last', str(now), '*since', str(since), '*made', str(made), '*lost', str(lost))
  if redis.call('EXISTS', own) == 0 then
    redis.call('XADD', own, '*', 'j', '')
    is_made = 1
  elseif place ~= '' then
    redis.call('XTRIM', own, 'MINID', place)
  end
  redis.call('PEXPIRE', own, forget_after)
  -- While there are members, one replica looks after them. Another one takes over if it is silent.
  if known[6] and (known[7] == name or now - (tonumber(known[8]) or 0) > pause) then
    redis.call('HSET', roll, '*keeper', name, '*kept', str(now))
    is_keeper = 1
  end
end

local all = redis.call('HGETALL', roll)
if does ~= 'look' then
  for i = 1, #all, 2 do
    local at = tonumber(all[i + 1]) or 0
    if string.sub(all[i], 1, 1) ~= '*' and now - math.max(at, since) > forget_after then redis.call('HDEL', roll, all[i]) end
  end
end
-- If Redis was away, it may be back from an older snapshot, without a replica that joined after that.
local is_complete = now - lost > gone_after and now - math.max(made, since) > settled_after
return {str(now), str(since), is_gone, is_made, is_complete and 1 or 0, is_keeper, all}
