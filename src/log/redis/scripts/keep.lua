-- Says how much is kept, and returns what was said before.
local before = kept()
keep(wanted)
redis.call('HSET', state, '*', packed())
return before
