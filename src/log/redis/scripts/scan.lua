-- What was published to any topic after an id, by name only.
local after = tonumber(ARGV[7])
local is_unswept = sweep(READ_SWEEP)
-- What has expired leaves its mark when it is swept: until all of it is, nobody knows what is gone.
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
