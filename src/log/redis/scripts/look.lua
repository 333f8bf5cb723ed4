-- The newest id of some topics.
local newest = {}
for at = 7, #ARGV do
  newest[#newest + 1] = redis.call('ZSCORE', index, ARGV[at]) or '0'
end
return {facts(), newest}
