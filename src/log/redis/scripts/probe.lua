-- Proves that this primary takes writes, and that the link brings what is announced. Now and then it sweeps.
local channel, token, is_sweep = ARGV[6], ARGV[7], ARGV[8] == '1'
local is_more = false
learn()
if is_sweep then
  is_more = sweep(200)
  -- The index forgets a topic after 7 days, or after as long as messages are kept.
  local unknown = now - math.max(max_age, 604800000000)
  local function forget(least, most)
    local old = redis.call('ZRANGE', index, least, most, 'BYSCORE', 'LIMIT', 0, 200, 'WITHSCORES')
    for at = 1, #old, 2 do
      local member = old[at]
      if string.sub(member, 1, 1) ~= '*' then
        forgotten = math.max(forgotten, math.abs(tonumber(old[at + 1])))
        redis.call('ZREM', index, member)
        redis.call('HDEL', sizes, member)
      end
    end
    is_more = is_more or #old == 400
  end
  forget('1', str(unknown))
  forget(str(-unknown), '-100')
end
redis.call('ZADD', index, str(forgotten), '*forgotten')
redis.call('PUBLISH', channel, string.format('p %.0f %.0f %s\n', began, last, token))
return {facts(), is_more and 1 or 0}
