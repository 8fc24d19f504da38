-- ARGV: id. Returns "ok", or the status of a job that has not ended, or false when there is none.
local job = read_job(ARGV[1])
if not job then return false end
if not TERMINAL[job.status] then return job.status end
forget(job)
return "ok"
