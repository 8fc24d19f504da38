-- Shared by the questions, which change nothing. They are scripts, so that each sees one moment, and not MULTI,
-- which a full Redis refuses.

-- Returns {fields and values, spec, outcome}; the fields are empty when there is no such job.
local function whole_record(id)
  return {call("HGETALL", K.job .. id), call("GET", K.spec .. id), call("GET", K.outcome .. id)}
end
