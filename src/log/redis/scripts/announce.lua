-- Tells of a message that is not stored.
local topic, head, data = ARGV[6], ARGV[7], ARGV[8]
close_feed()
tell(str(last) .. '-*', 'e', carrying(topic, head, data))
return facts()
