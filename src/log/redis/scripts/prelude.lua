-- Every script begins with the constants of scripts.rs and with this: it finds out which generation of the store this is,
-- and what the store still has. Runs as one step with what follows. Numbers are ids: doubles hold them exactly, printed
-- they need a format.
local base, known, looks, durable = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
local wanted, subject = ARGV[5], ARGV[6]

-- Which layout of keys this is. A replica that knows another one must not touch them.
local FORMAT = 2
-- The clocks of two primaries, and of those who publish, may differ by this much.
local SKEW = 10000000
-- So many generations are remembered, each by where it began, the last id that it has inherited, and why it began.
local MAX_BOUNDARIES = 32

-- `index`: topics by their newest ids, and below zero marks of what is gone. `names`: the topics by name. `order`: the
-- ids of all messages.
-- `state`: what the store says of itself and of each topic, packed, since it is read and written with every message.
-- `feed`: the newest messages, deletions and announcements, which every replica reads.
local index, names, order, state, feed = base .. 'index', base .. 'names', base .. 'order', base .. 'store', base .. 'feed'
-- Format 1 had its state here. What is here now makes a replica of that time fail, before it writes anything.
local tombstone = base .. 'state'

local function str(id) return string.format('%d', id) end
local function stream(topic) return base .. 'topic:' .. topic end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local format, last, began, total, messages, max_messages, max_age, max_bytes, max_total, max_topics, marked
local function packed()
  return cmsgpack.pack(FORMAT, last, began, total, messages, max_messages, max_age, max_bytes, max_total, max_topics, marked)
end

-- When the next mark is set. No two marks have the same time, and none is older than what is gone.
local function mark()
  marked = math.max(last, marked + 1)
  return str(-marked)
end

-- Turns a store of format 1 into one of this format, in one step. Streams had an age of their own then.
local function take_over()
  if redis.call('TYPE', tombstone).ok ~= 'hash' then return end
  local old = redis.call('HGET', tombstone, '*')
  if not old then return end
  last, began, total, messages, max_messages, max_age, max_bytes, max_total = cmsgpack.unpack(old)
  max_topics, marked = tonumber(string.match(wanted, '%d+$')), last
  -- Marks had the newest id that is gone, and not when it went.
  for _, member in ipairs(redis.call('ZRANGE', index, '-inf', '(0', 'BYSCORE')) do redis.call('ZADD', index, mark(), member) end
  redis.call('ZADD', names, 0, '*')
  for _, topic in ipairs(redis.call('ZRANGE', index, '(0', '+inf', 'BYSCORE')) do
    redis.call('PERSIST', stream(topic))
    redis.call('ZADD', names, 0, topic)
  end
  redis.call('RENAME', tombstone, state)
  local more = redis.call('HMGET', state, '*inherited', '*previous', '*reason')
  local known = {{tonumber(more[2]) or 0, 0, 'restarted'}, {began, tonumber(more[1]) or 0, more[3] or 'restarted'}}
  redis.call('HSET', state, '*', packed(), '*boundaries', cmsgpack.pack(known))
  redis.call('SET', tombstone, 'format 2')
end

-- The topic that a script is about, if any, rides along.
local saved = redis.call('HMGET', state, '*', subject)
if not saved[1] then
  take_over()
  if last then saved = redis.call('HMGET', state, '*', subject) end
end
if saved[1] then
  format, last, began, total, messages, max_messages, max_age, max_bytes, max_total, max_topics, marked = cmsgpack.unpack(saved[1])
  if format ~= FORMAT then return redis.error_reply('FORMAT the store has format ' .. format .. ', and this version knows format ' .. FORMAT) end
end
local life, process, was_durable, boundaries, forgotten

-- What few scripts need is asked for by those.
local function learn()
  if life then return end
  local more = redis.call('HMGET', state, '*life', '*process', '*durable', '*boundaries', '*forgotten')
  life, process, was_durable = more[1], more[2], more[3] == '1'
  boundaries, forgotten = more[4] and cmsgpack.unpack(more[4]) or {}, tonumber(more[5])
end

-- How much is kept: what the last one that was started says, for all of them.
local function keep(text)
  local numbers = {}
  for number in string.gmatch(text, '%d+') do numbers[#numbers + 1] = tonumber(number) end
  max_messages, max_age, max_bytes, max_total, max_topics = unpack(numbers)
end

local function kept() return string.format('%d %d %d %d %d', max_messages, max_age, max_bytes, max_total, max_topics) end

-- Each of them may be deleted or evicted alone, and nothing is known without the others.
local is_whole = last and redis.call('EXISTS', index, names, order) == 3
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
    local reason = (last and is_promoted and now - (uptime + 1) * 1000000 <= last) and 'failover' or 'restarted'
    local inherited = is_whole and last or 0
    if string.format('%d', 9007199254740991) ~= '9007199254740991' then
      return redis.error_reply('ERR ids need a Redis built for 64 bits')
    end
    -- No id may come before one that there was.
    local top, chain = math.max(now, last or 0, known), last or 0
    if not is_whole then
      if redis.call('EXISTS', order) == 1 then
        local about = redis.call('XINFO', 'STREAM', order)
        for at = 1, #about, 2 do
          if about[at] == 'last-generated-id' then top = math.max(top, tonumber(string.match(about[at + 1], '%d+'))) end
        end
      end
      redis.call('UNLINK', index, names, order, state)
      redis.call('SET', tombstone, 'format 2')
      total, messages, marked, forgotten, boundaries, saved[2] = 0, 0, 0, nil, {}, nil
      keep(wanted)
    end
    last = top + SKEW
    began, forgotten = last, forgotten or last
    if not is_whole then
      redis.call('XADD', order, str(began) .. '-0', 'began', '')
      -- Neither a topic nor a mark: there is an index, also where there are none of these.
      redis.call('ZADD', index, 0, '*')
      redis.call('ZADD', names, 0, '*')
    end
    boundaries[#boundaries + 1] = {began, inherited, reason}
    if #boundaries > MAX_BOUNDARIES then
      table.remove(boundaries, 1)
      -- Of what came before it nothing is known any more.
      boundaries[1][2] = 0
    end
    redis.call('HSET', state, '*', packed(), '*boundaries', cmsgpack.pack(boundaries), '*forgotten', str(forgotten))
    -- It may hold ids that are lost, and later than those to come.
    redis.call('UNLINK', feed)
    redis.call('XADD', feed, str(began) .. '-0', 'b', str(began) .. ' ' .. str(chain) .. ' 0 0\n')
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
  local told = {}
  for at, boundary in ipairs(boundaries) do told[at] = {str(boundary[1]), str(boundary[2]), boundary[3]} end
  return {str(last), str(began), str(forgotten), kept(), told, str(marked)}
end

-- What every entry of the feed that has an id of its own says first: the generation, and the id before it. A replica
-- that finds another id before it than the one it has read, has missed something.
local function linked(chain) return str(began) .. ' ' .. str(chain) end

-- What an entry carries, behind its numbers.
local function carrying(topic, head, data) return ' ' .. #topic .. ' ' .. #head .. '\n' .. topic .. head .. data end

-- Appends to the feed, which holds fewer entries where they are large. One field costs least.
local function tell(id, kind, entry)
  local entries = #entry < 1024 and FEED_ENTRIES or math.max(FEED_MIN_ENTRIES, math.floor(FEED_BYTES / #entry))
  redis.call('XADD', feed, 'MAXLEN', '~', entries, id, kind, entry)
end

-- Sees to it that the feed ends with the newest id, and says where it ends. A script that failed after it had begun to
-- write has told nobody: now a step shows that something was left out.
local function close_feed()
  local newest = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
  local place = newest and newest[1]
  if not place or tonumber(string.match(place, '^%d+')) < last then
    local chain = last
    last = math.max(now, last + 1)
    place = str(last) .. '-0'
    redis.call('HSET', state, '*', packed())
    tell(place, 'b', linked(chain) .. carrying('', '', ''))
  end
  return place
end

-- An entry that is not ours costs nothing.
local function cost_of(entry) return tonumber(string.match(entry[2][2], ' (%d+)$')) or 0 end

-- Removes one message, and leaves its mark: marks lie below zero, apart from the topics. Whatever leaves the order
-- leaves one, also where its stream was lost behind our back. True if the message was still there.
-- What is left in all is to be noted when all is done.
local function evict(topic, id)
  local entry = redis.call('XRANGE', stream(topic), id, id)[1]
  redis.call('XDEL', order, id)
  redis.call('ZADD', index, mark(), ',' .. topic)
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
