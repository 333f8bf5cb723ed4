-- A part of the index: topics by their newest ids, or below zero the marks of what is gone.
return {facts(), redis.call('ZRANGE', index, ARGV[6], ARGV[7], 'BYSCORE', 'LIMIT', 0, ARGV[8], 'WITHSCORES')}
