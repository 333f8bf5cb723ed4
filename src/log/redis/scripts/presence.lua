-- Notes which subjects the connections of one replica hold present, tells the joins, and lets those leave whose grace is
-- over. All of it may be repeated.
local name, grace, most, is_keeper = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
local heads = {join = ARGV[11], leave = ARGV[12]}
-- The rest is all that this replica holds behind the first of these places, and up to the second.
local is_part, after, upto = ARGV[13] == '1', ARGV[14], ARGV[15]
local gone_after, pause, settled_after = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[18])
local FIRST, BUDGET = 19, 64

-- `members:TOPIC`: each subject, with the id of its join, the payload that tells it, and its connections by replica.
-- `subjects:TOPIC`: the subjects in their order.
-- `holds:NAME`: the places of a replica, each a topic, a zero and a subject; `holding`: the replicas that have any.
-- `leaving`: the places of members without a connection, by the time at which they leave.
local function members_of(topic) return base .. 'members:' .. topic end
local function subjects_of(topic) return base .. 'subjects:' .. topic end
local function holds_of(replica) return base .. 'holds:' .. replica end
local holding, leaving, roll = base .. 'holding', base .. 'leaving', base .. 'replicas'

local ms = math.floor(now / 1000)
local signs = redis.call('HMGET', roll, '*last', '*since', '*made', '*lost', name)
local last_sign, since, made, lost = tonumber(signs[1]), tonumber(signs[2]), tonumber(signs[3]) or ms, tonumber(signs[4]) or 0
if not last_sign or not since or ms - last_sign > pause then since = ms end
local function heard_at(sign) return math.max(tonumber(sign), since) end
-- A replica that counts as gone must not bring back what the others have taken from it.
if not signs[5] or ms - heard_at(signs[5]) > gone_after then return {'gone', '0', {}, {}, '0', '0', 0} end

local function member(topic, sub)
  local is_packed, id, data, held = pcall(cmsgpack.unpack, redis.call('HGET', members_of(topic), sub) or '')
  if is_packed and type(id) == 'number' and type(data) == 'string' and type(held) == 'table' then return {id, data, held} end
end

local function write(topic, sub, one)
  redis.call('HSET', members_of(topic), sub, cmsgpack.pack(one[1], one[2], one[3]))
end

-- The topic and the subject of a place.
local function parts(place) return string.match(place, '^(%Z+)%z(.*)$') end

local changes = {join = 0, leave = 0}
local function change(topic, event, data, payer)
  local into = '$presence.' .. topic
  local newest, bytes = counts(into, redis.call('HGET', state, into))
  -- A leave is told however many topics there are.
  if event == 'join' and not newest and not is_room_for_topic(payer) then return end
  changes[event] = changes[event] + 1
  return tonumber(store(into, newest, bytes, heads[event], data, #event, not newest and payer and function() note_made(payer) end))
end

-- Takes a member from a replica. If none holds it then, it leaves at this time.
local function release(replica, topic, sub, at)
  local one, place = member(topic, sub), topic .. '\0' .. sub
  if one and one[3][replica] then
    one[3][replica] = nil
    if next(one[3]) == nil then redis.call('ZADD', leaving, str(at), place) end
    write(topic, sub, one)
  end
  redis.call('ZREM', holds_of(replica), place)
  if redis.call('EXISTS', holds_of(replica)) == 0 then redis.call('ZREM', holding, replica) end
end

-- Notes how many connections of this replica hold a member.
local function hold(topic, sub, connections, data, payer)
  if connections == 0 then
    release(name, topic, sub, ms + grace)
    return 'done'
  end
  local one, place = member(topic, sub), topic .. '\0' .. sub
  if not one then
    if redis.call('ZCARD', subjects_of(topic)) >= most then return 'members' end
    local id = change(topic, 'join', data, payer)
    if not id then return 'topics' end
    one = {id, data, {}}
    redis.call('ZADD', subjects_of(topic), 0, sub)
    redis.call('HSET', roll, '*present', 1)
  end
  if one[3][name] == connections then return 'done' end
  if next(one[3]) == nil then redis.call('ZREM', leaving, place) end
  if not one[3][name] then
    redis.call('ZADD', holds_of(name), 0, place)
    redis.call('ZADD', holding, 0, name)
  end
  one[3][name] = connections
  write(topic, sub, one)
  return 'done'
end

local outcomes, given = {}, {}
for at = FIRST, #ARGV, 5 do
  local topic, sub = ARGV[at], ARGV[at + 1]
  given[topic .. '\0' .. sub] = true
  outcomes[#outcomes + 1] = hold(topic, sub, tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4])
end

local unnamed = {}
if is_part then
  local from, to = after == '' and '-' or '(' .. after, upto == '' and '+' or '[' .. upto
  for _, place in ipairs(redis.call('ZRANGE', holds_of(name), from, to, 'BYLEX', 'LIMIT', 0, 2 * BUDGET)) do
    if not given[place] then unnamed[#unnamed + 1] = place end
  end
end

-- One replica at a time keeps the others: what replicas that are gone have held is held by none.
local is_more = 0
if is_keeper then
  local is_complete = ms - lost > gone_after and ms - math.max(made, since) > settled_after
  local budget = BUDGET
  for _, replica in ipairs(redis.call('ZRANGE', holding, 0, -1)) do
    local sign = redis.call('HGET', roll, replica)
    local is_gone = (sign and ms - heard_at(sign) > gone_after) or (not sign and is_complete)
    if is_gone and budget > 0 then
      local places = redis.call('ZRANGE', holds_of(replica), 0, budget - 1)
      -- Its grace counts from its last sign of life.
      for _, place in ipairs(places) do
        local topic, sub = parts(place)
        release(replica, topic, sub, (sign and heard_at(sign) or ms) + grace)
      end
      budget = budget - #places
      if budget > 0 then redis.call('ZREM', holding, replica) else is_more = 1 end
    end
  end
  if redis.call('ZCARD', holding) == 0 and redis.call('ZCARD', leaving) == 0 then redis.call('HDEL', roll, '*present', '*keeper', '*kept') end
end

local due = redis.call('ZRANGE', leaving, '-inf', str(ms), 'BYSCORE', 'LIMIT', 0, BUDGET)
for _, place in ipairs(due) do
  local topic, sub = parts(place)
  local one = member(topic, sub)
  if one and next(one[3]) == nil then change(topic, 'leave', one[2]) end
  if not one or next(one[3]) == nil then
    redis.call('HDEL', members_of(topic), sub)
    redis.call('ZREM', subjects_of(topic), sub)
  end
  redis.call('ZREM', leaving, place)
end
if #due == BUDGET then is_more = 1 end
return {'done', str(began), outcomes, unnamed, str(changes.join), str(changes.leave), is_more}
