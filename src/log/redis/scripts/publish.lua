-- Stores a message. Few publishes have a key or a condition.
local head, data, event_bytes, key, if_match = ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10] or '', ARGV[11] or ''
-- The number of the client, if it shares with others.
local payer = ARGV[12] or ''
local topic, newest = subject, subject_newest
local name, digest, stretch, holder, is_room_for_key

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
    local most = open_to(payer, math.min(MAX_KEYS, math.floor(max_total / KEY_COST)))
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

local is_made = not newest and payer ~= ''
if not newest and not is_room_for_topic(payer) then return {'topics', '0', '0'} end
if name and not is_room_for_key() then return {'keys', '0', '0'} end

local ident = store(topic, newest, subject_bytes, head, data, event_bytes, (name or is_made) and function(ident)
  if name then
    redis.call('SET', name, ident .. ' ' .. digest, 'PX', KEY_WINDOW_MS)
    count('keys:', stretch, 2, KEY_WINDOW_MS, '*', holder)
  end
  if is_made then note_made(payer) end
end)
return {'stored', ident, str(began)}
