-- Returns how many receivers fail, how many URLs are left alone, and for how many milliseconds the first delivery is due.
local first = call("ZRANGE", K.receivers, 0, 0, "WITHSCORES")[2]
return {
  call("ZCOUNT", K.failing, "(" .. string.format("%.0f", now - FAILING_S * 1000), "+inf"),
  call("ZCOUNT", K.gone, "(" .. string.format("%.0f", now), "+inf"),
  math.max(0, now - (first or now)),
}
