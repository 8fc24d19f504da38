-- ARGV: id. Makes a delivery due at once, under the whole schedule again. Returns its status, or false: no such one.
local id = ARGV[1]
local of = call("HMGET", K.delivery .. id, "status", "receiver", "tenant", "url", "sequence")
if not of[1] then return false end
call("ZREM", K.gone, address_of(of[3], of[4]))
call("HSET", K.delivery .. id, "status", "pending")
call("HDEL", K.delivery .. id, "absent")
if of[1] ~= "pending" then
  call("ZREM", K.deliveries .. of[3] .. ":" .. of[1], id)
  call("ZADD", K.deliveries .. of[3] .. ":pending", of[5], id)
  call("ZREM", K.outdated, id)
end
if not call("ZSCORE", K.aloft, id) then owe(of[2], id, now) end
return "pending"
