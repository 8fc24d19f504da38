-- ARGV: id, attempt, word (delivered, gone, failed), response or "", fault, look_again_ms, look_for_ms, milliseconds that
-- the receiver asked to be left alone; then when to try again, in milliseconds since a try first failed, ascending.
-- Returns the status, or false: another try began.
local id, attempt, word, response, fault = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local look_again_ms, look_for_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local PULLED = 50 -- deliveries that a success makes due at once; each of them does the same

local of = call("HMGET", K.delivery .. id, "attempts", "receiver", "since", "tenant", "url", "absent")
if of[1] ~= attempt or not call("ZSCORE", K.aloft, id) then return false end
-- The first failure begins the schedule: an outage of ours before it takes no try away.
local receiver, since = of[2], of[6] and tonumber(of[3]) or now
come_back(receiver, id)

-- When this delivery is tried next; nil when it was the last time. While a receiver is away (`absent`) one delivery looks
-- after it now and then, so that its return is noticed soon.
local function next_try(absent)
  local due
  for at = 9, #ARGV do
    due = since + ARGV[at]
    if due > now then break end
    due = nil
  end
  local first = call("ZRANGE", K.mailbox .. receiver, 0, 0, "WITHSCORES")[2]
  local looked_after = first and tonumber(first) <= now + look_again_ms or call("HGET", K.aloft_to, receiver)
  if due and absent and not looked_after and now - since < look_for_ms then due = math.min(due, now + look_again_ms) end
  return due and math.max(due, now + ARGV[8])
end

-- What failed because the receiver was away is due at once; what it refused while it took others keeps its time.
local function hurry_the_others()
  local mailbox = K.mailbox .. receiver
  for _, other in ipairs(call("ZRANGEBYSCORE", mailbox, "(" .. string.format("%.0f", now), "+inf", "LIMIT", 0, PULLED)) do
    if call("HGET", K.delivery .. other, "absent") == "1" then
      call("HSET", K.delivery .. other, "due_at", now)
      call("ZADD", mailbox, now, other)
    end
  end
end

local status = word == "delivered" and "delivered" or "failed"
if word == "failed" then
  local absent = fails(receiver)
  if not absent then call("ZADD", K.failing, now, receiver) end
  local due = next_try(absent)
  if due then
    status = "pending"
    call("HSET", K.delivery .. id, "response", response, "error", fault, "absent", absent and 1 or 0, "since", since)
    owe(receiver, id, due)
  else
    close(id, status, response, fault)
  end
else
  call("ZREM", K.failing, receiver)
  close(id, status, response, fault)
  if word == "gone" then call("ZADD", K.gone, now + GONE_S * 1000, address_of(of[4], of[5])) end
  hurry_the_others()
end
line_up(receiver)
return status
