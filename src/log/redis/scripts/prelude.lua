-- Every script begins with the constants of scripts.rs and with this prelude. A script with FROZEN writes nothing: it is
-- the form that runs while Redis refuses writes. It finds out the generation of
-- the store, and which messages the store still has. It runs as one step with the script behind it. Numbers
-- are ids: doubles hold them exactly, but they are printed exactly only with a format.
local base, known, looks, durable = ARGV[1], tonumber(ARGV[2]), string.sub(ARGV[3], 1, 1) == '1', string.sub(ARGV[3], 2) == '1'
-- After this time, in microseconds, the script does nothing. A script that only reads has none.
local deadline = tonumber(ARGV[4])
local wanted, subject = ARGV[5], ARGV[6]

-- The version of the layout of the keys. A replica that knows another version must not touch them.
local FORMAT = 2
-- The clocks of two primaries, and of those that publish, may differ by this much, in microseconds.
local SKEW = 10000000
-- Doubles hold ids exactly up to here. A larger one in a stream is not ours.
local MAX_ID = 9000000000000000
-- How many generations are remembered: the id where each began, the last id that it has inherited, and why it
-- began.
local MAX_BOUNDARIES = 32

-- `index`: the topics by their newest ids, and below zero the marks.
-- `names`: the topics by name.
-- `order`: the ids of all messages.
-- `state`: the facts about the store and about each topic, packed because each message reads and writes them.
-- `feed`: the newest messages, deletions and announcements, which every replica reads.
-- `due`: while there are rules of retention, the topics by the time at which their oldest messages may expire. The member
-- behind them says which topics are there.
local index, names, order, state, feed = base .. 'index', base .. 'names', base .. 'order', base .. 'store', base .. 'feed'
local due = base .. 'due'
-- `lists`: the lists of all subjects. `refused`: the subjects with tokens that are refused, by the time until which they are.
local lists, refused = base .. 'lists', base .. 'refused'
-- Format 1 had its state under this key. Its present value makes a replica of that format fail before it
-- writes anything.
local tombstone = base .. 'state'

local function str(id) return string.format('%d', id) end
local function stream(topic) return base .. 'topic:' .. topic end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- The client was told that the outcome is unknown, and a newer change may be done already.
if deadline and now > deadline then return redis.error_reply('LATE the script came too late') end

local format, last, began, total, messages, max_messages, max_age, max_bytes, max_total, max_topics, marked
local function packed()
  return cmsgpack.pack(FORMAT, last, began, total, messages, max_messages, max_age, max_bytes, max_total, max_topics, marked)
end

-- Returns the time for the next mark. Each mark has a time of its own, which is no older than the lost
-- messages.
local function mark()
  marked = math.max(last, marked + 1)
  return str(-marked)
end

-- Turns a store of format 1 into one of this format, in one step. Each stream had an expiry time of its own
-- in format 1.
local function take_over()
  if FROZEN or redis.call('TYPE', tombstone).ok ~= 'hash' then return end
  local old = redis.call('HGET', tombstone, '*')
  if not old then return end
  last, began, total, messages, max_messages, max_age, max_bytes, max_total = cmsgpack.unpack(old)
  max_topics, marked = tonumber(string.match(wanted, '%d+$')), last
  -- A mark of format 1 had the newest id that was lost, and not the time at which it was lost.
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

-- Read the state of the store, of the script's topic, if there is one, and the rules of retention, in one command.
local saved = redis.call('HMGET', state, '*', subject, '*rules', '*lists')
if not saved[1] then
  take_over()
  if last then saved = redis.call('HMGET', state, '*', subject, '*rules', '*lists') end
end
if saved[1] then
  local is_packed
  is_packed, format, last, began, total, messages, max_messages, max_age, max_bytes, max_total, max_topics, marked = pcall(cmsgpack.unpack, saved[1])
  if not is_packed then return redis.error_reply('FORMAT the field * of ' .. state .. ' cannot be read') end
  if format ~= FORMAT then return redis.error_reply('FORMAT the store has format ' .. tostring(format) .. ', and this version knows format ' .. FORMAT) end
end
-- How many bytes the lists of subjects take.
local listed = tonumber(saved[4] or '') or 0
local known_replication, process, was_durable, boundaries, forgotten

local function is_id(number) return type(number) == 'number' and number >= 0 and number <= MAX_ID end

-- True if these are boundaries that this program has written. A store always has at least one.
local function are_boundaries(found)
  if type(found) ~= 'table' or not found[1] then return false end
  for _, one in ipairs(found) do
    if type(one) ~= 'table' or not (is_id(one[1]) and is_id(one[2]) and type(one[3]) == 'string') then return false end
  end
  return true
end

-- Reads the rest of the state, which only a few scripts need. False if another program has removed or changed it.
local function learn()
  if known_replication then return true end
  local more = redis.call('HMGET', state, '*life', '*process', '*durable', '*boundaries', '*forgotten')
  known_replication, process, was_durable = more[1], more[2], more[3] == '1'
  local is_packed, found = pcall(cmsgpack.unpack, more[4] or '')
  boundaries, forgotten = is_packed and are_boundaries(found) and found or {}, tonumber(more[5])
  return boundaries[1] ~= nil and is_id(forgotten)
end

-- The same in a script that did not look. The next script looks, and then the store begins anew.
local function must_learn()
  if not learn() then error('the fields *boundaries and *forgotten of ' .. state .. ' cannot be read') end
end

-- Sets the limits of retention. Those of the replica that started last hold for all replicas.
local function keep(text)
  local numbers = {}
  for number in string.gmatch(text, '%d+') do numbers[#numbers + 1] = tonumber(number) end
  max_messages, max_age, max_bytes, max_total, max_topics = unpack(numbers)
end

local function kept() return string.format('%d %d %d %d %d', max_messages, max_age, max_bytes, max_total, max_topics) end

-- Each of these keys may be deleted or evicted alone, and is useless without the others.
local is_whole = last and redis.call('EXISTS', index, names, order) == 3
if is_whole and (looks or known > last) then is_whole = learn() end
-- If the lists are gone, readers must hear of it, as of lost messages.
local has_lists = listed == 0 or redis.call('EXISTS', lists) == 1
local is_sound = is_whole and known <= last and has_lists
-- Asking which primary this is takes too long for every script, so replicas ask for it about once a second.
local info = (looks or not is_sound) and redis.call('INFO', 'replication')
if info then
  learn()
  -- A copy may be promoted, and lack messages that this primary has acknowledged.
  if not string.find(info, 'connected_slaves:0', 1, true) then durable = false end
end
-- A primary takes another replication id when its first copy connects, and when its last copy has been away
-- for long. It has lost nothing if it is the same process and was never promoted: then the second id is all
-- zeros.
local replication_id = info and string.match(info, 'master_replid:(%w+)')
local server, is_same_process
if info and not (is_sound and process and replication_id == known_replication) then
  server = redis.call('INFO', 'server')
  is_same_process = process and string.find(server, 'run_id:' .. process, 1, true)
    and string.find(info, 'role:master', 1, true)
    and string.find(info, 'master_replid2:' .. string.rep('0', 40), 1, true)
end
if not is_sound or (info and replication_id ~= known_replication and not is_same_process) then
  local is_promoted = known_replication and string.find(info, 'master_replid2:' .. known_replication, 1, true)
  if FROZEN then return redis.error_reply('FROZEN a generation of the store cannot begin') end
  if not (is_sound and was_durable and not is_promoted) then
    -- A promoted copy was already running when the newest message was stored. A process that started later is
    -- a restart.
    local uptime = tonumber(string.match(server, 'uptime_in_seconds:(%d+)'))
    local reason = (last and is_promoted and now - (uptime + 1) * 1000000 <= last) and 'failover' or 'restarted'
    local inherited = is_whole and last or 0
    if string.format('%d', 9007199254740991) ~= '9007199254740991' then
      return redis.error_reply('ERR ids need a Redis built for 64 bits')
    end
    -- No new id may come before an old one.
    local top, chain = math.max(now, last or 0, known), last or 0
    if not is_whole then
      if redis.call('EXISTS', order) == 1 then
        local about = redis.call('XINFO', 'STREAM', order)
        for at = 1, #about, 2 do
          local newest = about[at] == 'last-generated-id' and tonumber(string.match(about[at + 1], '%d+'))
          if newest and newest < MAX_ID then top = math.max(top, newest) end
        end
      end
      redis.call('UNLINK', index, names, order, state, due, lists)
      redis.call('SET', tombstone, 'format 2')
      total, messages, marked, forgotten, boundaries, saved[2], saved[3] = 0, 0, 0, nil, {}, nil, nil
      keep(wanted)
    end
    if not (is_whole and has_lists) then listed = 0 end
    last = top + SKEW
    began, forgotten = last, forgotten or last
    if not is_whole then
      redis.call('XADD', order, str(began) .. '-0', 'began', '')
      -- A member that is neither a topic nor a mark keeps the key in existence when it has no others.
      redis.call('ZADD', index, 0, '*')
      redis.call('ZADD', names, 0, '*')
    end
    boundaries[#boundaries + 1] = {began, inherited, reason}
    if #boundaries > MAX_BOUNDARIES then
      table.remove(boundaries, 1)
      -- The store does not know any more which messages came before this generation.
      boundaries[1][2] = 0
    end
    redis.call('HSET', state, '*', packed(), '*boundaries', cmsgpack.pack(boundaries), '*forgotten', str(forgotten), '*lists', str(listed))
    -- The feed may hold ids that are lost, and ids newer than the next ones.
    redis.call('UNLINK', feed)
    redis.call('XADD', feed, str(began) .. '-0', 'b', str(began) .. ' ' .. str(chain) .. ' 0 0\n')
  end
  known_replication, was_durable = replication_id, durable
  redis.call('HSET', state, '*life', known_replication, '*process', string.match(server, 'run_id:(%w+)'),
    '*durable', durable and 1 or 0)
elseif info and not FROZEN and (server or (was_durable and not durable)) then
  known_replication = replication_id
  redis.call('HSET', state, '*life', known_replication, '*durable', (was_durable and durable) and 1 or 0)
  if server then redis.call('HSET', state, '*process', string.match(server, 'run_id:(%w+)')) end
end

-- The rules of retention begin with a line that has the shortest and the longest of their ages, so that few scripts read
-- the others. 0 means that no rule has an age.
local shortest, longest = string.match(saved[3] or '', '^(%d+) (%d+)\n')
local has_rules, are_rules_read = longest ~= nil, longest ~= nil or saved[3] == ''

-- The rules in their order: messages, age, bytes, and a pattern of Lua for the topics. A limit of 0 is that of all topics.
local rules
local function known_rules()
  if rules then return rules end
  rules = {}
  for most, age, bytes, pattern in string.gmatch(saved[3] or '', '(%d+) (%d+) (%d+) ([^\n]+)') do
    rules[#rules + 1] = {tonumber(most), tonumber(age), tonumber(bytes), pattern}
  end
  return rules
end

-- The rule of a topic: the first one that matches it. A script asks for the same topics again and again.
local rule_of_topic = {}
local function rule_of(topic)
  if rule_of_topic[topic] ~= nil then return rule_of_topic[topic] end
  local found, name = false, string.match(topic, '^%$presence%.(.+)$') or topic
  for _, rule in ipairs(known_rules()) do
    local is_pattern, place = pcall(string.find, name, rule[4])
    if is_pattern and place then found = rule break end
    -- Another program has changed the rules. A replica tells them again once they are gone.
    if not is_pattern then
      are_rules_read = false
      if not FROZEN then redis.call('HDEL', state, '*rules') end
    end
  end
  rule_of_topic[topic] = found
  return found
end

-- The limits of a topic: messages, age and bytes.
local function limits_of(topic)
  local rule = has_rules and rule_of(topic)
  if not rule then return max_messages, max_age, max_bytes end
  local function or_all(own, all) return own > 0 and own or all end
  return or_all(rule[1], max_messages), or_all(rule[2], max_age), or_all(rule[3], max_bytes)
end

-- Messages of a topic with ids below this have expired.
local function expired_of(topic)
  local _, age = limits_of(topic)
  return now - age
end

-- Messages with ids below this have expired in every topic.
local all_expired = now - max_age
-- Messages with ids from this on have expired in no topic.
local any_expired = now - max_age
if has_rules then
  all_expired = math.min(all_expired, now - tonumber(longest))
  if tonumber(shortest) > 0 then any_expired = math.max(any_expired, now - tonumber(shortest)) end
end

-- The newest id and the bytes of a topic, if the index knows it. Another program may have removed or changed them: then
-- the index still has the id, and the bytes count as none.
local function counts(topic, text)
  local is_packed, newest, bytes = pcall(cmsgpack.unpack, text or '')
  if is_packed and type(newest) == 'number' and type(bytes) == 'number' then return newest, bytes end
  local score = redis.call('ZSCORE', index, topic)
  if score then return math.min(tonumber(score), last), 0 end
end
local subject_newest, subject_bytes
if subject ~= '' then subject_newest, subject_bytes = counts(subject, saved[2]) end

local function facts()
  must_learn()
  local told = {}
  for at, boundary in ipairs(boundaries) do told[at] = {str(boundary[1]), str(boundary[2]), boundary[3]} end
  return {str(last), str(began), str(forgotten), kept(), told, str(marked), FROZEN and 1 or 0, are_rules_read and 1 or 0}
end

-- The beginning of every feed entry that has an id of its own: the generation, and the id before it. A
-- replica has missed an entry if this is not the last id that it has read.
local function linked(chain) return str(began) .. ' ' .. str(chain) end

-- The rest of an entry, behind its numbers.
local function carrying(topic, head, data) return ' ' .. #topic .. ' ' .. #head .. '\n' .. topic .. head .. data end

-- Appends to a stream. Another program may have appended an entry with an id ahead of ours. Then Redis takes no entry of
-- ours any more, so this removes the stream and returns false.
local function append(key, ...)
  local added = redis.pcall('XADD', key, ...)
  if type(added) == 'string' then return true end
  -- After the last possible id Redis says that the stream is exhausted.
  local is_ahead = string.find(added.err, 'equal or smaller', 1, true) or string.find(added.err, 'exhausted', 1, true)
  if not is_ahead then error(added) end
  redis.call('UNLINK', key)
  return false
end

-- Runs a command on the stream of a topic. If another program has put something else there, the topic has no stream.
local function on_stream(topic, command, ...)
  local answer = redis.pcall(command, stream(topic), ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if not string.find(answer.err, 'WRONGTYPE', 1, true) then error(answer) end
end

-- Some entries of the stream of a topic. Entries ahead of the store are not ours.
local function entries(topic, from, count) return on_stream(topic, 'XRANGE', from, str(last), 'COUNT', count) or {} end

local function number_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- The id before a message in its topic, as text; nil if the entry does not have the id and the first field of a message.
local function prev_of(entry)
  local text = string.find(entry[1], '-0$') and entry[2][1] == 'p' and string.match(entry[2][2], '^%d+')
  if text and tonumber(text) < number_of(entry) then return text end
end

-- The bytes of the payload of a message, if the entry has them.
local function size(entry) return #(entry[2][6] or '') end

-- The id in a score of the index.
local function scored(score) return score and str(math.min(math.abs(tonumber(score)), last)) or '' end

-- The facts about a topic, from its scores and the oldest entry that a reader has not been given: the id of the entry,
-- and the id before it.
-- An entry that is not ours may be a message that this version cannot read. Its own id comes in place of the id before
-- it, so readers get a gap up to it.
local function retained(scores, first)
  local id = first and str(number_of(first)) or ''
  return {scored(scores[1]), scored(scores[2]), id, first and prev_of(first) or id}
end

-- Appends an entry to the feed. The feed holds fewer entries if they are large. One field costs least.
local function tell(id, kind, entry)
  local most = #entry < 1024 and FEED_ENTRIES or math.max(FEED_MIN_ENTRIES, math.floor(FEED_BYTES / #entry))
  if not append(feed, 'MAXLEN', '~', most, id, kind, entry) then redis.call('XADD', feed, id, kind, entry) end
end

-- Makes sure that the feed ends with the newest id, and returns its end. A script that failed after its first
-- write has added no entry, so a step shows that something was left out.
local function close_feed()
  local newest = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
  local place = newest and newest[1]
  -- An entry ahead of the store is not ours, and hides what comes after it.
  if FROZEN then return place or '0-0' end
  if not place or number_of(newest) ~= last then
    local chain = last
    last = math.max(now, last + 1)
    place = str(last) .. '-0'
    redis.call('HSET', state, '*', packed())
    tell(place, 'b', linked(chain) .. carrying('', '', ''))
  end
  return place
end

-- The cost of a stored message. An entry that another program wrote costs nothing.
local function cost_of(entry) return prev_of(entry) and tonumber(string.match(entry[2][2], ' (%d+)$')) or 0 end

-- Removes one message and marks its topic. Marks lie below zero, apart from the topics. Every message that
-- leaves the order leaves a mark, even if its stream had disappeared. Returns true if the message was still
-- there. The caller writes the totals once it is done.
local function evict(topic, id)
  local entry = (on_stream(topic, 'XRANGE', id, id) or {})[1]
  redis.call('XDEL', order, id)
  redis.call('ZADD', index, mark(), ',' .. topic)
  local newest, bytes = counts(topic, redis.call('HGET', state, topic))
  local cost = 0
  if entry then
    redis.call('XDEL', stream(topic), id)
    cost = cost_of(entry)
    messages = messages - (cost > 0 and 1 or 0)
  end
  if newest then
    -- A stream that has disappeared is not counted any more.
    if not entry and redis.call('EXISTS', stream(topic)) == 0 then cost = bytes end
    if cost > 0 then redis.call('HSET', state, topic, cmsgpack.pack(newest, math.max(0, bytes - cost))) end
  end
  total = total - cost
  -- The store cannot tell how many messages a lost stream had. But each message costs something, so no cost
  -- means no messages.
  if total == 0 then messages = 0 end
  return entry ~= nil
end

-- Notes when a topic is due again, or that it has nothing which may expire.
local function note_due(topic, oldest, age)
  if oldest then redis.call('ZADD', due, str(number_of(oldest) + age), topic) else redis.call('ZREM', due, topic) end
end

-- Looks when the next `count` topics are due, in the order of their names. The member behind all others says how far it has
-- come: `*` and a name, or `*` alone at the end. Without that member it begins anew. True if there may be more.
local function walk(count)
  local place = redis.call('ZRANGE', due, '+inf', '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1]
  if place == '*' then return false end
  local from = place and '(' .. string.sub(place, 2) or '-'
  local found = redis.call('ZRANGE', names, from, '+', 'BYLEX', 'LIMIT', 0, count)
  for _, topic in ipairs(found) do
    local _, age = limits_of(topic)
    note_due(topic, entries(topic, '-', 1)[1], age)
  end
  -- Without the right scores of all names Redis may find the same ones again.
  local reached = '*' .. (found[count] or '')
  if reached == place then reached = '*' end
  if place then redis.call('ZREM', due, place) end
  redis.call('ZADD', due, '+inf', reached)
  return reached ~= '*'
end

-- Removes expired messages of the topics that are due, and looks at or removes `budget` of them at most. Before that it
-- looks when `walks` other topics are due. True if there may be more.
local function sweep_due(budget, walks)
  if not has_rules then return false end
  local is_walking, is_changed = walk(walks), false
  while budget > 0 do
    local topic = redis.call('ZRANGE', due, '-inf', '(' .. str(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
    if not topic then break end
    local _, age = limits_of(topic)
    local oldest, looked = entries(topic, '-', 1)[1], 1
    while oldest and number_of(oldest) < now - age and budget > 0 do
      evict(topic, oldest[1])
      oldest, budget, looked, is_changed = entries(topic, '-', 1)[1], budget - 1, 0, true
    end
    budget = budget - looked
    -- A topic that was trimmed is due later. One that has lost everything is due no more.
    note_due(topic, oldest, age)
  end
  if is_changed then redis.call('HSET', state, '*', packed()) end
  return is_walking or budget <= 0
end

-- Removes a batch of the messages that have expired: by the longest age of all, and by that of their own topics, after it
-- has looked when `walks` topics are due. Returns for each of both if there may be more. Scripts that read give no `walks`:
-- they pass over what has expired in its own topic.
local function sweep(budget, walks)
  local old = redis.call('XRANGE', order, '-', '(' .. str(all_expired) .. '-0', 'COUNT', FROZEN and 1 or budget)
  if FROZEN then return #old > 0 end
  for _, entry in ipairs(old) do
    if entry[2][1] == 't' then evict(entry[2][2], entry[1]) else redis.call('XDEL', order, entry[1]) end
  end
  if old[1] then redis.call('HSET', state, '*', packed()) end
  return #old == budget, walks and sweep_due(budget - #old, walks)
end
