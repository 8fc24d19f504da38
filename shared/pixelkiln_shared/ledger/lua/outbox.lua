-- What receivers are told about jobs and groups that ended: written by the move that ends them, in the same script, and
-- delivered by any API process. A receiver is the origin of a URL (RFC 6454), by its hash; each has a mailbox.

local UNENDED = {"blocked", "queued", "running", "canceling"}
local unwritten -- while `submit` writes: group -> a job of it that ended already

local function receiver_of(url)
  return redis.sha1hex(string.lower(string.match(url, "^%a+://[^/?#]*") or url))
end

local function address_of(tenant, url)
  return redis.sha1hex(tenant .. "\n" .. url)
end

-- Whether a receiver failed the last time, and took nothing since.
local function fails(receiver)
  return tonumber(call("ZSCORE", K.failing, receiver) or 0) > now - FAILING_S * 1000
end

-- How many couriers may be with a receiver at once; one that fails keeps a single one waiting.
local function room(receiver, most)
  if fails(receiver) then most = 1 end
  return most - (call("HGET", K.aloft_to, receiver) or 0)
end

-- Puts a receiver where its first delivery stands.
local function line_up(receiver)
  local first = call("ZRANGE", K.mailbox .. receiver, 0, 0, "WITHSCORES")
  if first[1] then
    call("ZADD", K.receivers, first[2], receiver)
  else
    call("ZREM", K.receivers, receiver)
  end
end

local function owe(receiver, id, due)
  call("HSET", K.delivery .. id, "due_at", due)
  call("ZADD", K.mailbox .. receiver, due, id)
  line_up(receiver)
end

local function come_back(receiver, id)
  call("ZREM", K.aloft, id)
  if call("HINCRBY", K.aloft_to, receiver, -1) <= 0 then call("HDEL", K.aloft_to, receiver) end
end

-- The id is the same at each try and never comes again: the subject's own digits, and how many it had before.
local function post(event, subject, number, tenant, url)
  local id = "msg_" .. string.sub(subject, -26) .. "_" .. number
  local receiver, place = receiver_of(url), call("INCR", K.posted)
  call("HSET", K.delivery .. id, "event", event, "subject", subject, "tenant", tenant, "url", url, "status", "pending",
    "receiver", receiver, "sequence", place, "created_at", now, "since", now, "attempts", 0)
  call("ZADD", K.deliveries .. tenant .. ":pending", place, id)
  owe(receiver, id, now)
end

local function post_job(job)
  if not string.find(" " .. job.notify .. " ", " " .. job.status .. " ", 1, true) then return end
  local number = call("HINCRBY", K.job .. job.id, "notified", 1)
  post("job." .. job.status, job.id, number, job.tenant, call("GET", K.webhook .. job.id))
end

-- Tells that a group is complete when this was the last of its jobs to end.
local function group_lost_one(job)
  if unwritten then
    unwritten[job.group] = job
    return
  end
  local url = call("HGET", K.group .. job.group, "webhook")
  if not url then return end
  local open = {}
  for _, status in ipairs(UNENDED) do
    for _, kind in ipairs(KINDS) do open[#open + 1] = K.index .. "g:" .. job.group .. ":" .. kind .. ":" .. status end
  end
  if call("EXISTS", unpack(open)) > 0 then return end
  local number = call("HINCRBY", K.group .. job.group, "notified", 1)
  post("group.completed", job.group, number, job.tenant, url)
end

-- Ends a delivery, as delivered or failed.
local function close(id, status, response, fault)
  local of = call("HMGET", K.delivery .. id, "tenant", "status", "sequence")
  call("ZREM", K.deliveries .. of[1] .. ":" .. of[2], id)
  call("ZADD", K.deliveries .. of[1] .. ":" .. status, of[3], id)
  call("HSET", K.delivery .. id, "status", status, "response", response, "error", fault)
  call("HDEL", K.delivery .. id, "due_at")
  call("ZADD", K.outdated, now + (status == "delivered" and DELIVERED_MS or UNDELIVERED_MS), id)
end
