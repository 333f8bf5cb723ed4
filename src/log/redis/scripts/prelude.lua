-- What every script begins with: which life of which primary this is, and what it vouches for.
-- Runs as one step with what follows. Numbers are ids: doubles hold them exactly, printed they need a format.
local base, known, looks, durable = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
local wanted, subject = ARGV[5], ARGV[6]
-- Topics by their newest ids, and marks of what is gone; what was published, in order; and what the store says of
-- itself and of each topic, packed, since it is asked for and written with every message.
local index, order, state = base .. 'index', base .. 'order', base .. 'state'

-- The clocks of two primaries, and of those who publish, may differ by this much.
local SKEW = 10000000
-- What a message costs beside its payload and its event.
local OVERHEAD = 200
-- This part of what is kept of a topic may be there beside it, until it is removed.
local SLACK = 64

local function str(id) return string.format('%d', id) end
local function stream(topic) return base .. 'topic:' .. topic end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- The topic that a script is about, if any, rides along.
local saved = redis.call('HMGET', state, '*', subject)
local last, began, total, messages, max_messages, max_age, max_bytes, max_total
if saved[1] then
  last, began, total, messages, max_messages, max_age, max_bytes, max_total = cmsgpack.unpack(saved[1])
end
local function packed()
  return cmsgpack.pack(last, began, total, messages, max_messages, max_age, max_bytes, max_total)
end
local life, process, was_durable, inherited, previous, forgotten, reason

-- What few scripts need is asked for by those.
local function learn()
  if life then return end
  local more = redis.call('HMGET', state, '*life', '*process', '*durable', '*inherited', '*previous', '*forgotten',
    '*reason')
  life, process, was_durable = more[1], more[2], more[3] == '1'
  inherited, previous = tonumber(more[4]) or 0, tonumber(more[5]) or 0
  forgotten, reason = tonumber(more[6]), more[7]
end

-- How much is kept: what the last one that was started says, for all of them.
local function keep(text)
  local numbers = {}
  for number in string.gmatch(text, '%d+') do numbers[#numbers + 1] = tonumber(number) end
  max_messages, max_age, max_bytes, max_total = unpack(numbers)
end

local function kept() return string.format('%d %d %d %d', max_messages, max_age, max_bytes, max_total) end

-- Each of them may be deleted or evicted alone, and nothing is known without the others.
local is_whole = last and redis.call('EXISTS', index, order) == 2
local is_sound = is_whole and known <= last
-- Which primary this is costs too much to be asked each time: every second is enough.
local info = (looks or not is_sound) and redis.call('INFO', 'replication')
if info then
  learn()
  -- A copy may be promoted, and lack what was acknowledged here.
  if not string.find(info, 'connected_slaves:0', 1, true) then durable = false end
end
-- A primary takes another replication id when its first copy comes, and when its last one has been away for long. It
-- has lost nothing as long as it is the same process, and was never promoted: then the second id is all zeros.
local replication_id = info and string.match(info, 'master_replid:(%w+)')
local server, is_same_process
if info and not (is_sound and process and replication_id == life) then
  server = redis.call('INFO', 'server')
  is_same_process = process and string.find(server, 'run_id:' .. process, 1, true)
    and string.find(info, 'role:master', 1, true)
    and string.find(info, 'master_replid2:' .. string.rep('0', 40), 1, true)
end
if not is_sound or (info and replication_id ~= life and not is_same_process) then
  local is_promoted = life and string.find(info, 'master_replid2:' .. life, 1, true)
  if not (is_sound and was_durable and not is_promoted) then
    -- A copy was alive when the newest message came; who came to life after it was started again.
    local uptime = tonumber(string.match(server, 'uptime_in_seconds:(%d+)'))
    reason = (last and is_promoted and now - (uptime + 1) * 1000000 <= last) and 'failover' or 'restarted'
    inherited, previous = is_whole and last or 0, began or 0
    if string.format('%d', 9007199254740991) ~= '9007199254740991' then
      return redis.error_reply('ERR ids need a Redis built for 64 bits')
    end
    -- No id may come before one that there was.
    local top = math.max(now, last or 0, known)
    if not is_whole then
      if redis.call('EXISTS', order) == 1 then
        local about = redis.call('XINFO', 'STREAM', order)
        for at = 1, #about, 2 do
          if about[at] == 'last-generated-id' then top = math.max(top, tonumber(string.match(about[at + 1], '%d+'))) end
        end
      end
      redis.call('UNLINK', index, order, state)
      total, messages, forgotten, saved[2] = 0, 0, nil, nil
      keep(wanted)
    end
    last = top + SKEW
    began, forgotten = last, forgotten or last
    if not is_whole then
      redis.call('XADD', order, str(began) .. '-0', 'began', '')
      -- Neither a topic nor a mark: there is an index, also where there are none of these.
      redis.call('ZADD', index, 0, '*')
    end
    redis.call('HSET', state, '*', packed(), '*inherited', str(inherited), '*previous', str(previous),
      '*forgotten', str(forgotten), '*reason', reason)
  end
  life, was_durable = replication_id, durable
  redis.call('HSET', state, '*life', life, '*process', string.match(server, 'run_id:(%w+)'),
    '*durable', durable and 1 or 0)
elseif info and (server or (was_durable and not durable)) then
  life = replication_id
  redis.call('HSET', state, '*life', life, '*durable', (was_durable and durable) and 1 or 0)
  if server then redis.call('HSET', state, '*process', string.match(server, 'run_id:(%w+)')) end
end

local expired = now - max_age

-- The newest id and the bytes of that topic, if it is known.
local subject_newest, subject_bytes
if saved[2] then subject_newest, subject_bytes = cmsgpack.unpack(saved[2]) end

local function facts()
  learn()
  return {str(last), str(began), str(inherited), str(previous), str(forgotten), reason, kept()}
end

-- Tells those who listen to a topic. What nobody listens to is not even put together.
local function announce(topic, text)
  local heard = redis.call('PUBSUB', 'NUMSUB', base .. 't:' .. topic,
    base .. 's:' .. string.match(topic, '^[^.]*'), base .. 'a')
  for at = 2, 6, 2 do
    if heard[at] > 0 then
      if type(text) == 'function' then text = text() end
      redis.call('PUBLISH', heard[at - 1], text)
    end
  end
end

-- An entry that is not ours costs nothing.
local function cost_of(entry) return tonumber(string.match(entry[2][2], ' (%d+)$')) or 0 end

-- Removes one message, and leaves its mark: marks lie below zero, apart from the topics. Whatever leaves the order
-- leaves one, also where its stream was lost behind our back. True if the message was still there.
-- What is left in all is to be noted when all is done.
local function evict(topic, id)
  local entry = redis.call('XRANGE', stream(topic), id, id)[1]
  redis.call('XDEL', order, id)
  redis.call('ZADD', index, 'LT', '-' .. string.gsub(id, '-0$', ''), ',' .. topic)
  local known_topic, cost = redis.call('HGET', state, topic), 0
  if entry then
    redis.call('XDEL', stream(topic), id)
    cost, messages = cost_of(entry), messages - 1
  end
  if known_topic then
    local newest, bytes = cmsgpack.unpack(known_topic)
    -- A stream that was lost behind our back, or has expired while nobody swept, is not counted any more.
    if not entry and redis.call('EXISTS', stream(topic)) == 0 then cost = bytes end
    if cost > 0 then redis.call('HSET', state, topic, cmsgpack.pack(newest, bytes - cost)) end
  end
  total = total - cost
  -- Nobody can say how many there were in what was lost, but each message costs something.
  if total == 0 then messages = 0 end
  return entry ~= nil
end

-- Removes what has expired, a batch at a time. True if there may be more.
local function sweep(budget)
  local old = redis.call('XRANGE', order, '-', '(' .. str(expired) .. '-0', 'COUNT', budget)
  for _, entry in ipairs(old) do
    if entry[2][1] == 't' then evict(entry[2][2], entry[1]) else redis.call('XDEL', order, entry[1]) end
  end
  if old[1] then redis.call('HSET', state, '*', packed()) end
  return #old == budget
end
