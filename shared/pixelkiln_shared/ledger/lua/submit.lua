-- ARGV: idempotency key or "", fingerprint, limit of waiting jobs or -1, jobs in the whole call, number of shapes; then
-- a shape each: what many jobs of a call have in common, in the order of SHAPE ("" for none); then a job each: the
-- number of its shape, id, spec.
local SHAPE = {
  "kind", "lane", "tenant", "priority", "batch_key", "rows", "work", "group", "waits_for", "start_ms", "retention_ms",
  "notify", "webhook", "group_webhook",
}
local ELSEWHERE = {start_ms = true, webhook = true, group_webhook = true} -- not kept in the record
local answered, fingerprint, limit, total = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local FIRST, WIDTH = 6 + ARGV[5] * #SHAPE, 3

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

local when = string.format("%.0f", now)

local function read_shape(at)
  local fields = {"status", "queued", "created_at", when} -- of the record, the same for every job of the shape
  local shape = {fields = fields}
  for i, name in ipairs(SHAPE) do
    local value = ARGV[at + i - 1]
    shape[name] = value ~= "" and value or false
    if shape[name] and not ELSEWHERE[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  return shape
end

local shapes, owners = {}, {}
for at = 6, FIRST - 1, #SHAPE do
  local shape = read_shape(at)
  local group = shape.group
  if group then
    owners[group] = owners[group] or call("HGET", K.group .. group, "tenant") or shape.tenant
    if owners[group] ~= shape.tenant then return {"missing", group} end
  end
  shapes[#shapes + 1] = shape
end

-- Everything that can be refused is refused before the first write: all of the jobs or none.
local ids, ours = {}, {}
for at = FIRST, #ARGV, WIDTH do
  local shape, id = shapes[tonumber(ARGV[at])], ARGV[at + 1]
  for parent in string.gmatch(shape.waits_for or "", "%S+") do
    local owner = ours[parent] or call("HGET", K.job .. parent, "tenant")
    if owner ~= shape.tenant then return {"missing", parent} end
  end
  ids[#ids + 1] = id
  ours[id] = shape.tenant
end

local sequence, fresh = call("INCRBY", K.sequence, #ids) - #ids, 0
local added, counted = {}, {} -- key -> {score, member, ...} and key -> field -> increment: a call each at the end
local opened = {} -- queues and groups of this call: later jobs of the same only add to them

local function add(key, place, id)
  local list = added[key]
  if not list then
    list = {}
    added[key] = list
  end
  list[#list + 1] = place
  list[#list + 1] = id
end

local function count(key, field, increment)
  counted[key] = counted[key] or {}
  counted[key][field] = (counted[key][field] or 0) + increment
end

local function write_added()
  for key, list in pairs(added) do
    for from = 1, #list, 2000 do -- `unpack` takes a few thousand values at most
      call("ZADD", key, unpack(list, from, math.min(from + 1999, #list)))
    end
  end
  for key, fields in pairs(counted) do
    for field, increment in pairs(fields) do call("HINCRBY", key, field, increment) end
  end
end

local function enter_behind(job, shape, place)
  if not shape.queue then
    shape.queue, shape.batch = queue_key(job), batch_set(job.lane, job.batch_key)
    shape.of_tenant, shape.of_group = index_keys(job, "queued")
  end
  add(shape.of_tenant, place, job.id)
  if shape.of_group then add(shape.of_group, place, job.id) end
  if not opened[shape.queue] then
    opened[shape.queue] = true
    return enter_queue(job)
  end
  local field = job.lane .. ":" .. job.priority
  count(K.waiting, field, 1)
  count(K.work, field, job.work)
  add(shape.queue, place, job.id)
  add(shape.batch, place, job.id)
end

local function join_group(job)
  local group = K.group .. job.group
  if opened[group] then return count(group, "size", 1) end
  opened[group] = true
  if job.group_webhook then call("HSET", group, "webhook", job.group_webhook) end
  if call("HINCRBY", group, "size", 1) == 1 then
    call("HSET", group, "tenant", job.tenant, "created_at", when)
  end
end

local function write(id, shape)
  local place = string.format("%.0f", sequence)
  local job = {
    id = id, kind = shape.kind, lane = shape.lane, tenant = shape.tenant, priority = shape.priority,
    batch_key = shape.batch_key, rows = shape.rows, work = tonumber(shape.work), group = shape.group,
    waits_for = shape.waits_for, retention_ms = shape.retention_ms, attempt = 0, status = "queued",
    sequence = sequence, notify = shape.notify, group_webhook = shape.group_webhook,
  }
  set(job, "sequence", place, unpack(shape.fields))
  if job.group then join_group(job) end
  if job.notify then call("SET", K.webhook .. id, shape.webhook) end
  if shape.start_ms then call("ZADD", K.deadlines, now + shape.start_ms, id) end
  if not job.waits_for then return enter_behind(job, shape, place) end
  local pending, doomed = await_parents(job)
  if pending == 0 and not doomed then return enter_behind(job, shape, place) end
  job.status = "blocked"
  set(job, "status", "blocked", "pending", pending)
  call("INCR", K.blocked)
  index(job)
  if doomed then finish(job, "failed", PARENT_FAILED) end
end

unwritten = {} -- a group is not complete while its other jobs are still to be indexed
for at = FIRST, #ARGV, WIDTH do
  sequence = sequence + 1
  -- An id that exists was written by an earlier try whose answer was lost.
  if call("SET", K.spec .. ARGV[at + 1], ARGV[at + 2], "NX") then
    fresh = fresh + 1
    write(ARGV[at + 1], shapes[tonumber(ARGV[at])])
  end
end
write_added()
local doomed = unwritten
unwritten = nil
for _, job in pairs(doomed) do group_lost_one(job) end
settle(SETTLE_BUDGET)

if answered ~= "" then
  call("HSET", K.idempotency .. answered, "fingerprint", fingerprint, "ids", table.concat(ids, " "))
  call("EXPIRE", K.idempotency .. answered, IDEMPOTENCY_S)
end
-- When it was, the last sequence where every job was written here and now, and what waits now in each lane.
local answer, told = {"ok", when, fresh == #ids and sequence or -1}, {}
for _, shape in ipairs(shapes) do
  if not told[shape.lane] then
    told[shape.lane] = true
    local counts = waiting_in(shape.lane)
    answer[#answer + 1] = shape.lane
    answer[#answer + 1] = counts[1] + counts[2] + counts[3] + counts[4]
  end
end
return answer
