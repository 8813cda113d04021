-- nibble: the workbench as one Lua module. `local nb = require "nibble"`.
--
-- Parts load when they are first used, so that a script which only looks at a
-- header starts in milliseconds.
local ffi = require "nibble.ffi"

local nb = { version = ffi.version }

-- name in nb = module that provides it; a function or the module itself.
local parts = {
  tensor = { "nibble.tensor", "new" }, compare = { "nibble.tensor", "compare" },
  open = { "nibble.checkpoint", "open" },
  json = { "nibble.json" }, checkpoint = { "nibble.checkpoint" }, scheme = { "nibble.scheme" },
  layout = { "nibble.layout" }, marlin = { "nibble.marlin" }, quant = { "nibble.quant" }, formats = { "nibble.formats" },
  recipe = { "nibble.recipe", "load" }, plan = { "nibble.plan", "new" }, convert = { "nibble.convert" },
  tokenizer = { "nibble.tokenizer" }, models = { "nibble.models" }, compute = { "nibble.compute" },
  gemm = { "nibble.gemm" }, moe = { "nibble.moe" },
  act = { "nibble.act" }, calibrate = { "nibble.calibrate" }, eval = { "nibble.eval" }, doctor = { "nibble.doctor" },
  check = { "nibble.check" }, repair = { "nibble.repair" }, policy = { "nibble.policy" }, diff = { "nibble.diff" },
  stats = { "nibble.stats" }, sweep = { "nibble.sweep" }, report = { "nibble.report" },
  cuda = { "nibble.cuda" }, backends = { "nibble.backends" }, select = { "nibble.select" }, explain = { "nibble.select", "explain" },
}

return setmetatable(nb, {
  __methods = parts, -- for completion
  __index = function(t, key)
    local part = parts[key]
    if not part then return nil end
    local module = require(part[1])
    local value = part[2] and module[part[2]] or module
    rawset(t, key, value)
    return value
  end,
})
