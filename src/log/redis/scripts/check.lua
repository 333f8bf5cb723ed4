-- Checks that this user may run every command of the scripts, and that no key is of a wrong type. It stands before the
-- prelude, which would fail without saying why, and it changes nothing.
do
  local base = ARGV[1]
  local index, names, order, state, feed = base .. 'index', base .. 'names', base .. 'order', base .. 'store', base .. 'feed'
  local topic, new, key, keys = base .. 'topic:x', base .. 'new', base .. 'key:x', base .. 'keys:0'
  local due, lists, refused = base .. 'due', base .. 'lists', base .. 'refused'
  local needed = {
    {'TIME'}, {'INFO', 'replication'}, {'EXISTS', index, names, order}, {'TYPE', state},
    {'HMGET', state, '*'}, {'HGET', state, '*'}, {'HSET', state, '*', ''}, {'HDEL', state, 'x'},
    {'ZADD', index, '1', 'x'}, {'ZREM', index, 'x'}, {'ZSCORE', index, 'x'}, {'ZMSCORE', index, 'x'},
    {'ZRANGE', index, '0', '1'}, {'ZCARD', index}, {'ZCOUNT', index, '0', '1'},
    {'ZADD', names, '0', 'x'}, {'ZREM', names, 'x'}, {'ZLEXCOUNT', names, '-', '+'}, {'ZRANGE', names, '0', '1'},
    {'XADD', order, '1-0', 't', 'x'}, {'XRANGE', order, '-', '+'}, {'XDEL', order, '1-0'}, {'XINFO', 'STREAM', order},
    {'XADD', topic, '1-0', 'p', ''}, {'XRANGE', topic, '-', '+'}, {'XREVRANGE', topic, '+', '-'}, {'XLEN', topic},
    {'XDEL', topic, '1-0'}, {'DEL', topic}, {'PERSIST', topic}, {'UNLINK', topic},
    {'XADD', new, '1-0', 'p', ''}, {'COPY', new, topic, 'REPLACE'}, {'DEL', new},
    {'ZADD', due, '1', 'x'}, {'ZREM', due, 'x'}, {'ZRANGE', due, '0', '1'}, {'ZCARD', due}, {'UNLINK', due},
    {'ZADD', lists, '0', 'x'}, {'ZREM', lists, 'x'}, {'ZRANGE', lists, '[x', '(x', 'BYLEX'}, {'ZLEXCOUNT', lists, '-', '+'}, {'UNLINK', lists}, {'EXISTS', lists},
    {'ZADD', refused, '1', 'x'}, {'ZREM', refused, 'x'}, {'ZCARD', refused}, {'GET', refused .. ':x'}, {'SET', refused .. ':x', '', 'PX', '1'},
    {'XADD', feed, '1-0', 'm', ''}, {'XREVRANGE', feed, '+', '-'}, {'XREAD', 'STREAMS', feed, '0-0'},
    {'UNLINK', index, names, order, state, feed}, {'RENAME', base .. 'state', state}, {'SET', base .. 'state', ''},
    {'HGETALL', base .. 'replicas'}, {'PEXPIRE', base .. 'replica:x', '1'}, {'XTRIM', base .. 'replica:x', 'MINID', '0-0'},
    {'XADD', base .. 'replica:x', 'NOMKSTREAM', '*', 'j', ''}, {'XREAD', 'STREAMS', base .. 'replica:x', '0-0'},
    {'HGET', base .. 'members:x', 'x'}, {'HSET', base .. 'members:x', 'x', ''}, {'HDEL', base .. 'members:x', 'x'},
    {'ZADD', base .. 'subjects:x', '0', 'x'}, {'ZREM', base .. 'subjects:x', 'x'}, {'ZRANGE', base .. 'subjects:x', '0', '1'}, {'ZCARD', base .. 'subjects:x'},
    {'ZADD', base .. 'holds:x', '0', 'x'}, {'ZREM', base .. 'holding', 'x'}, {'ZADD', base .. 'leaving', '0', 'x'},
    {'GET', key}, {'SET', key, '', 'PX', '1'}, {'HGET', keys, '*'}, {'HINCRBY', keys, '*', '1'}, {'PEXPIRE', keys, '1'},
  }
  -- Copies confirm messages.
  if ARGV[7] == '1' then needed[#needed + 1] = {'WAIT', '1', '1'} end
  for _, command in ipairs(needed) do
    local is_known, is_allowed = pcall(redis.acl_check_cmd, unpack(command))
    if not (is_known and is_allowed) then
      return redis.error_reply('UNFIT the user of Redis may not run ' .. table.concat(command, ' ', 1, math.min(2, #command)))
    end
  end
  for name, kind in pairs({index = 'zset', names = 'zset', order = 'stream', store = 'hash', feed = 'stream', due = 'zset', lists = 'zset', refused = 'zset'}) do
    local found = redis.call('TYPE', base .. name).ok
    if found ~= kind and found ~= 'none' then
      return redis.error_reply('UNFIT the key ' .. base .. name .. ' has the type ' .. found .. ' and not ' .. kind)
    end
  end
end
