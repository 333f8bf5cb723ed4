-- Sets the limits of retention, and returns those from before: of all topics, and the rules for some, if any replica has
-- told them. The arguments: the rules, one on each line, and 1 if the limits of all topics are set too.
local before, rules_before = kept(), saved[3] or false
if ARGV[8] == '1' then keep(wanted) end
redis.call('HSET', state, '*', packed(), '*rules', ARGV[7])
-- By other limits other topics are due. The next sweep looks at them all, in steps.
if kept() ~= before or ARGV[7] ~= rules_before then redis.call('UNLINK', due) end
return {before, rules_before}
