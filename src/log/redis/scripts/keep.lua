-- Sets the limits of retention, and returns the limits from before.
local before = kept()
keep(wanted)
redis.call('HSET', state, '*', packed())
return before
