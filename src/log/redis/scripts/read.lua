-- The retained messages of some topics, each after a point of its own, in the order of ids. The arguments:
-- the largest number of messages, then each topic and its point.
local limit, TOPICS = tonumber(ARGV[7]), 8
local is_alone = #ARGV == TOPICS + 1
sweep(READ_SWEEP)

local known_topics, heads = {}, {}
for at = TOPICS, #ARGV, 2 do
  local topic, given = ARGV[at], tonumber(ARGV[at + 1])
  local scores = redis.call('ZMSCORE', index, topic, ' ' .. topic)
  local newest, batch = tonumber(scores[1]), {}
  if newest and newest > given then
    batch = entries(topic, str(math.max(given + 1, expired_of(topic))), is_alone and 16 or 1)
  end
  local first = batch[1]
  known_topics[#known_topics + 1] = retained(scores, first)
  if first then heads[#heads + 1] = {topic = topic, number = #known_topics, batch = batch, at = 1} end
end

-- Sorted with the oldest last, so that it is found and removed at once.
local function id_of(head) return number_of(head.batch[head.at]) end
table.sort(heads, function(one, other) return id_of(one) > id_of(other) end)
local function put(head)
  local low, high = 1, #heads + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if id_of(heads[middle]) > id_of(head) then low = middle + 1 else high = middle end
  end
  table.insert(heads, low, head)
end

local found, reached, stop, bytes = {}, nil, nil, PAGE_BYTES
while #heads > 0 do
  local head = table.remove(heads)
  local entry = head.batch[head.at]
  local id = number_of(entry)
  if #found >= limit or (bytes <= 0 and #found > 0) then stop = reached break end
  found[#found + 1], reached = {head.number, entry}, str(id)
  bytes = bytes - size(entry)
  head.at = head.at + 1
  if not head.batch[head.at] then
    -- Fetch only as many as are needed, if the next messages are as large as these.
    local step = is_alone and math.floor(bytes / ((PAGE_BYTES - bytes) / #found + 1)) or 16
    step = math.max(1, math.min(step, limit - #found + 1))
    head.batch = entries(head.topic, '(' .. entry[1], step)
    head.at = 1
  end
  if head.batch[1] then put(head) end
end
return {facts(), stop or str(last), known_topics, found}
