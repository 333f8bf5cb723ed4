-- Tells the replicas a message that is not stored.
local head, data = ARGV[7], ARGV[8]
close_feed()
tell(str(last) .. '-*', 'e', carrying(subject, head, data))
return facts()
