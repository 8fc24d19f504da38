-- Shared by every move: records, events and indexes. Python puts the clock and the names (`K`, from keys.py) before it.
-- Times are milliseconds since 1970; a job's `sequence` is its place in the order of all jobs.
local call = redis.call
local now = read_clock()

local CLASSES = {"interactive", "standard", "bulk"}
local UNFINISHED = {"blocked", "queued", "running"} -- what a cancel can still change
local TERMINAL = {succeeded = true, failed = true, canceled = true, expired = true}
local PARENT_FAILED = '{"code":"parent_failed","message":"the job it waited for did not succeed"}'
local WORKER_CRASHED = '{"code":"worker_crashed","message":"' .. MAX_STRIKES
  .. ' worker processes died while running this job alone"}'

local FIELDS = {
  "status", "kind", "lane", "tenant", "priority", "batch_key", "rows", "work", "sequence", "attempt", "strikes",
  "suspect", "group", "worker", "company", "spared", "retention_ms", "waits_for", "notify",
}

-- Returns the job as a table (absent fields are false), or nil.
local function read_job(id)
  local values = call("HMGET", K.job .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] end
  for _, name in ipairs({"rows", "work", "sequence", "attempt", "strikes"}) do job[name] = tonumber(job[name] or 0) end
  return job
end

-- Returns the job when `attempt` is its newest and still has the right to move it on; else nil.
local function read_attempt(id, attempt)
  local job = read_job(id)
  if job and job.attempt == tonumber(attempt) and (job.status == "running" or job.status == "canceling") then
    return job
  end
  return nil
end

local function set(job, ...)
  call("HSET", K.job .. job.id, ...)
end

local function unset(job, ...)
  call("HDEL", K.job .. job.id, ...)
end

local function emit(id, event, data)
  local sum = 0
  for _, byte in ipairs({string.byte(id, -4, -1)}) do sum = sum + byte end
  local stream = K.events .. sum % EVENT_SHARDS
  call("XADD", stream, "MAXLEN", "~", EVENTS_KEPT, "*", "job", id, "type", event, "data", data)
end

local function announce(job, given_back)
  local more = given_back and ',"given_back":true' or ""
  emit(job.id, "status", '{"status":"' .. job.status .. '","attempt":' .. job.attempt .. more .. "}")
end

-- One entry a job and scope: the listings by status and kind are these sets, the counters their sizes.
local function index_keys(job, status)
  local tail = ":" .. job.kind .. ":" .. status
  local of_tenant = K.index .. "t:" .. job.tenant .. tail
  return of_tenant, job.group and K.index .. "g:" .. job.group .. tail
end

local function index(job)
  local of_tenant, of_group = index_keys(job, job.status)
  call("ZADD", of_tenant, job.sequence, job.id)
  if of_group then call("ZADD", of_group, job.sequence, job.id) end
end

local function unindex(job)
  local of_tenant, of_group = index_keys(job, job.status)
  call("ZREM", of_tenant, job.id)
  if of_group then call("ZREM", of_group, job.id) end
end

local function set_status(job, status)
  unindex(job)
  job.status = status
  index(job)
  set(job, "status", status)
end
