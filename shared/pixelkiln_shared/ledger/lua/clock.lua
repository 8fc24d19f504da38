-- The only clock of the ledger: Redis's own, in milliseconds. A caller's clock is never trusted.
local function read_clock()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
