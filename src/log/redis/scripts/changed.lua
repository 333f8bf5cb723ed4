-- Some topics with their newest ids.
local from, limit = ARGV[7], ARGV[8]
return {facts(), redis.call('ZRANGE', index, from, '+inf', 'BYSCORE', 'LIMIT', 0, limit, 'WITHSCORES')}
