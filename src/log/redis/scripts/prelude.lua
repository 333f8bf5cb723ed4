-- What every script begins with: which life of which primary this is, and what it vouches for.
-- Runs as one step with what follows. Numbers are ids: doubles hold them exactly, printed they need a format.
local base, known, durable, wanted = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local index, order, sizes = base .. 'index', base .. 'order', base .. 'sizes'

-- The clocks of two primaries, and of those who publish, may differ by this much.
local SKEW = 10000000
-- What a message costs beside its payload and its event.
local OVERHEAD = 200

-- Integers are printed faster, where the machine's are wide enough.
local NUMBER = string.format('%d', 9007199254740991) == '9007199254740991' and '%d' or '%.0f'
local function str(id) return string.format(NUMBER, id) end
local function stream(topic) return base .. 'topic:' .. topic end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local info = redis.call('INFO', 'replication')
local replid = string.match(info, 'master_replid:(%w+)')
-- A copy may be promoted, and lack what was acknowledged here.
if string.match(info, 'connected_slaves:(%d+)') ~= '0' then durable = false end

-- The topic that a script is about, if any, rides along.
local subject = ARGV[5]
local marks = redis.call('ZMSCORE', index, '*last', '*began', '*life ' .. replid, subject)
local last, began, life, subject_newest = tonumber(marks[1]), tonumber(marks[2]), tonumber(marks[3]), tonumber(marks[4])
local inherited, previous, forgotten, reason

-- What few scripts need is asked for by those.
local function learn()
  if forgotten then return end
  local more = redis.call('ZMSCORE', index, '*inherited', '*previous', '*forgotten', '*reason')
  inherited, previous = tonumber(more[1]) or 0, tonumber(more[2]) or 0
  forgotten, reason = tonumber(more[3]), tonumber(more[4])
end

local has_order = redis.call('EXISTS', order) == 1

if not (last and began and life and has_order and known <= last) then
  learn()
  local before = redis.call('ZRANGE', index, -2, -1, 'BYSCORE', 'WITHSCORES')
  local whole = last and began and has_order and known <= last
  local was = before[1] and string.sub(before[1], 7)
  local is_promoted = was and string.find(info, 'master_replid2:' .. was, 1, true)
  if not (whole and was and before[2] == '-2' and not is_promoted) then
    -- A copy was alive when the newest message came; who came to life after it was started again.
    local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
    reason = (last and is_promoted and now - (uptime + 1) * 1000000 <= last) and -12 or -11
    inherited, previous = has_order and last or 0, began or 0
    -- No id may come before one that the order has had, also where the index is lost.
    local top = 0
    if has_order then
      local about = redis.call('XINFO', 'STREAM', order)
      for at = 1, #about, 2 do
        if about[at] == 'last-generated-id' then top = tonumber(string.match(about[at + 1], '%d+')) end
      end
    end
    last = math.max(now, last or 0, known, top) + SKEW
    began, forgotten = last, forgotten or last
    if not has_order then redis.call('XADD', order, str(began) .. '-0', 'began', '') end
    redis.call('ZADD', index, str(last), '*last', str(began), '*began', str(inherited), '*inherited',
      str(forgotten), '*forgotten', reason, '*reason', str(previous), '*previous')
  end
  for at = 1, #before, 2 do redis.call('ZREM', index, before[at]) end
  life = durable and -2 or -1
  redis.call('ZADD', index, life, '*life ' .. replid)
elseif life == -2 and not durable then
  redis.call('ZADD', index, -1, '*life ' .. replid)
end

-- How much is kept: what the last one that was started says, for all of them.
local counts = redis.call('HMGET', sizes, '*keep', '*bytes', '*messages', subject)
local keep = counts[1]
if not keep then
  keep = wanted
  redis.call('HSET', sizes, '*keep', keep)
end
local max_messages, max_age, max_bytes, max_total = string.match(keep, '(%d+) (%d+) (%d+) (%d+)')
max_messages, max_age = tonumber(max_messages), tonumber(max_age)
max_bytes, max_total = tonumber(max_bytes), tonumber(max_total)
local total, messages = tonumber(counts[2]) or 0, tonumber(counts[3]) or 0
local expired = now - max_age

local function facts()
  learn()
  return {str(last), str(began), str(inherited), str(previous), str(forgotten), reason == -12 and 'failover' or 'restarted', keep}
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

-- Removes one message, and leaves its mark: marks lie below zero, apart from the topics. Returns what it cost, nothing if it was gone already.
local function evict(topic, id)
  local entry = redis.call('XRANGE', stream(topic), id, id)[1]
  redis.call('XDEL', order, id)
  if not entry then return nil end
  redis.call('XDEL', stream(topic), id)
  local cost = cost_of(entry)
  redis.call('HINCRBY', sizes, topic, -cost)
  redis.call('HINCRBY', sizes, '*bytes', -cost)
  redis.call('HINCRBY', sizes, '*messages', -1)
  redis.call('ZADD', index, 'LT', '-' .. string.gsub(id, '-0$', ''), ',' .. topic)
  return cost
end

-- Removes what has expired, a batch at a time. True if there may be more.
local function sweep(budget)
  local old = redis.call('XRANGE', order, '-', '(' .. str(expired) .. '-0', 'COUNT', budget)
  for _, entry in ipairs(old) do
    if entry[2][1] == 't' then evict(entry[2][2], entry[1]) else redis.call('XDEL', order, entry[1]) end
  end
  return #old == budget
end
