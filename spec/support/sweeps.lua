-- What specs of sweeps compare.
local nb = require "nibble"

local M = {}

--- figures(dir) -> the results of a sweep's folder without what depends on where, when and how often a job ran.
function M.figures(dir)
  local out = {}
  for i, r in ipairs(assert(nb.sweep.read(dir))) do
    for _, k in ipairs { "seconds", "seconds_run", "seconds_eval", "peak_bytes", "attempts", "host", "processor" } do r[k] = nil end
    out[i] = r
  end
  return out
end

return M
