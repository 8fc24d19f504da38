-- ARGV: id, attempt. Its worker holds it on, under its lease, but in nobody's company. Returns 1; 0: its lease is lost.
local job = read_attempt(ARGV[1], ARGV[2])
if not job then return 0 end
call("HSET", K.held .. job.worker, job.id, SHELVED)
return 1
