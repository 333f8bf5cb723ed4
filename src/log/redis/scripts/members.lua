-- Reads a page of the members of a topic, in the order of their subjects.
local topic, after, limit = subject, ARGV[7], tonumber(ARGV[8])
local found = {}
local from = after == '' and '-' or '(' .. after
for _, sub in ipairs(redis.call('ZRANGE', base .. 'subjects:' .. topic, from, '+', 'BYLEX', 'LIMIT', 0, limit)) do
  local text = redis.call('HGET', base .. 'members:' .. topic, sub)
  local is_packed, id, data, held = pcall(cmsgpack.unpack, text or '')
  if is_packed and type(id) == 'number' and type(data) == 'string' and type(held) == 'table' then
    local connections = 0
    for _, count in pairs(held) do connections = connections + count end
    found[#found + 1] = {sub, str(id), str(connections), data}
  end
end
return {facts(), redis.call('ZCARD', base .. 'subjects:' .. topic), found}
