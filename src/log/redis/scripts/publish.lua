-- Stores a message and tells of it.
local topic, head, data, event_bytes = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local key, if_match = ARGV[9], ARGV[10]
local newest = subject_newest
local name, digest

if key ~= '' then
  name, digest = base .. 'key:' .. topic .. '\0' .. key, redis.sha1hex(data)
  local used = redis.call('GET', name)
  if used then
    local id, was = string.match(used, '(%d+) (%w+)')
    return was == digest and {'replayed', id} or {'reused', '0'}
  end
end
if if_match ~= '' then
  local expected = tonumber(if_match)
  -- A topic that the index does not hold may have had something up to `forgotten`.
  local vouched = newest or (expected == 0 and 0 or forgotten)
  if vouched > expected or expected > last then return {'newest', str(newest or 0)} end
end

local id = math.max(now, last + 1)
local ident, prev = str(id), newest or forgotten
local cost = OVERHEAD + #data + event_bytes
-- What the index does not know was left behind by another life.
if not newest then redis.call('DEL', stream(topic)) end
redis.call('XADD', stream(topic), ident .. '-0', 'p', str(prev) .. ' ' .. cost, 'h', head, 'd', data)
redis.call('XADD', order, ident .. '-0', 't', topic)
if name then redis.call('SET', name, ident .. ' ' .. digest, 'PX', ARGV[11]) end

local length, bytes = redis.call('XLEN', stream(topic)), tonumber(counts[4]) or 0
if length == 1 then
  -- Whatever was counted of this topic is not there any more.
  total, bytes = total - bytes, 0
end
length, bytes, total, messages = length, bytes + cost, total + cost, messages + 1

local gone
local budget = 100
while budget > 0 and length > 1 and (length > max_messages or bytes > max_bytes) do
  local oldest = redis.call('XRANGE', stream(topic), '-', '+', 'COUNT', 1)[1]
  local freed = cost_of(oldest)
  redis.call('XDEL', stream(topic), oldest[1])
  redis.call('XDEL', order, oldest[1])
  gone = string.gsub(oldest[1], '-0$', '')
  length, bytes, total, messages, budget = length - 1, bytes - freed, total - freed, messages - 1, budget - 1
end
if gone then
  redis.call('ZADD', index, ident, '*last', ident, topic, '-' .. gone, ',' .. topic)
else
  redis.call('ZADD', index, ident, '*last', ident, topic)
end
redis.call('HSET', sizes, topic, str(bytes), '*bytes', str(total), '*messages', str(messages))
-- If nobody sweeps any more, what is kept still goes.
redis.call('PEXPIRE', stream(topic), str(math.ceil(max_age / 500) + 60000))

announce(topic, function()
  return string.format('m %.0f %.0f %.0f %s %d %d\n', began, id, prev, gone or '0', #topic, #head) .. topic .. head .. data
end)

while budget > 0 and total > max_total and messages > 1 do
  local oldest = redis.call('XRANGE', order, '-', '+', 'COUNT', 1)[1]
  if not oldest or oldest[1] == ident .. '-0' then
    -- What is still counted was lost behind our back.
    redis.call('HSET', sizes, '*bytes', str(bytes), '*messages', length)
    break
  end
  if oldest[2][1] == 't' then
    local victim = oldest[2][2]
    local freed = evict(victim, oldest[1])
    if freed then
      total, messages = total - freed, messages - 1
      announce(victim, function()
        return string.format('g %.0f %.0f %s %d\n', began, id, string.gsub(oldest[1], '-0$', ''), #victim) .. victim
      end)
    end
  else
    redis.call('XDEL', order, oldest[1])
  end
  budget = budget - 1
end
-- More goes than comes, so that what has expired never piles up.
sweep(2)
return {'stored', ident}
