-- How much there is.
return {facts(), redis.call('ZCOUNT', index, '(0', '+inf'), str(messages), str(total)}
