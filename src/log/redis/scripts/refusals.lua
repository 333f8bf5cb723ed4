-- The refusals of tokens that are in force: each subject, and the second and the end of the refusal.
local found = {}
for _, owner in ipairs(redis.call('ZRANGE', refused, str(math.floor(now / 1000)), '+inf', 'BYSCORE')) do
  found[#found + 1] = {owner, redis.call('GET', refused .. ':' .. owner) or ''}
end
return found
