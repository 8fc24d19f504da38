-- ARGV: a succeeded job each: the values of NAMES ("" for none), spec, result, when it is forgotten ("": a full
-- retention from now). Returns 1 for each that was written, 0 for each that was there, or whose group is somebody else's.
local NAMES = {
  "id", "kind", "lane", "tenant", "priority", "batch_key", "rows", "work", "sequence", "attempt", "group", "worker",
  "created_at", "started_at", "completed_at",
}
local WIDTH = #NAMES + 3

-- Listings go by sequence alone: two jobs of one tenant may never share one.
local function free_place(job)
  local place = tonumber(job.sequence)
  local function taken(at)
    for _, kind in ipairs(KINDS) do
      if call("ZCOUNT", K.index .. "t:" .. job.tenant .. ":" .. kind .. ":succeeded", at, at) > 0 then return true end
    end
    return false
  end
  while taken(string.format("%.0f", place)) do place = place + 1 end
  return string.format("%.0f", place)
end

local function join_group(job)
  local group = K.group .. job.group
  local since = call("HGET", group, "created_at")
  if not since or tonumber(job.created_at) < tonumber(since) then
    call("HSET", group, "tenant", job.tenant, "created_at", job.created_at)
  end
  call("HINCRBY", group, "size", 1)
end

local function restore(at)
  local job, fields = {}, {"status", "succeeded"}
  for i, name in ipairs(NAMES) do
    local value = ARGV[at + i - 1]
    job[name] = value ~= "" and value or false
  end
  if call("EXISTS", K.job .. job.id) == 1 then return 0 end
  if job.group and (call("HGET", K.group .. job.group, "tenant") or job.tenant) ~= job.tenant then return 0 end
  job.status, job.sequence = "succeeded", free_place(job)
  for i = 2, #NAMES do
    if job[NAMES[i]] then
      fields[#fields + 1] = NAMES[i]
      fields[#fields + 1] = job[NAMES[i]]
    end
  end
  set(job, unpack(fields))
  call("SET", K.spec .. job.id, ARGV[at + #NAMES])
  call("SET", K.outcome .. job.id, ARGV[at + #NAMES + 1])
  index(job)
  if job.group then join_group(job) end
  local expires = tonumber(ARGV[at + #NAMES + 2]) or now + RETENTION_MS
  call("ZADD", K.expiring, string.format("%.0f", expires), job.id)
  return 1
end

local written = {}
for at = 1, #ARGV, WIDTH do written[#written + 1] = restore(at) end
return written
