-- ARGV: worker. Ends the leases of all it holds; the next sweep takes the jobs back. Returns how many there were.
local ids = call("HKEYS", K.held .. ARGV[1])
for _, id in ipairs(ids) do call("ZADD", K.leases, "XX", now, id) end
return #ids
