-- Tells of a message that is not stored. Who hears of it on several channels knows it by the time.
local topic, head, data = ARGV[5], ARGV[6], ARGV[7]
announce(topic, function()
  return string.format('e %.0f %.0f %.0f %d %d\n', began, now, last, #topic, #head) .. topic .. head .. data
end)
return facts()
