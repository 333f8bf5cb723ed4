-- The newest retained messages of a topic up to an id, newest first: they fill a tail backwards. Before them
-- comes the newest id that the topic had there. If the newest of the messages has another id, messages were
-- lost.
local upto, room, given = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
if not subject_newest then return {facts(), '', {}} end
sweep(READ_SWEEP)
local after = entries(subject, str(upto + 1), 1)[1]
-- An entry that is not ours does not say what came before it.
if after and not prev_of(after) then return {facts(), upto, {}} end
local newest = after and prev_of(after) or str(subject_newest)
-- If the stream has an entry behind that message, one of the entries is not ours, and nothing is known.
local at = (on_stream(subject, 'XREVRANGE', upto, '-', 'COUNT', 1) or {})[1]
if at and number_of(at) > tonumber(newest) then return {facts(), upto, {}} end
-- A reader that has been given that message needs nothing.
if tonumber(newest) <= given then return {facts(), newest, {}} end
local found, taken, step, expired = {}, 0, 16, expired_of(subject)
while room > 0 do
  local batch = on_stream(subject, 'XREVRANGE', upto, str(expired), 'COUNT', math.min(step, room)) or {}
  for _, entry in ipairs(batch) do
    taken = taken + size(entry)
    if taken > FILL_BYTES then return {facts(), newest, found} end
    found[#found + 1] = entry
  end
  if #batch < math.min(step, room) then break end
  room = room - #batch
  upto = '(' .. batch[#batch][1]
  -- Fetch only as many as fit, if the next messages are as large as these.
  step = math.max(1, math.floor((FILL_BYTES - taken) / (taken / #found + 1)))
end
return {facts(), newest, found}
