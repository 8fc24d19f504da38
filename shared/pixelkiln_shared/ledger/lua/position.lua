-- ARGV: id. Returns about {how many jobs are served before it, their work}; {-1} when it does not wait, {-2} when there
-- is none.
local job = read_job(ARGV[1])
if not job then return {-2} end
if job.status ~= "queued" then return {-1} end

local function work_in(class)
  return tonumber(call("HGET", K.work, job.lane .. ":" .. class) or 0)
end

-- The work of `ahead` of the `waiting` jobs of a class, each of them taken as the mean.
local function share(class, ahead, waiting)
  return math.floor(work_in(class) * ahead / waiting)
end

local counts = waiting_in(job.lane)
if job.suspect then
  local ahead = call("ZRANK", K.suspects .. job.lane, job.id)
  return {ahead, share("suspect", ahead, counts[4])}
end
local before, work = 0, 0
for place, class in ipairs(CLASSES) do
  if class == job.priority then
    -- In each round every active tenant is served once, the least served first; but nobody more than it has.
    local tenants, queue = of_class(K.tenants, job), queue_key(job)
    local mine, behind = call("ZRANK", queue, job.id), 0
    behind = call("ZCARD", queue) - mine - 1
    local rounds = mine * call("ZCARD", tenants) + call("ZRANK", tenants, job.tenant)
    local ahead = math.min(rounds, counts[place] - 1 - behind)
    return {before + ahead, work + share(class, ahead, counts[place])}
  end
  before = before + counts[place]
  work = work + work_in(class)
end
