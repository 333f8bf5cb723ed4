-- Says how much is kept, and returns what was said before.
redis.call('HSET', sizes, '*keep', wanted)
return keep
