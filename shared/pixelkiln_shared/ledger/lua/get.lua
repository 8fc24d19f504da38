-- ARGV: ids. Returns a record each.
local records = {}
for i, id in ipairs(ARGV) do records[i] = whole_record(id) end
return records
