-- Forgets what is retained of a topic. Takes an id of its own, so that whoever missed it can see that it was.
local topic = ARGV[5]
local newest = subject_newest
if newest then
  local id = math.max(now, last + 1)
  local length = redis.call('XLEN', stream(topic))
  redis.call('DEL', stream(topic))
  redis.call('HSET', sizes, topic, '0', '*bytes', str(total - (tonumber(counts[4]) or 0)), '*messages', str(messages - length))
  redis.call('ZADD', index, str(id), '*last', str(-id), ' ' .. topic, str(-newest), ',' .. topic)
  announce(topic, function()
    return string.format('g %.0f %.0f %.0f %d\n', began, id, newest, #topic) .. topic
  end)
  last = id
end
return facts()
