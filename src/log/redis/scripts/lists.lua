-- The list of a subject.
local owner = ARGV[7]
return {facts(), redis.call('ZRANGE', lists, '[' .. owner .. '\0', '(' .. owner .. '\1', 'BYLEX')}
