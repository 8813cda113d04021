-- What the specs of the oracle's tables share: queries made from queries, a backend's reason, the chosen one.
local backends = require "nibble.backends"

local M = {}

--- with(base, more, ...) -> a query that has all of them, later ones first.
function M.with(base, ...)
  local out = {}
  for _, t in ipairs { base, ... } do
    for k, v in pairs(t) do out[k] = v end
  end
  return out
end

--- why(q, backend) -> the backend's reason, its requirement; nil when it takes the query.
function M.why(q, backend)
  local reason, requirement
  for _, r in ipairs(assert(backends.reasons(q))) do
    if r.backend == backend then
      if r.ok then return nil end
      reason, requirement = r.reason, r.requirement
    end
  end
  assert(reason, "no backend " .. backend .. " in the table")
  return reason, requirement
end

--- chosen(q) -> the chosen backend's name | nil, msg, result
function M.chosen(q)
  local r, msg = backends.select(q, { change = false })
  return r and r.backend, msg, r
end

local sym4 = { type = "int", bits = 4, group = 128, symmetric = true }

--- weight(more) -> a symmetric 4-bit weight with groups of 128, changed by `more`.
function M.weight(o) return M.with(sym4, o) end

--- linear(more, ...), experts(more, ...) -> a layer of an A100 with such weights for vllm-0.33, changed.
function M.linear(...)
  return M.with({ consumer = "vllm-0.33", kind = "linear", device = "sm_80", k = 4096, n = 11008, weight = sym4 }, ...)
end

function M.experts(...)
  return M.with({ consumer = "vllm-0.33", kind = "moe", device = "sm_80", hidden = 2048, intermediate = 768,
                  experts = 128, top = 8, weight = sym4 }, ...)
end

return M
