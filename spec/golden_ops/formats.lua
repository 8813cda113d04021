-- Golden operations: whole checkpoints that compressed-tensors wrote and decompressed.
local nb = require "nibble"

local ops = {}

-- model.safetensors + config.json -> expected_dense.safetensors. Layers of formats that are not readable yet
-- are not covered.
function ops.ct_checkpoint_decompress(case)
  local ck = assert(nb.open((case.path:gsub("/+$", ""))))
  local expected = assert(nb.open(ck.path .. "/expected_dense.safetensors"))
  local compared = 0
  for _, want in ipairs(expected.tensors) do
    local w, msg, code = ck:weight(want.name, want.dtype)
    if code == "eunsupported" then return { not_covered = msg } end
    assert(w, msg)
    if not w:equal(assert(expected:tensor(want.name))) then return { failure = want.name .. " differs" } end
    compared = compared + 1
  end
  return { failure = compared == 0 and "no layer was compared" or nil }
end

return ops
