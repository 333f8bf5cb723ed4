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

-- The part of a total that this client may use, together with all others.
local function open_to(payer, all) return payer == '' and all or all - math.floor(all / PART_WITHOUT_PAYER) end

-- A client may make as many topics as it leaves free. Those that it made count for as long as the index remembers a topic.
-- That takes more terms while an age of retention is longer. The term itself never changes, because it names the keys.
local term = math.floor(now / INDEX_AGE)
local terms = math.min(math.ceil((now - all_expired + AFTER_EXPIRY) / INDEX_AGE) + 1, 64)
local function is_room_for_topic(payer)
  local made = payer ~= '' and counted('made:', term, terms, payer) or 0
  return redis.call('ZCOUNT', index, '(0', '+inf') + made < open_to(payer, max_topics)
end
local function note_made(payer) count('made:', term, terms, INDEX_AGE / 1000, payer) end

-- Stores a message in a topic and adds it to the feed: of the topic the newest id and the bytes are given, if the index
-- knows it. `noted` is called once the message is in the order. Returns the id.
local function store(topic, newest, known_bytes, head, data, event_bytes, noted)
  local id = math.max(now, last + 1)
  local into, ident, cost = stream(topic), str(id), MESSAGE_OVERHEAD + #data + event_bytes
  local prev = newest
  if not newest then
    must_learn()
    prev = forgotten
    -- The index does not know the topic, so any stream of it was left behind by an earlier store.
    redis.call('DEL', into)
    redis.call('ZADD', names, 0, topic)
  end

  local length, bytes = on_stream(topic, 'XLEN'), known_bytes or 0
  if not length then
    redis.call('DEL', into)
    length = 0
  end
  local is_first = length == 0
  if is_first then
    -- The messages that were counted for this topic are not there any more.
    total, bytes = total - bytes, 0
  end
  length, bytes, total, messages = length + 1, bytes + cost, total + cost, messages + 1

  -- Trimming costs more than keeping, so a few messages too many may pile up, and all are trimmed at once.
  local most, age, most_bytes = limits_of(topic)
  local is_full = length > most + math.floor(most / SLACK) or bytes > most_bytes + most_bytes / SLACK
  local gone, old, budget = nil, {}, 100
  while is_full do
    local batch = redis.call('XRANGE', into, gone and '(' .. gone or '-', '+', 'COUNT', 16)
    is_full = #batch > 0
    for _, oldest in ipairs(batch) do
      local freed = cost_of(oldest)
      gone = oldest[1]
      old[#old + 1] = gone
      length, bytes, total, messages = length - 1, bytes - freed, total - freed, messages - (freed > 0 and 1 or 0)
      is_full = (length > most or bytes > most_bytes) and length > 1 and #old < budget
      if not is_full then break end
    end
  end
  local entry, chain, link = ident .. '-0', last, str(prev)
  last = id
  local mark_at = gone and mark()
  -- Write this first: if the script fails later, the next entry of the feed shows it.
  redis.call('HSET', state, '*', packed(), topic, cmsgpack.pack(id, bytes))
  if not is_first and not append(into, 'MAXLEN', '=', length, entry, 'p', link .. ' ' .. cost, 'h', head, 'd', data) then
    is_first = true
    total, messages, length, bytes = total - bytes + cost, messages - length + 1, 1, cost
    redis.call('HSET', state, '*', packed(), topic, cmsgpack.pack(id, bytes))
  end
  if is_first then
    -- Redis allocates 4 KiB for each new stream, and a copy of the stream has only the bytes that it needs.
    redis.call('DEL', base .. 'new')
    redis.call('XADD', base .. 'new', entry, 'p', link .. ' ' .. cost, 'h', head, 'd', data)
    redis.call('COPY', base .. 'new', into, 'REPLACE')
    redis.call('DEL', base .. 'new')
    if has_rules then redis.call('ZADD', due, str(id + age), topic) end
  end
  -- A store without its order begins anew at the next script.
  if not append(order, entry, 't', topic) then error({err = 'ERR the order was ahead of the store'}) end
  if gone then
    redis.call('XDEL', order, unpack(old))
    gone, budget = string.match(gone, '^%d+'), budget - #old
    redis.call('ZADD', index, ident, topic, mark_at, ',' .. topic)
  else
    redis.call('ZADD', index, ident, topic)
  end
  if noted then noted(ident) end

  -- Topics and marks count too, but leave at least half of the bytes to messages. If this topic holds more than
  -- an even share, its own oldest message goes first, otherwise the oldest message of all.
  local victims = {}
  -- The lists of subjects may take all of it.
  local keys_cost = redis.call('ZCARD', index) * TOPIC_COST + (has_rules and redis.call('ZCARD', due) * DUE_COST or 0)
  local room = math.max(math.max(max_total - keys_cost, max_total / 2) - listed, 0)
  local is_over = total > room
  if is_over and budget > 0 then
    -- Expired messages go before others.
    sweep(budget, 20)
    length, bytes = on_stream(topic, 'XLEN') or 1, select(2, counts(topic, redis.call('HGET', state, topic))) or cost
  end
  local share = is_over and max_total / redis.call('ZCOUNT', index, '(0', '+inf')
  while budget > 0 and total > room do
    local before, own = total, bytes > share and length > 1 and entries(topic, '-', 1)[1]
    local oldest = own and {own[1], {'t', topic}} or redis.call('XRANGE', order, '-', '+', 'COUNT', 1)[1]
    if not oldest or oldest[1] == entry then
      -- The rest of the count was for streams that have disappeared.
      total, messages = bytes, length
      break
    end
    if oldest[2][1] == 't' then
      local victim = oldest[2][2]
      if evict(victim, oldest[1]) then victims[victim] = string.match(oldest[1], '^%d+') end
      if victim == topic then length, bytes = length - 1, bytes - (before - total) end
    else
      redis.call('XDEL', order, oldest[1])
    end
    budget = budget - 1
  end
  if is_over then redis.call('HSET', state, '*', packed()) end
  local is_small = #data <= FEED_MAX_BODY
  tell(entry, 'm', linked(chain) .. ' ' .. link .. ' ' .. (gone or '0')
    .. carrying(topic, is_small and head or '', is_small and data or ''))
  for victim, upto in pairs(victims) do tell(ident .. '-*', 'g', upto .. carrying(victim, '', '')) end
  -- Each sweep removes more messages than were stored since the last one, so expired messages never pile up.
  if id % 16 == 0 then sweep(32, 32) end
  return ident
end
