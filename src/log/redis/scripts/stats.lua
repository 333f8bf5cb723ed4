-- How many topics, messages and bytes there are.
return {facts(), redis.call('ZCOUNT', index, '(0', '+inf'), str(math.max(0, messages)), str(math.max(0, total))}
