-- Forgets what is retained of a topic. Takes an id of its own, so that whoever missed it can see that it was.
local topic = ARGV[6]
local newest = subject_newest
if newest then
  last = math.max(now, last + 1)
  total, messages = total - subject_bytes, messages - redis.call('XLEN', stream(topic))
  redis.call('DEL', stream(topic))
  redis.call('HSET', state, '*', packed(), topic, cmsgpack.pack(newest, 0))
  redis.call('ZADD', index, str(-last), ' ' .. topic, str(-newest), ',' .. topic)
  announce(topic, function()
    return string.format('g %d %d %d %d\n', began, last, newest, #topic) .. topic
  end)
end
return facts()
