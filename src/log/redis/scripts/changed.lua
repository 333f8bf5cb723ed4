-- What has changed in the index since an id: topics, and marks of what is gone.
return {facts(), redis.call('ZRANGE', index, '(' .. ARGV[6], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[7], 'WITHSCORES')}
