-- ARGV: limit, lease_ms, couriers a receiver may hold. Returns {id, fields and values} of each delivery to try now.
local limit, lease_ms, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

for _, id in ipairs(call("ZRANGEBYSCORE", K.outdated, "-inf", now, "LIMIT", 0, 100)) do
  local of = call("HMGET", K.delivery .. id, "tenant", "status")
  if of[1] then call("ZREM", K.deliveries .. of[1] .. ":" .. of[2], id) end
  call("DEL", K.delivery .. id)
  call("ZREM", K.outdated, id)
end

call("ZREMRANGEBYSCORE", K.gone, "-inf", now)
call("ZREMRANGEBYSCORE", K.failing, "-inf", now - FAILING_S * 1000)

-- Whose courier was killed is tried again.
for _, id in ipairs(call("ZRANGEBYSCORE", K.aloft, "-inf", now, "LIMIT", 0, 100)) do
  local receiver = call("HGET", K.delivery .. id, "receiver")
  if receiver then
    come_back(receiver, id)
    owe(receiver, id, now)
  else
    call("ZREM", K.aloft, id) -- a hand deleted it
  end
end

local function take(receiver, id)
  call("ZREM", K.mailbox .. receiver, id)
  local of = call("HMGET", K.delivery .. id, "tenant", "url")
  if not of[1] then return nil end -- a hand deleted it
  if tonumber(call("ZSCORE", K.gone, address_of(of[1], of[2])) or 0) > now then return close(id, "failed", "", "gone") end
  call("HINCRBY", K.delivery .. id, "attempts", 1)
  call("HSET", K.delivery .. id, "attempted_at", now)
  call("HDEL", K.delivery .. id, "due_at")
  call("ZADD", K.aloft, now + lease_ms, id)
  call("HINCRBY", K.aloft_to, receiver, 1)
  return {id, call("HGETALL", K.delivery .. id)}
end

local taken = {}
for _, receiver in ipairs(call("ZRANGEBYSCORE", K.receivers, "-inf", now, "LIMIT", 0, limit)) do
  local fits = math.min(room(receiver, most), limit - #taken)
  local due = fits > 0 and call("ZRANGEBYSCORE", K.mailbox .. receiver, "-inf", now, "LIMIT", 0, fits) or {}
  for _, id in ipairs(due) do taken[#taken + 1] = take(receiver, id) end
  if room(receiver, most) > 0 then
    line_up(receiver)
  else
    call("ZREM", K.receivers, receiver) -- it stands in nobody's way; a courier that comes back lines it up again
  end
end
return taken
