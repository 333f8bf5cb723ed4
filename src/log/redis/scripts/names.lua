-- The topics whose names begin with some texts, or false if there are more than `limit` or if they cannot be found.
local limit, TEXTS = tonumber(ARGV[7]), 8
-- Redis finds members by name only if all have the same score. Another program may have given one another score.
local function is_zero(at) return redis.call('ZRANGE', names, at, at, 'WITHSCORES')[2] == '0' end
if not (is_zero(0) and is_zero(-1)) then return {facts(), false} end
local found = {}
for at = TEXTS, #ARGV do
  local from, to = '[' .. ARGV[at], '(' .. ARGV[at] .. '\255'
  if #found + redis.call('ZLEXCOUNT', names, from, to) > limit then return {facts(), false} end
  for _, name in ipairs(redis.call('ZRANGE', names, from, to, 'BYLEX')) do found[#found + 1] = name end
end
return {facts(), found}
