-- ARGV: limit, away_ms (0: never), 1 when it goes on with a sweep that came after a pause. Returns {requeued, failed,
-- canceled, expired}, ids (children count as failed), and whether more is due, whether it came after a pause (1 or 0).
local limit, away_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local requeued, failed, canceled, expired = {}, {}, {}, {}

-- After a pause of the sweep Redis itself was away and no heartbeat could arrive: nobody is to blame. But when the
-- sweepers are what dies, a poison job must still end: a job is spared so a few times only.
local last = tonumber(call("GETSET", K.swept, now) or now)
local after_pause = ARGV[3] == "1" or (away_ms > 0 and now - last > away_ms)

local function spare(job)
  if not after_pause or tonumber(job.spared or 0) >= MAX_SPARED then return false end
  call("HINCRBY", K.job .. job.id, "spared", 1)
  return true
end

local function strike(job)
  job.strikes = job.strikes + 1
  job.suspect = "1"
  set(job, "strikes", job.strikes, "suspect", 1)
  return job.strikes >= MAX_STRIKES
end

local function crowd(worker)
  return #still_running(call("HGETALL", K.held .. worker)) > 1
end

local function back_in_line(job)
  requeue(job)
  requeued[#requeued + 1] = job.id
end

-- `crowded`: other jobs ran in the worker when it died, so which of them killed it is unknown.
local function take_back(job, crowded)
  if job.status == "canceling" then
    finish(job, "canceled")
    canceled[#canceled + 1] = job.id
    return
  end
  if call("HGET", K.held .. job.worker, job.id) == SHELVED then return back_in_line(job) end
  local spared = spare(job)
  if not spared and not crowded and strike(job) then
    finish(job, "failed", WORKER_CRASHED)
    call("ZADD", K.dead, job.sequence, job.id)
    failed[#failed + 1] = job.id
    return
  end
  if not spared and crowded then
    job.suspect = "1"
    set(job, "suspect", 1)
  end
  back_in_line(job)
end

local crowded_workers = {}
local lapsed = call("ZRANGEBYSCORE", K.leases, "-inf", now, "LIMIT", 0, limit)
for _, id in ipairs(lapsed) do
  local job = read_job(id) -- always there, unless a hand deleted it
  if not job then call("ZREM", K.leases, id) end
  if job and crowded_workers[job.worker] == nil then crowded_workers[job.worker] = crowd(job.worker) end
  if job then take_back(job, crowded_workers[job.worker] or tonumber(job.company) == job.attempt) end
end

-- What these workers still hold, under leases that end later, was in the same company.
for worker, crowded in pairs(crowded_workers) do
  for _, id in ipairs(crowded and call("HKEYS", K.held .. worker) or {}) do
    call("HSET", K.job .. id, "company", call("HGET", K.job .. id, "attempt"))
  end
end

local function tell_children()
  for _, id in ipairs(settle(limit)) do failed[#failed + 1] = id end
end

tell_children()
local late = call("ZRANGEBYSCORE", K.deadlines, "-inf", now, "LIMIT", 0, limit)
for _, id in ipairs(late) do
  local job = read_job(id)
  if job then finish(job, "expired") else call("ZREM", K.deadlines, id) end
  expired[#expired + 1] = id
end
tell_children()
local more = #lapsed == limit or #late == limit or call("EXISTS", K.settling) == 1
return {requeued, failed, canceled, expired, more and 1 or 0, after_pause and 1 or 0}
