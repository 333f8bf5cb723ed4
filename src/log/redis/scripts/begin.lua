-- For each topic, finds the message to begin with: the oldest since an id, or the nth newest up to a point of
-- the topic's own. Returns how many messages it passed, because one step passes only a few. The arguments:
-- the id, the count (negative: use the id), then each topic and its point.
local since, count, TOPICS = tonumber(ARGV[7]), tonumber(ARGV[8]), 9
sweep(READ_SWEEP)
local firsts = {}
for at = TOPICS, #ARGV, 2 do
  local topic, upto = ARGV[at], ARGV[at + 1] == '+' and str(last) or ARGV[at + 1]
  local newest, passed, expired = redis.call('ZSCORE', index, topic), 0, expired_of(topic)
  local first
  if newest and count < 0 then
    first = entries(topic, str(math.max(since, expired)), 1)[1]
  elseif newest then
    while passed < count do
      local batch = on_stream(topic, 'XREVRANGE', upto, str(expired), 'COUNT', math.min(count - passed, 64)) or {}
      if not batch[1] then break end
      first, passed = batch[#batch], passed + #batch
      upto = '(' .. first[1]
    end
  end
  -- A reader that begins at an entry that is not ours begins just before it.
  local id = first and number_of(first)
  local prev = first and prev_of(first) or id and str(id - 1)
  firsts[#firsts + 1] = {scored(newest), id and str(id) or '', prev or '', passed}
end
return {facts(), firsts}
