-- The ids and topics of all messages after an id.
local after = tonumber(ARGV[7])
local is_unswept = sweep(READ_SWEEP)
-- An expired message leaves its mark when it is swept. Until all are swept, the lost messages are unknown.
if FROZEN and is_unswept and after < expired then return redis.error_reply('FROZEN expired messages cannot be removed') end
if is_unswept and after < expired then return {facts(), '0', 2, {}} end
local places = redis.call('XRANGE', order, str(math.max(after + 1, expired)), str(last), 'COUNT', SCAN_BATCH)
local names = {}
for _, entry in ipairs(places) do
  if entry[2][1] == 't' and string.find(entry[1], '-0$') then
    names[#names + 1] = str(number_of(entry))
    names[#names + 1] = entry[2][2]
  end
end
local is_full = #places == SCAN_BATCH
local stop = str(is_full and number_of(places[#places]) or last)
return {facts(), stop, is_full and 1 or 0, names}
