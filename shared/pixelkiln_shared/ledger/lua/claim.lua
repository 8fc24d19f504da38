-- ARGV: worker, token of this call, lease_ms; then per lane offered: lane, max_rows, resident (0/1), max_wait_ms,
-- holds_ms (-1: never).
-- Returns {lane, batch_key, suspect, id, attempt, rows, spec, waited, group, ...}, or false when nothing may be taken.
local worker, token, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local held = call("HGETALL", K.held .. worker)
local running = still_running(held)
local empty_handed = #running == 0

local function answer(jobs)
  local leader = jobs[1]
  return claimed({leader.lane, leader.batch_key, leader.suspect and 1 or 0}, jobs)
end

local before = taken_before(held, token)
if before[1] then return answer(before) end
if #running == 1 and call("HGET", K.job .. running[1], "suspect") then return false end

-- A suspect needs a worker that holds nothing, and under load none ever does. So one worker a lane is asked to
-- finish what it holds first; the others go on.
local function reserved(lane)
  local by = call("HMGET", K.lane .. lane, "reserved_by", "reserved_until")
  return by[1] and tonumber(by[2]) > now and by[1] or nil
end

local function must_drain(lane)
  local by = reserved(lane)
  if by then return by == worker end
  local first = call("ZRANGE", K.suspects .. lane, 0, 0)[1]
  if now - call("HGET", K.job .. first, "queued_at") < SUSPECT_PATIENCE_MS then return false end
  call("HSET", K.lane .. lane, "reserved_by", worker, "reserved_until", now + RESERVATION_MS)
  return true
end

-- Whether the next job of a lane has waited so long that no other model is loaded before it has run.
local function holds(lane, class, holds_ms)
  if holds_ms <= 0 then return holds_ms == 0 end
  local tenant = call("ZRANGE", K.heads .. lane .. ":" .. class, 0, 0)[1]
  local head = call("ZRANGE", K.queue .. lane .. ":" .. class .. ":" .. tenant, 0, 0)[1]
  local times = call("HMGET", K.job .. head, "queued_at", "created_at")
  return now - (times[1] or times[2]) >= holds_ms
end

-- What a lane has for this worker: the best class and its oldest job, how long the lane was passed over.
local function look(lane, max_rows, resident, max_wait_ms, holds_ms)
  local counts = waiting_in(lane)
  local suspects = empty_handed and counts[4] or 0
  local offer = {lane = lane, max_rows = max_rows, counts = counts, suspects = suspects, resident = resident}
  for place, class in ipairs(CLASSES) do
    if counts[place] > 0 then
      offer.place = place
      offer.sequence = tonumber(call("ZRANGE", K.heads .. lane .. ":" .. class, 0, 0, "WITHSCORES")[2])
      offer.holds = resident and holds(lane, class, holds_ms)
      break
    end
  end
  if not offer.place then
    if suspects == 0 then return nil end
    offer.place = #CLASSES + 1
    offer.sequence = tonumber(call("ZRANGE", K.suspects .. lane, 0, 0, "WITHSCORES")[2])
  end
  local waited = now - call("HGET", K.lane .. lane, "since")
  offer.overdue = waited > max_wait_ms and waited or -1
  return offer
end

local function better(a, b)
  if a.overdue ~= b.overdue then return a.overdue > b.overdue end
  if a.resident ~= b.resident then return a.resident end
  if a.place ~= b.place then return a.place < b.place end
  return a.sequence < b.sequence
end

local function choose_lane()
  local offers, for_me, held = {}, nil, false
  for at = 4, #ARGV, 5 do
    local lane = ARGV[at]
    local offer = look(lane, tonumber(ARGV[at + 1]), ARGV[at + 2] == "1", tonumber(ARGV[at + 3]),
      tonumber(ARGV[at + 4]))
    if empty_handed then
      if offer and offer.suspects > 0 and reserved(lane) == worker then for_me = offer end
    elseif waiting_in(lane)[4] > 0 and must_drain(lane) then
      return nil
    end
    held = held or (offer and offer.holds)
    offers[#offers + 1] = offer
  end
  local best
  for _, offer in ipairs(offers) do
    if held and not offer.resident then offer.overdue = -1 end
    if not best or better(offer, best) then best = offer end
  end
  return for_me or best, for_me ~= nil
end

-- A lower class that waits is passed over at most seven times running; `standard` moves one turn early, so that
-- both keep their bound when they fall due together.
local function choose_class(lane, counts)
  local passed = call("HMGET", K.lane .. lane, "passed:standard", "passed:bulk")
  local choice
  if counts[3] > 0 and tonumber(passed[2] or 0) >= 7 then
    choice = 3
  elseif counts[2] > 0 and tonumber(passed[1] or 0) >= 6 then
    choice = 2
  else
    choice = counts[1] > 0 and 1 or counts[2] > 0 and 2 or 3
  end
  for place = 2, 3 do
    local field = "passed:" .. CLASSES[place]
    if place == choice then
      call("HDEL", K.lane .. lane, field)
    elseif counts[place] > 0 then
      call("HINCRBY", K.lane .. lane, field, 1)
    end
  end
  return CLASSES[choice]
end

local function take_suspect(lane)
  call("HSET", K.lane .. lane, "since", now, "alone", 1)
  call("HDEL", K.lane .. lane, "reserved_by", "reserved_until")
  local job = read_job(call("ZRANGE", K.suspects .. lane, 0, 0)[1])
  take(job, worker, lease_ms, token .. ":1")
  return {job}
end

local function take_batch(offer)
  local lane = offer.lane
  call("HSET", K.lane .. lane, "since", now)
  call("HDEL", K.lane .. lane, "alone")
  local class = choose_class(lane, offer.counts)
  local first = call("ZRANGE", K.tenants .. lane .. ":" .. class, 0, 0, "WITHSCORES")
  call("HSET", K.lane .. lane, "clock:" .. class, first[2])
  call("ZREMRANGEBYSCORE", K.debts .. lane .. ":" .. class, "-inf", first[2])
  local leader = read_job(call("ZRANGE", K.queue .. lane .. ":" .. class .. ":" .. first[1], 0, 0)[1])
  take(leader, worker, lease_ms, token .. ":1")
  local taken = {leader}
  take_riders(taken, lane, leader.batch_key, offer.max_rows - leader.rows, worker, lease_ms, token)
  return taken
end

local offer, drained = choose_lane()
if not offer then return false end
local normal = offer.counts[1] + offer.counts[2] + offer.counts[3] > 0
-- Suspects and others take turns, so that neither starves.
if offer.suspects > 0 and (drained or not normal or not call("HGET", K.lane .. offer.lane, "alone")) then
  return answer(take_suspect(offer.lane))
end
return answer(take_batch(offer))
