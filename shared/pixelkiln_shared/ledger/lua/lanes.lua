-- Returns {lane, waiting, running, age of the oldest in ms, waiting work, running work, ...} for each lane with waiting
-- or running jobs.
local lanes = {}

local function at(lane)
  lanes[lane] = lanes[lane] or {waiting = 0, running = 0, oldest = 0, work = 0, running_work = 0}
  return lanes[lane]
end

local function look_at(stats, id)
  local times = call("HMGET", K.job .. id, "queued_at", "created_at")
  stats.oldest = math.max(stats.oldest, now - (times[1] or times[2]))
end

local waiting = call("HGETALL", K.waiting)
for i = 1, #waiting, 2 do
  local lane, class = string.match(waiting[i], "^(.*):(%a+)$")
  local stats = at(lane)
  stats.waiting = stats.waiting + waiting[i + 1]
  if class == "suspect" then
    look_at(stats, call("ZRANGE", K.suspects .. lane, 0, 0)[1])
  else
    local tenant = call("ZRANGE", K.heads .. lane .. ":" .. class, 0, 0)[1]
    look_at(stats, call("ZRANGE", K.queue .. lane .. ":" .. class .. ":" .. tenant, 0, 0)[1])
  end
end
local running = call("HGETALL", K.running)
for i = 1, #running, 2 do at(running[i]).running = tonumber(running[i + 1]) end

local work = call("HGETALL", K.work)
for i = 1, #work, 2 do
  local lane, class = string.match(work[i], "^(.*):(%a+)$")
  local sum = class == "running" and "running_work" or "work"
  at(lane)[sum] = at(lane)[sum] + work[i + 1]
end

local reply = {}
for lane, stats in pairs(lanes) do
  local values = {lane, stats.waiting, stats.running, stats.oldest, stats.work, stats.running_work}
  for _, value in ipairs(values) do reply[#reply + 1] = value end
end
return reply
