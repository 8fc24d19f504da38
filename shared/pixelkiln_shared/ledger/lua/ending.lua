-- How a job leaves the state it is in, ends, and frees or fails the jobs that wait for it.

local function unlease(job)
  call("ZREM", K.leases, job.id)
  call("HDEL", K.held .. job.worker, job.id)
  call("HINCRBY", K.work, job.lane .. ":running", -job.work)
  if call("HINCRBY", K.running, job.lane, -1) == 0 then
    call("HDEL", K.running, job.lane)
    call("HDEL", K.work, job.lane .. ":running")
  end
end

-- Removes the job from whatever its present state keeps about it.
local function leave(job)
  if job.status == "queued" then
    leave_queue(job, 0)
  elseif job.status == "blocked" then
    call("DECR", K.blocked)
  elseif job.status == "running" or job.status == "canceling" then
    unlease(job)
  end
end

local function finish(job, status, outcome)
  leave(job)
  call("ZREM", K.deadlines, job.id)
  set(job, "completed_at", now)
  if outcome then call("SET", K.outcome .. job.id, outcome) end
  set_status(job, status)
  call("ZADD", K.expiring, now + (job.retention_ms or RETENTION_MS), job.id)
  if call("EXISTS", K.children .. job.id) == 1 then call("RPUSH", K.settling, job.id .. " " .. status) end
  if job.notify then post_job(job) end
  if job.group then group_lost_one(job) end
  announce(job)
end

-- Back to its old place: the sequence has not changed. With a lane, to that place there. `given_back`: by the worker
-- that held it, not taken from a dead one; who follows the events can tell.
local function requeue(job, lane, given_back)
  leave(job)
  if lane then
    job.lane = lane
    set(job, "lane", lane)
  end
  set(job, "queued_at", now)
  set_status(job, "queued")
  enter_queue(job)
  announce(job, given_back)
end

-- Tells at most `budget` children of ended jobs, and their children in turn; a sweep goes on with the rest.
local function settle(budget)
  local touched = {}
  while budget > 0 do
    local entry = call("LINDEX", K.settling, 0)
    if not entry then break end
    local parent, outcome = string.match(entry, "^(.*) (%a+)$")
    local children = call("SPOP", K.children .. parent, budget)
    if #children == 0 then call("LPOP", K.settling) end
    for _, id in ipairs(children) do
      budget = budget - 1
      local child = read_job(id)
      if child and child.status == "blocked" then
        if outcome ~= "succeeded" then
          finish(child, "failed", PARENT_FAILED)
          touched[#touched + 1] = id
        elseif call("HINCRBY", K.job .. id, "pending", -1) == 0 then
          unset(child, "pending")
          requeue(child)
        end
      end
    end
  end
  return touched
end

-- Lets a job wait for its parents. Returns how many have not ended, and whether one ended without success.
local function await_parents(job)
  local pending, doomed = 0, false
  for parent in string.gmatch(job.waits_for or "", "%S+") do
    local status = call("HGET", K.job .. parent, "status")
    if not status or (TERMINAL[status] and status ~= "succeeded") then
      doomed = true
    elseif status ~= "succeeded" then
      pending = pending + 1
      call("SADD", K.children .. parent, job.id)
    end
  end
  return pending, doomed
end

-- Asks a job to end; returns its status after that.
local function cancel(job)
  if job.status == "running" then
    set_status(job, "canceling")
    call("PUBLISH", CANCELS, job.id)
    announce(job)
  elseif job.status == "queued" or job.status == "blocked" then
    finish(job, "canceled")
  end
  return job.status
end

local function forget(job)
  unindex(job)
  call("DEL", K.job .. job.id, K.spec .. job.id, K.outcome .. job.id, K.children .. job.id)
  if job.notify then call("DEL", K.webhook .. job.id) end
  call("ZREM", K.expiring, job.id)
  call("ZREM", K.dead, job.id)
  if job.group and call("HINCRBY", K.group .. job.group, "size", -1) == 0 then call("DEL", K.group .. job.group) end
end
