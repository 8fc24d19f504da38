-- ARGV: group, limit. Returns how many jobs were touched.
local touched, limit = 0, tonumber(ARGV[2])
for _, kind in ipairs(KINDS) do
  for _, status in ipairs(UNFINISHED) do
    local found = K.index .. "g:" .. ARGV[1] .. ":" .. kind .. ":" .. status
    local ids = limit > touched and call("ZRANGE", found, 0, limit - touched - 1) or {}
    for _, id in ipairs(ids) do
      cancel(read_job(id))
      touched = touched + 1
    end
  end
end
settle(SETTLE_BUDGET)
return touched
