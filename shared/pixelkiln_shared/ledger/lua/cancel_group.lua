-- ARGV: group, limit. Returns how many jobs were touched. Children go before their parents (they are younger), so
-- that they end as canceled and not as failed.
local touched, limit = 0, tonumber(ARGV[2])
for _, status in ipairs(UNFINISHED) do
  for _, kind in ipairs(KINDS) do
    local found = K.index .. "g:" .. ARGV[1] .. ":" .. kind .. ":" .. status
    local ids = limit > touched and call("ZREVRANGE", found, 0, limit - touched - 1) or {}
    for _, id in ipairs(ids) do
      cancel(read_job(id))
      touched = touched + 1
    end
  end
end
settle(SETTLE_BUDGET)
return touched
