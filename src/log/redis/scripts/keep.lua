-- Sets the limits of retention, and returns those from before: of all topics, and the rules for some, if any replica has
-- told them. The arguments: the rules, one on each line, and 1 if the limits of all topics are set too.
local before, rules_before, age_before = kept(), saved[3] or false, max_age
if ARGV[8] == '1' then keep(wanted) end
redis.call('HSET', state, '*', packed(), '*rules', ARGV[7])
-- The rules without their messages and bytes.
local function ages(text) return (string.gsub(text, '\n%d+ (%d+) %d+ ', '\n%1 ')) end
if ARGV[7] == '' then
  redis.call('UNLINK', due)
elseif max_age ~= age_before or ages(ARGV[7]) ~= ages(rules_before or '') then
  -- By other ages the topics are due at other times. The next sweeps look at them all, in steps. Until then each keeps its
  -- time: those that were due already still go first.
  for _, place in ipairs(redis.call('ZRANGE', due, '+inf', '+inf', 'BYSCORE')) do redis.call('ZREM', due, place) end
end
return {before, rules_before}
