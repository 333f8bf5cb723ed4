-- The newest retained messages of a topic up to an id, newest first: what fills a tail backwards.
local newest = tonumber(marks[7])
if not newest then return {facts(), {}} end
sweep(1000)
local found, bytes = {}, tonumber(ARGV[8])
local batch = redis.call('XREVRANGE', stream(subject), ARGV[6], str(expired), 'COUNT', ARGV[7])
for _, entry in ipairs(batch) do
  bytes = bytes - #entry[2][6]
  if bytes < 0 then break end
  found[#found + 1] = {(string.gsub(entry[1], '-0$', '')), entry[2][2], entry[2][4], entry[2][6]}
end
return {facts(), found}
