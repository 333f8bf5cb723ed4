-- The newest retained messages of a topic below an id, newest first, as many as fit. With them come the facts about the
-- topic, the oldest entry that is not below the id, and 1 if older messages are retained. The arguments: the id, and the
-- largest number of messages.
local before, room = tonumber(ARGV[7]), tonumber(ARGV[8])
sweep(READ_SWEEP)
local scores = redis.call('ZMSCORE', index, subject, ' ' .. subject)
-- If the index does not know the topic, an earlier store has left its stream behind.
if not scores[1] then return {facts(), retained(scores), 0, {}} end
local behind = retained(scores, entries(subject, str(before), 1)[1])
local expired, looked = expired_of(subject), 0
local found, bytes, upto, step = {}, PAGE_BYTES, str(math.min(math.max(before - 1, 0), last)), math.min(room + 1, 2)
while true do
  local batch = on_stream(subject, 'XREVRANGE', upto, str(expired), 'COUNT', step) or {}
  for _, entry in ipairs(batch) do
    -- No message has another id than this, so other entries are passed over.
    if string.find(entry[1], '-0$') then
      if #found == room or bytes <= 0 then return {facts(), behind, 1, found} end
      found[#found + 1] = entry
      bytes = bytes - size(entry)
    end
  end
  looked = looked + #batch
  -- After too many of these the rest counts as lost.
  if #batch < step or looked > SCAN_BATCH then return {facts(), behind, 0, found} end
  upto = '(' .. batch[#batch][1]
  -- Fetch only as many as fit, if the next messages are as large as these, and one more.
  -- They may be larger, so each batch is at most twice the last one.
  local fit = math.floor(bytes / ((PAGE_BYTES - bytes) / math.max(#found, 1) + 1))
  step = math.max(1, math.min(room - #found + 1, fit + 1, 2 * step, 16))
end
