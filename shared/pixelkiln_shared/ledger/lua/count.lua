-- ARGV: group or "", index names. Returns {the group's fields and values, the size of each index}.
local sizes = {}
for at = 2, #ARGV do sizes[at - 1] = call("ZCARD", ARGV[at]) end
return {ARGV[1] ~= "" and call("HGETALL", K.group .. ARGV[1]) or {}, sizes}
