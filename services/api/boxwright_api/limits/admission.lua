-- May this request begin? If so, it has a place and is counted; if not, nothing has changed.
--
-- KEYS  1 places, 2 places of the key: sorted sets of request -> moment at which its lease ends
--       3 requests of all, 4 of the visitor, 5 of the key: sorted sets of request -> moment at which it began
--       6 tokens of the key: sorted set of 'sum before:sum after' -> moment until which the difference counts
--       7 budget of the key: hash of day, day_tokens, month, month_tokens
--       8 a key that never exists
-- ARGV  1 request, 2 length of a lease, 3 places, 4 places of the key, 5-7 limits of the windows of KEYS 3-5,
--       8 tokens in a minute, 9 in a day, 10 in a month (0: no limit), 11 '1' to only look, 12 now ('': the clock's)
-- Answer: reason (windows.Reason), time until the windows and budgets have room, then limit, remaining and reset of the
--       tightest limit of requests, and of tokens (limit 0: none applies).

local request, lease, now = ARGV[1], tonumber(ARGV[2]), clock(ARGV[12])
local KEY_PLACES, PLACES = 7, 8

-- When the server has no memory left, it refuses the first write of a script that may need some, and none after another
-- write, so that nothing is done by halves. So this one comes first. It writes nothing, since there is no such key.
redis.call('SETRANGE', KEYS[8], 0, '')

local reason, retry = 0, 0

-- Who waits for the refusal that lasts longest meets no other; of equals the first is told.
local function refuse(name, wait)
  if wait > retry then
    reason, retry = name, wait
  end
end

local function tighter(best, limit, remaining, reset)
  remaining = math.max(0, remaining)
  if best and (best[2] < remaining or (best[2] == remaining and best[3] >= reset)) then
    return best
  end
  return {limit, remaining, reset}
end

local windows = {}
for index = 3, 5 do
  local limit = tonumber(ARGV[index + 2])
  if limit > 0 then
    local key = KEYS[index]
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now - MINUTE)
    local count = redis.call('ZCARD', key)
    if count >= limit then
      local last = redis.call('ZRANGE', key, count - limit, count - limit, 'WITHSCORES')
      refuse(index - 2, tonumber(last[2]) + MINUTE - now)
    end
    table.insert(windows, {key, limit, count})
  end
end

local tokens = nil
local limit = tonumber(ARGV[8])
if limit > 0 then
  local key = KEYS[6]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  local count = redis.call('ZCARD', key)
  local used, reset = 0, 0
  if count > 0 then
    local function sums(index)
      local entry = redis.call('ZRANGE', key, index, index, 'WITHSCORES')
      local before, after = string.match(entry[1], '^(%d+):(%d+)$')
      return tonumber(before), tonumber(after), tonumber(entry[2])
    end
    local before = sums(0)
    local _, total, newest = sums(-1)
    used, reset = total - before, newest - now
    if used >= limit then
      -- The first entry after whose end less than the limit is left.
      local low, high = 0, count - 1
      while low < high do
        local middle = math.floor((low + high) / 2)
        local _, after = sums(middle)
        if total - after < limit then
          high = middle
        else
          low = middle + 1
        end
      end
      local _, _, ends = sums(low)
      refuse(4, ends - now)
    end
  end
  tokens = tighter(tokens, limit, limit - used, reset)
end

local per_day, per_month = tonumber(ARGV[9]), tonumber(ARGV[10])
if per_day > 0 or per_month > 0 then
  local day, month, day_left, month_left = calendar(now)
  local budget = redis.call('HMGET', KEYS[7], 'day', 'day_tokens', 'month', 'month_tokens')
  local function spend(name, most, current, stored, amount, left)
    if most > 0 then
      local used = tonumber(stored or '') == current and tonumber(amount) or 0
      if used >= most then
        refuse(name, left)
      end
      tokens = tighter(tokens, most, most - used, used > 0 and left or 0)
    end
  end
  spend(5, per_day, day, budget[1], budget[2], day_left)
  spend(6, per_month, month, budget[3], budget[4], month_left)
end

-- The places of workers that died, and of those that could not renew theirs.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if reason == 0 then
  local parallel = tonumber(ARGV[4])
  if parallel > 0 and redis.call('ZCARD', KEYS[2]) >= parallel then
    reason = KEY_PLACES
  elseif ARGV[11] == '1' or redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
    reason = PLACES
  end
end

local requests = nil
for _, window in ipairs(windows) do
  local key, most, count = window[1], window[2], window[3]
  if reason == 0 then
    redis.call('ZADD', key, now, request)
    redis.call('PEXPIRE', key, MINUTE / 1000)
    count = count + 1
  end
  local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
  requests = tighter(requests, most, most - count, newest and tonumber(newest) + MINUTE - now or 0)
end
if reason == 0 then
  for index = 1, 2 do
    redis.call('ZADD', KEYS[index], now + lease, request)
    keep(KEYS[index], lease)
  end
end

requests, tokens = requests or {0, 0, 0}, tokens or {0, 0, 0}
return {reason, retry, requests[1], requests[2], requests[3], tokens[1], tokens[2], tokens[3]}
