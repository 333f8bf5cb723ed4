-- The ids and topics of all messages after an id.
local after = tonumber(ARGV[7])
local is_unswept = sweep(READ_SWEEP)
-- An expired message leaves its mark when it is swept. Until all are swept, the lost messages are unknown.
if is_unswept and after < expired then return {facts(), '0', 2, {}} end
local entries = redis.call('XRANGE', order, str(math.max(after + 1, expired)), '+', 'COUNT', SCAN_BATCH)
local names = {}
for _, entry in ipairs(entries) do
  if entry[2][1] == 't' then
    names[#names + 1] = (string.gsub(entry[1], '-0$', ''))
    names[#names + 1] = entry[2][2]
  end
end
local is_full = #entries == SCAN_BATCH
local stop = is_full and (string.gsub(entries[#entries][1], '-0$', '')) or str(last)
return {facts(), stop, is_full and 1 or 0, names}
