-- ARGV: tenant, group or "", newest score, limit, index names. Returns {{id, sequence, record}, ...}, newest first, one
-- more than the limit when there are more. Reads at most that many entries of each index.
local tenant, group, newest, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if group ~= "" and call("HGET", K.group .. group, "tenant") ~= tenant then return {} end

local entries = {}
for at = 5, #ARGV do
  local found = call("ZREVRANGEBYSCORE", ARGV[at], newest, "-inf", "WITHSCORES", "LIMIT", 0, limit + 1)
  for i = 1, #found, 2 do entries[#entries + 1] = {found[i], tonumber(found[i + 1])} end
end
table.sort(entries, function(a, b) return a[2] > b[2] end)

local page = {}
for i = 1, math.min(#entries, limit + 1) do
  page[i] = {entries[i][1], entries[i][2], whole_record(entries[i][1])}
end
return page
