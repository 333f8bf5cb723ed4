-- Writes what is already there. A copy that confirms this write has everything that was stored before.
redis.call('HSET', state, '*', packed())
return facts()
