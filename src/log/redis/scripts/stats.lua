-- How many topics, messages and bytes there are.
return {facts(), redis.call('ZCOUNT', index, '(0', '+inf'), str(messages), str(total)}
