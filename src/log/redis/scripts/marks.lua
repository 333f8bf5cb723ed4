-- Some of the marks, oldest first. A mark that moves meanwhile moves ahead of the reader.
local from, limit = ARGV[7], ARGV[8]
return {facts(), redis.call('ZRANGE', index, from, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit, 'WITHSCORES')}
