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
  if not newest then learn() end
  local vouched = newest or (expected == 0 and 0 or forgotten)
  if vouched > expected or expected > last then return {'newest', str(newest or 0)} end
end

local id = math.max(now, last + 1)
local into, ident, cost = stream(topic), str(id), OVERHEAD + #data + event_bytes
local prev = newest
if not newest then
  learn()
  prev = forgotten
  -- What the index does not know was left behind by another life.
  redis.call('DEL', into)
end

local length, bytes = redis.call('XLEN', into), tonumber(counts[4]) or 0
local is_first = length == 0
if is_first then
  -- Whatever was counted of this topic is not there any more.
  total, bytes = total - bytes, 0
end
length, bytes, total, messages = length + 1, bytes + cost, total + cost, messages + 1

local gone
local old, budget = {}, 100
while #old < budget and length > 1 and (length > max_messages or bytes > max_bytes) do
  local oldest = redis.call('XRANGE', into, gone and '(' .. gone or '-', '+', 'COUNT', 1)[1]
  local freed = cost_of(oldest)
  gone = oldest[1]
  old[#old + 1] = gone
  length, bytes, total, messages = length - 1, bytes - freed, total - freed, messages - 1
end
redis.call('XADD', into, 'MAXLEN', '=', length, ident .. '-0', 'p', str(prev) .. ' ' .. cost, 'h', head, 'd', data)
redis.call('XADD', order, ident .. '-0', 't', topic)
if gone then
  redis.call('XDEL', order, unpack(old))
  gone, budget = string.gsub(gone, '-0$', ''), budget - #old
end
if name then redis.call('SET', name, ident .. ' ' .. digest, 'PX', ARGV[11]) end
if gone then
  redis.call('ZADD', index, ident, '*last', ident, topic, '-' .. gone, ',' .. topic)
else
  redis.call('ZADD', index, ident, '*last', ident, topic)
end
redis.call('HSET', sizes, topic, str(bytes), '*bytes', str(total), '*messages', str(messages))
-- If nobody sweeps any more, what is kept still goes. Once in a while is enough: it is put off for long.
local span = max_age / 4
if is_first or math.floor(id / span) ~= math.floor(prev / span) then
  redis.call('PEXPIRE', into, str(math.ceil(max_age / 500) + 60000))
end

announce(topic, function()
  local line = table.concat({'m', str(began), ident, str(prev), gone or '0', #topic, #head}, ' ')
  return line .. '\n' .. topic .. head .. data
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
if id % 4 == 0 then sweep(8) end
return {'stored', ident}
