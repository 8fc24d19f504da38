-- ARGV: lease_ms; then id, attempt, ... Returns {ids being canceled, ids no longer held}.
local canceling, lost = {}, {}
for at = 2, #ARGV, 2 do
  local job = read_attempt(ARGV[at], ARGV[at + 1])
  if not job then
    lost[#lost + 1] = ARGV[at]
  else
    call("ZADD", K.leases, now + ARGV[1], job.id)
    if job.status == "canceling" then canceling[#canceling + 1] = job.id end
  end
end
return {canceling, lost}
