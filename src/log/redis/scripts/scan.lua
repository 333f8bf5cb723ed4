-- The ids and topics of all messages after an id.
local after = tonumber(ARGV[7])
local is_unswept = sweep(READ_SWEEP) and after < all_expired
local places = redis.call('XRANGE', order, str(math.max(after + 1, all_expired)), str(last), 'COUNT', SCAN_BATCH)
local names, removed = {}, 0
for _, entry in ipairs(places) do
  local id, topic = number_of(entry), entry[2][2]
  local is_ours = entry[2][1] == 't' and string.find(entry[1], '-0$')
  -- A message that has expired in its own topic goes now, so that it leaves its mark.
  if is_ours and id < any_expired and id < expired_of(topic) then
    if FROZEN or removed == READ_SWEEP then is_unswept = true break end
    evict(topic, entry[1])
    removed = removed + 1
  elseif is_ours then
    names[#names + 1] = str(id)
    names[#names + 1] = topic
  end
end
if removed > 0 then redis.call('HSET', state, '*', packed()) end
-- An expired message leaves its mark when it is removed. Until all are removed, the lost messages are unknown.
if FROZEN and is_unswept then return redis.error_reply('FROZEN expired messages cannot be removed') end
if is_unswept then return {facts(), '0', 2, {}} end
local is_full = #places == SCAN_BATCH
local stop = str(is_full and number_of(places[#places]) or last)
return {facts(), stop, is_full and 1 or 0, names}
