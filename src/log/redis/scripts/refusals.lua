-- A page of the refusals of tokens that are in force, in the order of their ends: each subject, its second and its end as
-- text, and the end. Several may end at one moment, so the next page begins with the end of the last one here.
local from, limit = math.max(tonumber(ARGV[7]), math.floor(now / 1000)), tonumber(ARGV[8])
local page, found = redis.call('ZRANGE', refused, str(from), '+inf', 'BYSCORE', 'LIMIT', 0, limit, 'WITHSCORES'), {}
for at = 1, #page, 2 do
  found[#found + 1] = {page[at], redis.call('GET', refused .. ':' .. page[at]) or '', page[at + 1]}
end
return found
