-- Tells of a message that is not stored. Who hears of it on several channels knows it by the time.
local topic, head, data = ARGV[6], ARGV[7], ARGV[8]
announce(topic, function()
  return string.format('e %d %d %d %d %d\n', began, now, last, #topic, #head) .. topic .. head .. data
end)
return facts()
