-- ARGV: idempotency key or "", fingerprint, limit of waiting jobs or -1, jobs in the whole call; then 13 values a job:
-- id kind lane tenant priority batch_key rows work group waits_for start_deadline_ms retention_ms spec ("" for none).
local WIDTH = 13
local answered, fingerprint, limit, total = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

if answered ~= "" then
  local first = call("HMGET", K.idempotency .. answered, "fingerprint", "ids")
  if first[1] then
    if first[1] ~= fingerprint then return {"reused"} end
    return {"replayed", first[2]}
  end
end

if limit >= 0 then
  local waiting = tonumber(call("GET", K.blocked) or 0)
  for _, count in ipairs(call("HVALS", K.waiting)) do waiting = waiting + count end
  if waiting + total > limit then return {"full", waiting} end
end

-- Everything that can be refused is refused before the first write: all of the jobs or none.
local ids, ours, owners = {}, {}, {}
for at = 5, #ARGV, WIDTH do
  local id, tenant, group, waits_for = ARGV[at], ARGV[at + 3], ARGV[at + 8], ARGV[at + 9]
  if group ~= "" then
    owners[group] = owners[group] or call("HGET", K.group .. group, "tenant") or tenant
    if owners[group] ~= tenant then return {"missing", group} end
  end
  for parent in string.gmatch(waits_for, "%S+") do
    local owner = ours[parent] or call("HGET", K.job .. parent, "tenant")
    if owner ~= tenant then return {"missing", parent} end
  end
  ids[#ids + 1] = id
  ours[id] = tenant
end

local sequence = call("INCRBY", K.sequence, #ids) - #ids
local enter_known = {} -- tenant queues this call has activated: later jobs of the same are behind the head
local batches = {}

local function enter_behind(job)
  local queue = queue_key(job)
  if not enter_known[queue] then
    enter_known[queue] = true
    return enter_queue(job)
  end
  local key = job.lane .. "\0" .. job.batch_key
  batches[key] = batches[key] or batch_set(job.lane, job.batch_key)
  local field = job.lane .. ":" .. job.priority
  call("HINCRBY", K.waiting, field, 1)
  call("HINCRBY", K.work, field, job.work)
  call("ZADD", queue, job.sequence, job.id)
  call("ZADD", batches[key], job.sequence, job.id)
end

local function write(at)
  local job = {
    id = ARGV[at], kind = ARGV[at + 1], lane = ARGV[at + 2], tenant = ARGV[at + 3], priority = ARGV[at + 4],
    batch_key = ARGV[at + 5], rows = ARGV[at + 6], work = tonumber(ARGV[at + 7]), attempt = 0,
    status = "queued", sequence = sequence,
  }
  local group, waits_for, deadline, retention = ARGV[at + 8], ARGV[at + 9], ARGV[at + 10], ARGV[at + 11]
  set(job, "status", "queued", "kind", job.kind, "lane", job.lane, "tenant", job.tenant, "priority", job.priority,
    "batch_key", job.batch_key, "rows", job.rows, "work", job.work, "sequence", sequence, "created_at", now)
  call("SET", K.spec .. job.id, ARGV[at + 12])
  if group ~= "" then
    job.group = group
    set(job, "group", group)
    if call("HINCRBY", K.group .. group, "size", 1) == 1 then
      call("HSET", K.group .. group, "tenant", job.tenant, "created_at", now)
    end
  end
  if retention ~= "" then
    job.retention_ms = retention
    set(job, "retention_ms", retention)
  end
  if deadline ~= "" then call("ZADD", K.deadlines, now + deadline, job.id) end
  if waits_for == "" then
    index(job)
    return enter_behind(job)
  end
  job.waits_for = waits_for
  set(job, "waits_for", waits_for)
  local pending, doomed = await_parents(job)
  if pending == 0 and not doomed then
    index(job)
    return enter_behind(job)
  end
  job.status = "blocked"
  set(job, "status", "blocked", "pending", pending)
  call("INCR", K.blocked)
  index(job)
  if doomed then finish(job, "failed", PARENT_FAILED) end
end

for at = 5, #ARGV, WIDTH do
  sequence = sequence + 1
  -- An id that exists was written by an earlier try whose answer was lost.
  if call("EXISTS", K.job .. ARGV[at]) == 0 then write(at) end
end
settle(SETTLE_BUDGET)

if answered ~= "" then
  call("HSET", K.idempotency .. answered, "fingerprint", fingerprint, "ids", table.concat(ids, " "))
  call("EXPIRE", K.idempotency .. answered, IDEMPOTENCY_S)
end
return {"ok"}
