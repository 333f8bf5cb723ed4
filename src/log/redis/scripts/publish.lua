-- Stores a message. Few publishes have a key or a condition.
local head, data, event_bytes, key, if_match = ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10] or '', ARGV[11] or ''
-- The number of the client, if it shares with others.
local payer = ARGV[12] or ''
local topic, newest = subject, subject_newest
local name, digest, stretch, holder, is_room_for_key

-- Counts in stretches of some time: the present one and some before it count. So with two of them each use counts for one
-- or two of these times.
local function counted(kind, now_in, stretches, field)
  local count = 0
  for at = now_in, now_in - stretches + 1, -1 do
    count = count + (tonumber(redis.call('HGET', base .. kind .. str(at), field)) or 0)
  end
  return count
end
local function count(kind, now_in, stretches, time_ms, ...)
  local used = base .. kind .. str(now_in)
  for _, field in ipairs({...}) do redis.call('HINCRBY', used, field, 1) end
  redis.call('PEXPIRE', used, str(stretches * time_ms))
end

if key ~= '' then
  name, digest = base .. 'key:' .. topic .. '\0' .. key, redis.sha1hex(data)
  local used = redis.call('GET', name)
  if used then
    local id, was = string.match(used, '(%d+) (%w+)')
    return was == digest and {'replayed', id, str(began)} or {'reused', '0', '0'}
  end
  -- Keys are counted by client, or by topic if they count for no client. Those of one may take no more than the room
  -- that is left, so one that comes later still finds some. No topic has a comma.
  stretch, holder = math.floor(now / (KEY_WINDOW_MS * 1000)), payer ~= '' and ',' .. payer or topic
  is_room_for_key = function()
    local most = math.min(MAX_KEYS, math.floor(max_total / KEY_COST))
    return counted('keys:', stretch, 2, holder) < most - counted('keys:', stretch, 2, '*')
  end
end

if if_match ~= '' then
  local expected = tonumber(if_match)
  -- If the index does not hold the topic, it may have had messages up to `forgotten`.
  if not newest then must_learn() end
  local upto = newest or (expected == 0 and 0 or forgotten)
  if upto > expected or expected > last then return {'newest', str(newest or 0), '0'} end
end

-- A client may make as many topics as it leaves free. Those that it made count for as long as the index remembers a topic.
-- That takes more terms while an age of retention is longer. The term itself never changes, because it names the keys.
local term = math.floor(now / INDEX_AGE)
local terms = math.min(math.ceil((now - all_expired + AFTER_EXPIRY) / INDEX_AGE) + 1, 64)
local is_made = not newest and payer ~= ''
if not newest then
  local made = is_made and counted('made:', term, terms, payer) or 0
  if redis.call('ZCOUNT', index, '(0', '+inf') + made >= max_topics then return {'topics', '0', '0'} end
end
if name and not is_room_for_key() then return {'keys', '0', '0'} end

local ident = store(topic, newest, subject_bytes, head, data, event_bytes, (name or is_made) and function(ident)
  if name then
    redis.call('SET', name, ident .. ' ' .. digest, 'PX', KEY_WINDOW_MS)
    count('keys:', stretch, 2, KEY_WINDOW_MS, '*', holder)
  end
  if is_made then count('made:', term, terms, INDEX_AGE / 1000, payer) end
end)
return {'stored', ident, str(began)}
