-- Adds a topic to the list of a subject, or removes it. The change takes an id of its own, so that it has its place among
-- the messages, and a replica that missed it can tell. A list is a part of one sorted set: its members are the subject, the
-- topic and the id, with a zero byte in between, which no subject and no topic has.
local does, owner, topic, is_wild = ARGV[7], ARGV[8], ARGV[9], ARGV[10] == '1'
local entry = owner .. '\0' .. topic .. '\0'
local known = redis.call('ZRANGE', lists, '[' .. entry, '(' .. owner .. '\0' .. topic .. '\1', 'BYLEX')[1]
local cost = ENTRY_BYTES + #owner + #topic
if does == 'add' and known then return {'known', string.sub(known, #entry + 1), str(began)} end
if does == 'remove' and not known then return {'known', '0', str(began)} end
if does == 'add' then
  local from, upto = '[' .. owner .. '\0', '(' .. owner .. '\1'
  if redis.call('ZLEXCOUNT', lists, from, upto) >= MAX_ENTRIES then return {'many', '0', '0'} end
  local wild = 0
  for _, member in ipairs(is_wild and redis.call('ZRANGE', lists, from, upto, 'BYLEX') or {}) do
    if string.find(member, '*', #owner + 2, true) then wild = wild + 1 end
  end
  if wild >= MAX_WILD_ENTRIES then return {'wild', '0', '0'} end
  if listed + cost > max_total then return {'room', '0', '0'} end
end
local chain = last
last = math.max(now, last + 1)
listed = math.max(0, listed + (does == 'add' and cost or -cost))
-- Write this first: if the script fails later, the next entry of the feed shows it.
redis.call('HSET', state, '*', packed(), '*lists', str(listed))
if does == 'add' then redis.call('ZADD', lists, 0, entry .. str(last)) else redis.call('ZREM', lists, known) end
tell(str(last) .. '-0', 'l', linked(chain) .. (does == 'add' and ' 1' or ' 0') .. carrying(topic, owner, ''))
return {'done', str(last), str(began)}
