-- Some topics by their newest ids.
return {facts(), redis.call('ZRANGE', index, ARGV[7], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[8], 'WITHSCORES')}
