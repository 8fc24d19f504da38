-- ARGV: id. Returns {"ok", status}, {"missing"} or {"refused", status}.
local job = read_job(ARGV[1])
if not job then return {"missing"} end
if not TERMINAL[job.status] or job.status == "succeeded" then return {"refused", job.status} end
local pending, doomed = await_parents(job)
if doomed then return {"ok", job.status} end
unset(job, "completed_at", "strikes", "company", "spared", "step", "steps", "told_at", "pending")
call("DEL", K.outcome .. job.id)
call("ZREM", K.expiring, job.id)
call("ZREM", K.dead, job.id)
if pending > 0 then
  set(job, "pending", pending)
  set_status(job, "blocked")
  call("INCR", K.blocked)
  announce(job)
else
  requeue(job)
end
return {"ok", job.status}
