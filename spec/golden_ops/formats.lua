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

-- Names that the table gives weights and activations.
local weights = { w4g128 = "W4A16", w4g128a = "W4A16_ASYM", w8ch = "W8A16 channel", w4ch = "W4A16 channel", w3g = "W3A16",
  w8t = "W8A16 tensor", fp8t = "FP8A16 tensor", fp8c = "FP8A16", fp8b = "FP8A16 block128x128", nvfp4 = "NVFP4A16", mxfp4 = "MXFP4A16",
  mxfp8 = "MXFP8A16" }
local inputs = { i8tok = "int8:token", i8ten = "int8:tensor:static", i8tok_asym = "int8:token:asym", f8tok = "fp8:token",
  f8ten = "fp8:tensor:static", f8g128 = "fp8:g128", nvfp4 = "fp4:tensor_group:g16:local", mxfp4 = "fp4:g32", mxfp8 = "fp8:g32:e8m0" }

-- Which of compressed-tensors' formats a scheme gets.
function ops.infer_module_format(case)
  local results = {}
  for i, row in ipairs(case.rows) do
    local input = row.input ~= nb.json.null and assert(inputs[row.input], row.input) or nil
    local s = nb.scheme.parse(assert(weights[row.weights], row.weights), { activations = input })
    results[i] = { result = require("nibble.formats.compressed_tensors").storage(s) }
  end
  return results
end

return ops
