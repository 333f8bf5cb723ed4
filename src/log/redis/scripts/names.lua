-- The topics whose names begin with some texts, or false if there are more than `limit`.
local limit, TEXTS = tonumber(ARGV[7]), 8
local found = {}
for at = TEXTS, #ARGV do
  local from, to = '[' .. ARGV[at], '(' .. ARGV[at] .. '\255'
  if #found + redis.call('ZLEXCOUNT', names, from, to) > limit then return {facts(), false} end
  for _, name in ipairs(redis.call('ZRANGE', names, from, to, 'BYLEX')) do found[#found + 1] = name end
end
return {facts(), found}
