-- Requests that are still in progress keep their places for another lease, also those whose places were lost with
-- what Redis knew.
--
-- KEYS  1 places, then places of keys
-- ARGV  1 length of a lease, 2 now ('': the clock's), then index in KEYS and request, for each
-- Answer: how many places are taken.

local lease, now = tonumber(ARGV[1]), clock(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for at = 3, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], now + lease, ARGV[at + 1])
  redis.call('ZADD', KEYS[tonumber(ARGV[at])], now + lease, ARGV[at + 1])
end
for _, key in ipairs(KEYS) do
  keep(key, lease)
end
return redis.call('ZCARD', KEYS[1])
