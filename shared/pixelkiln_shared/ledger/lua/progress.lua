-- ARGV: id, attempt, step, steps. The record always learns; an event goes out at most four times a second.
local job = read_attempt(ARGV[1], ARGV[2])
if not job then return 0 end
set(job, "step", ARGV[3], "steps", ARGV[4])
if now - (call("HGET", K.job .. job.id, "told_at") or 0) >= PROGRESS_MS then
  set(job, "told_at", now)
  emit(job.id, "progress", '{"step":' .. ARGV[3] .. ',"steps":' .. ARGV[4] .. ',"attempt":' .. job.attempt .. '}')
end
return 1
