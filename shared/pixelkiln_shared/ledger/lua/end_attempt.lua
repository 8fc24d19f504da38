-- ARGV: move (publish, fail, release, stopped); then id, attempt, outcome or "" (of a release: what its lane's name
-- shall end in), ... Returns a status or false a job: false when its lease is lost. The jobs of one call end one by one,
-- each as if it were alone.
local move = ARGV[1]
local ENDS = {publish = "succeeded", fail = "failed"}

-- The same move of the same attempt again: the first answer was lost on the way, and nothing is done twice.
local function repeated(id, attempt, outcome)
  local old = read_job(id)
  if not old or old.attempt ~= attempt then return false end
  local same = old.status == ENDS[move] and call("GET", K.outcome .. id) == outcome
    or move == "release" and old.status == "queued"
    or move == "stopped" and old.status == "canceled"
  return same and old.status
end

local function end_one(id, attempt, outcome)
  local job = read_attempt(id, attempt)
  if not job then return repeated(id, attempt, outcome) end
  if move == "stopped" and job.status ~= "canceling" then return false end
  if job.status == "canceling" then
    finish(job, "canceled")
  elseif move == "release" then
    requeue(job, outcome ~= "" and string.match(job.lane, "^[^@]*") .. outcome, true)
  else
    finish(job, ENDS[move], outcome)
  end
  return job.status
end

local statuses = {}
for at = 2, #ARGV, 3 do
  statuses[#statuses + 1] = end_one(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2])
end
settle(SETTLE_BUDGET)
return statuses
