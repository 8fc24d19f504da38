-- ARGV: id. Returns the status after it, or false when there is no such job.
local job = read_job(ARGV[1])
if not job then return false end
cancel(job)
settle(SETTLE_BUDGET)
return job.status
