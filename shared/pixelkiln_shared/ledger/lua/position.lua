-- ARGV: id. Returns about how many jobs are served before it, -1 when it does not wait, -2 when there is none.
local job = read_job(ARGV[1])
if not job then return -2 end
if job.status ~= "queued" then return -1 end
if job.suspect then return call("ZRANK", K.suspects .. job.lane, job.id) end
local counts = waiting_in(job.lane)
local before = 0
for place, class in ipairs(CLASSES) do
  if class == job.priority then
    -- In each round every active tenant is served once, the least served first; but nobody more than it has.
    local tenants, queue = of_class(K.tenants, job), queue_key(job)
    local mine, behind = call("ZRANK", queue, job.id), 0
    behind = call("ZCARD", queue) - mine - 1
    local rounds = mine * call("ZCARD", tenants) + call("ZRANK", tenants, job.tenant)
    return before + math.min(rounds, counts[place] - 1 - behind)
  end
  before = before + counts[place]
end
