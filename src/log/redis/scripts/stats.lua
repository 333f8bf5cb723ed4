-- How much there is.
return {facts(), redis.call('HLEN', sizes) - 1 - (counts[2] and 2 or 0), str(messages), str(total)}
