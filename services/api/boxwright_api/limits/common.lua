-- What the scripts share; it stands before each of them. Times are whole microseconds, which a Lua number holds exactly.

local MINUTE = 60 * 1000000
local DAY = 86400 * 1000000

-- The server's clock, so that no worker's clock matters. Only tests say what time it is.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Lets a key live so long at least, and then it goes by itself.
local function keep(key, time)
  local milliseconds = math.ceil(time / 1000)
  if redis.call('PTTL', key) < milliseconds then
    redis.call('PEXPIRE', key, milliseconds)
  end
end

local function is_leap(year)
  return year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
end

-- Of a moment: its day (since 1970-01-01) and month (since year 0), UTC, and how long until each ends.
local function calendar(now)
  local day = math.floor(now / DAY)
  local left = (day + 1) * DAY - now
  local year, rest = 1970, day
  while rest >= (is_leap(year) and 366 or 365) do
    rest = rest - (is_leap(year) and 366 or 365)
    year = year + 1
  end
  local lengths = {31, is_leap(year) and 29 or 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
  local month = 1
  while rest >= lengths[month] do
    rest = rest - lengths[month]
    month = month + 1
  end
  return day, year * 12 + month - 1, left, left + (lengths[month] - rest - 1) * DAY
end
