-- ARGV: limit. Forgets records whose time is over; returns how many.
local due = call("ZRANGEBYSCORE", K.expiring, "-inf", now, "LIMIT", 0, ARGV[1])
for _, id in ipairs(due) do
  local job = read_job(id)
  if job then forget(job) else call("ZREM", K.expiring, id) end
end
return #due
