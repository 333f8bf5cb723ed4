-- A part of the index: topics by their newest ids.
return {facts(), redis.call('ZRANGE', index, ARGV[7], ARGV[8], 'BYSCORE', 'LIMIT', 0, ARGV[9], 'WITHSCORES')}
