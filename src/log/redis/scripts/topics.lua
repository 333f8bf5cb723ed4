-- What is known of some topics.
local known_topics = {}
for at = 6, #ARGV do
  known_topics[#known_topics + 1] = {
    redis.call('ZSCORE', index, ARGV[at]) or '0',
    redis.call('XLEN', stream(ARGV[at])),
    redis.call('HGET', sizes, ARGV[at]) or '0',
  }
end
return {facts(), known_topics}
