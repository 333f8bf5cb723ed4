-- Some of the marks of what is gone, those of the smallest ids first: a mark that moves meanwhile moves ahead of who reads.
return {facts(), redis.call('ZRANGE', index, ARGV[7], '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[8], 'WITHSCORES')}
