-- ARGV: id, attempt, move (publish, fail, release, stopped), outcome or "". Returns the status, or false: lease lost.
local id, attempt, move, outcome = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ENDS = {publish = "succeeded", fail = "failed"}
local job = read_attempt(id, attempt)

-- The same move of the same attempt again: the first answer was lost on the way, and nothing is done twice.
local function repeated()
  local old = read_job(id)
  if not old or old.attempt ~= attempt then return false end
  local same = old.status == ENDS[move] and call("GET", K.outcome .. id) == outcome
    or move == "release" and old.status == "queued"
    or move == "stopped" and old.status == "canceled"
  return same and old.status
end

if not job then return repeated() end
if move == "stopped" and job.status ~= "canceling" then return false end
if job.status == "canceling" then
  finish(job, "canceled")
elseif move == "release" then
  requeue(job)
else
  finish(job, ENDS[move], outcome)
end
settle(SETTLE_BUDGET)
return job.status
