-- The waiting jobs of a lane, and who is next. Nothing here grows with the number of waiting jobs but O(log n).
--
-- Fair queueing: in each lane and class the active tenants stand in a set scored by virtual service time, the rows
-- served to them. The tenant served least is next; who becomes active starts at the lane's current time.

local function of_class(prefix, job)
  return prefix .. job.lane .. ":" .. job.priority
end

local function queue_key(job)
  return K.queue .. job.lane .. ":" .. job.priority .. ":" .. job.tenant
end

local function batch_set(lane, key)
  return K.batch .. lane .. ":" .. redis.sha1hex(key)
end

local function count_waiting(job, change)
  local field = job.lane .. ":" .. (job.suspect and "suspect" or job.priority)
  local left = call("HINCRBY", K.waiting, field, change)
  call("HINCRBY", K.work, field, change * job.work)
  if left == 0 then
    call("HDEL", K.waiting, field)
    call("HDEL", K.work, field)
  end
  return left
end

-- Returns how many wait in a lane: {interactive, standard, bulk, suspects}.
local function waiting_in(lane)
  local counts = call("HMGET", K.waiting, lane .. ":interactive", lane .. ":standard", lane .. ":bulk",
    lane .. ":suspect")
  for i = 1, 4 do counts[i] = tonumber(counts[i] or 0) end
  return counts
end

local function forget_idle_lane(lane)
  local counts = waiting_in(lane)
  if counts[1] + counts[2] + counts[3] + counts[4] == 0 then call("DEL", K.lane .. lane) end
end

-- Gives the job's tenant a place among the active ones.
local function activate(job)
  local tenants = of_class(K.tenants, job)
  if not call("ZSCORE", tenants, job.tenant) then
    local clock = tonumber(call("HGET", K.lane .. job.lane, "clock:" .. job.priority) or 0)
    local debts = of_class(K.debts, job)
    local debt = tonumber(call("ZSCORE", debts, job.tenant) or 0)
    call("ZADD", tenants, math.max(clock, debt), job.tenant)
    call("ZREM", debts, job.tenant)
  end
  call("ZADD", of_class(K.heads, job), "LT", job.sequence, job.tenant)
end

local function enter_queue(job)
  if count_waiting(job, 1) == 1 then call("HSETNX", K.lane .. job.lane, "since", now) end
  if job.suspect then
    call("ZADD", K.suspects .. job.lane, job.sequence, job.id)
    return
  end
  call("ZADD", queue_key(job), job.sequence, job.id)
  call("ZADD", batch_set(job.lane, job.batch_key), job.sequence, job.id)
  activate(job)
end

-- A tenant without waiting jobs leaves; what it was served beyond the current time is remembered as a debt.
local function deactivate(job, score, left)
  local debts = of_class(K.debts, job)
  call("ZREM", of_class(K.tenants, job), job.tenant)
  call("ZREM", of_class(K.heads, job), job.tenant)
  if left == 0 then
    call("DEL", debts)
    call("HDEL", K.lane .. job.lane, "clock:" .. job.priority, "passed:" .. job.priority)
  else
    local clock = tonumber(call("HGET", K.lane .. job.lane, "clock:" .. job.priority) or 0)
    if score > clock then call("ZADD", debts, score, job.tenant) end
  end
end

-- `served` is how many rows to charge the tenant: the job's when it starts, 0 when it just leaves.
local function leave_queue(job, served)
  local left = count_waiting(job, -1)
  if job.suspect then
    call("ZREM", K.suspects .. job.lane, job.id)
  else
    local queue = queue_key(job)
    call("ZREM", queue, job.id)
    call("ZREM", batch_set(job.lane, job.batch_key), job.id)
    local score = tonumber(call("ZINCRBY", of_class(K.tenants, job), served, job.tenant))
    local head = call("ZRANGE", queue, 0, 0, "WITHSCORES")
    if head[1] then
      call("ZADD", of_class(K.heads, job), head[2], job.tenant)
    else
      deactivate(job, score, left)
    end
  end
  if left == 0 then forget_idle_lane(job.lane) end
end

local SHELVED = "shelved" -- stands where a claim's token stood

-- Starts an attempt: the job leaves its queue and `worker` holds it under a lease.
local function take(job, worker, lease_ms, token)
  leave_queue(job, job.rows)
  call("ZREM", K.deadlines, job.id)
  job.attempt = job.attempt + 1
  set(job, "attempt", job.attempt, "worker", worker, "started_at", now)
  if job.attempt > 1 then unset(job, "step", "steps", "told_at") end
  set_status(job, "running")
  call("ZADD", K.leases, now + lease_ms, job.id)
  call("HSET", K.held .. worker, job.id, token)
  call("HINCRBY", K.running, job.lane, 1)
  call("HINCRBY", K.work, job.lane .. ":running", job.work)
  announce(job)
end

-- The jobs among those a worker holds that may still kill it: a result that waits for the store no longer does.
local function still_running(held)
  local ids = {}
  for i = 1, #held, 2 do
    if held[i + 1] ~= SHELVED then ids[#ids + 1] = held[i] end
  end
  return ids
end

local function active_tenants(lane)
  local sum = 0
  for _, class in ipairs(CLASSES) do sum = sum + call("ZCARD", K.tenants .. lane .. ":" .. class) end
  return sum
end

-- Takes riders of a batch key while they fit: first by class and turn, so that who has one job is not behind who
-- has thousands; then oldest first, for jobs that stand behind one of another key. Jobs too large for the room left
-- are passed over, and the looks are counted: a claim's work has a bound.
local function take_riders(taken, lane, batch_key, room, worker, lease_ms, token)
  local function ride(job)
    take(job, worker, lease_ms, token .. ":" .. #taken + 1)
    taken[#taken + 1] = job
    room = room - job.rows
  end
  local looks = active_tenants(lane) > 1 and 2 * room or 0
  for _, class in ipairs(CLASSES) do
    local at = 0
    while room > 0 and looks > 0 do
      local tenant = call("ZRANGE", K.tenants .. lane .. ":" .. class, at, at)[1]
      if not tenant then break end
      looks = looks - 1
      local job = read_job(call("ZRANGE", K.queue .. lane .. ":" .. class .. ":" .. tenant, 0, 0)[1])
      if job.batch_key == batch_key and job.rows <= room then ride(job) else at = at + 1 end
    end
  end
  if room <= 0 then return end
  for _, id in ipairs(call("ZRANGE", batch_set(lane, batch_key), 0, 2 * room - 1)) do
    local job = read_job(id)
    if job.rows <= room then ride(job) end
    if room == 0 then return end
  end
end

-- Flattens jobs to id, attempt, rows, spec, milliseconds waited, group or "", ...
local function claimed(reply, jobs)
  for _, job in ipairs(jobs) do
    local times = call("HMGET", K.job .. job.id, "queued_at", "created_at")
    local waited, group = now - (times[1] or times[2]), job.group or ""
    for _, value in ipairs({job.id, job.attempt, job.rows, call("GET", K.spec .. job.id), waited, group}) do
      reply[#reply + 1] = value
    end
  end
  return reply
end

-- The jobs an earlier call with this token took and whose answer was lost on the way, in their order.
local function taken_before(held, token)
  local jobs = {}
  for i = 1, #held, 2 do
    local of, place = string.match(held[i + 1], "^(.*):(%d+)$")
    if of == token then jobs[tonumber(place)] = read_job(held[i]) end
  end
  local dense = {}
  for place = 1, #held / 2 do dense[#dense + 1] = jobs[place] end
  return dense
end
