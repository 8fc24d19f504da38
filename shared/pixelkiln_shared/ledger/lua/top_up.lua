-- ARGV: worker, token of this call, lease_ms, lane, batch_key, max_rows. Returns {id, attempt, rows, spec, waited, ...}.
local worker, token, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local held = call("HGETALL", K.held .. worker)
local taken = taken_before(held, token)
if taken[1] then return claimed({}, taken) end
local running = still_running(held)
if #running == 1 and call("HGET", K.job .. running[1], "suspect") then return {} end
take_riders(taken, ARGV[4], ARGV[5], tonumber(ARGV[6]), worker, lease_ms, token)
return claimed({}, taken)
