-- A request has ended: its place is free, and its tokens are charged. Or it has not begun after all: then nothing of it
-- counts. It may be sent twice, since an answer can be lost.
--
-- KEYS  1-7 as in admission.lua, 8 what this worker has charged: sorted set of its last numbers
-- ARGV  1 request, 2 places, 3 places of the key, 4 channel, 5 message, 6 tokens, 7 number of this charge,
--       8 '1' if tokens are counted by the minute, 9 '1' if it has not begun, 10 now ('': the clock's)
-- Answer: 1 if it had a place.

local request, tokens, now = ARGV[1], tonumber(ARGV[6]), clock(ARGV[10])
-- Charges that come twice come again within fewer others than this.
local REMEMBERED = 1000
local GRAIN = 10000

-- Because this is the first write, the server lets the others be, also when it has no memory left (see admission.lua).
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local parallel = tonumber(ARGV[3])
local full = redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2])
  or (parallel > 0 and redis.call('ZCARD', KEYS[2]) >= parallel)
local held = redis.call('ZREM', KEYS[1], request)
held = math.max(held, redis.call('ZREM', KEYS[2], request))
-- Nobody waits while there is room: whoever is told that there is none is told after the last place was taken.
if full and held == 1 then
  redis.call('PUBLISH', ARGV[4], ARGV[5])
end

if ARGV[9] == '1' then
  for index = 3, 5 do
    redis.call('ZREM', KEYS[index], request)
  end
end

if tokens > 0 and redis.call('ZADD', KEYS[8], 'NX', ARGV[7], ARGV[7]) == 1 then
  redis.call('ZREMRANGEBYRANK', KEYS[8], 0, -1 - REMEMBERED)
  redis.call('PEXPIRE', KEYS[8], 3600 * 1000)

  if ARGV[8] == '1' then
    local key = KEYS[6]
    local ends = (math.floor(now / GRAIN) + 1) * GRAIN + MINUTE
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
    local before, after = 0, 0
    if last[1] then
      before, after = string.match(last[1], '^(%d+):(%d+)$')
      if tonumber(last[2]) == ends then
        redis.call('ZREM', key, last[1])
      else
        before = after
      end
    end
    redis.call('ZADD', key, ends, string.format('%.0f:%.0f', tonumber(before), tonumber(after) + tokens))
    redis.call('PEXPIRE', key, math.ceil((ends - now) / 1000))
  end

  local day, month, _, month_left = calendar(now)
  local budget = redis.call('HMGET', KEYS[7], 'day', 'day_tokens', 'month', 'month_tokens')
  local function spent(current, stored, amount)
    return string.format('%.0f', (tonumber(stored or '') == current and tonumber(amount) or 0) + tokens)
  end
  redis.call('HSET', KEYS[7], 'day', day, 'day_tokens', spent(day, budget[1], budget[2]),
    'month', month, 'month_tokens', spent(month, budget[3], budget[4]))
  -- A minute longer, so that what counts is decided by the clock of the scripts alone.
  redis.call('PEXPIRE', KEYS[7], math.ceil((month_left + MINUTE) / 1000))
end
return held
