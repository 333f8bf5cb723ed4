-- A page of the refusals of tokens that are in force, in the order in which they will be over: each subject, its second and
-- until when as text, and until when. Several may last until one moment, so the next page begins with that of the last one
-- here. One that cannot be read has no text.
local from, limit = math.max(tonumber(ARGV[7]), math.floor(now / 1000)), tonumber(ARGV[8])
local page, found = redis.call('ZRANGE', refused, str(from), '+inf', 'BYSCORE', 'LIMIT', 0, limit, 'WITHSCORES'), {}
for at = 1, #page, 2 do
  local text = redis.pcall('GET', refused .. ':' .. page[at])
  found[#found + 1] = {page[at], type(text) == 'string' and text or '', page[at + 1]}
end
return found
