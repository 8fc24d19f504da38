-- ARGV: newest score, limit, index names. Returns {id, fields and values} of each, newest first, one more than the limit
-- when there are more.
local newest, limit = ARGV[1], tonumber(ARGV[2])
local entries = {}
for at = 3, #ARGV do
  local found = call("ZREVRANGEBYSCORE", ARGV[at], newest, "-inf", "WITHSCORES", "LIMIT", 0, limit + 1)
  for i = 1, #found, 2 do entries[#entries + 1] = {found[i], tonumber(found[i + 1])} end
end
table.sort(entries, function(a, b) return a[2] > b[2] end)
local page = {}
for i = 1, math.min(#entries, limit + 1) do
  page[i] = {entries[i][1], call("HGETALL", K.delivery .. entries[i][1])}
end
return page
