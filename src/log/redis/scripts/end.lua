-- Ends a subject: the replicas are told. With a time, in milliseconds, its tokens that were issued up to now are refused
-- for so long, and a shorter time never shortens a longer one.
local owner, lasts = ARGV[7], tonumber(ARGV[8])
local second, until_ms, now_ms = 0, 0, math.floor(now / 1000)
if lasts > 0 then
  for _, over in ipairs(redis.call('ZRANGE', refused, '-inf', '(' .. str(now_ms), 'BYSCORE', 'LIMIT', 0, 1000)) do
    redis.call('ZREM', refused, over)
  end
  local key = refused .. ':' .. owner
  -- Another program may have put something else there.
  local text = redis.pcall('GET', key)
  local known_second, known_until = string.match(type(text) == 'string' and text or '', '^(%d+) (%d+)$')
  local taken = redis.call('ZCARD', refused) * (ENTRY_BYTES + 255)
  if not known_second and listed + taken + ENTRY_BYTES > max_total then return {'room', '0', '0', '0', '0'} end
  second = math.max(math.floor(now_ms / 1000), tonumber(known_second) or 0)
  until_ms = math.max(now_ms + lasts, tonumber(known_until) or 0)
  redis.call('SET', key, str(second) .. ' ' .. str(until_ms), 'PX', str(until_ms - now_ms))
  redis.call('ZADD', refused, str(until_ms), owner)
end
local chain = last
last = math.max(now, last + 1)
redis.call('HSET', state, '*', packed())
tell(str(last) .. '-0', 'u', linked(chain) .. ' ' .. str(second) .. ' ' .. str(until_ms) .. carrying('', owner, ''))
return {'done', str(last), str(began), str(second), str(until_ms)}
