-- Bugs for dense layers of floats on a device: what of a checkpoint a rank gets, and what its input becomes.
local LINEAR, Q, FLOAT = "lua/nibble/methods/linear.lua", "lua/nibble/quantized.lua", "lua/nibble/methods/marlin_float.lua"
local DENSE = "lua/nibble/methods/marlin_float_cuda.lua"

return {
  spec = "spec/cuda_layers_float_spec.lua spec/cuda_methods_float_spec.lua",
  bugs = {
    { "a rank's columns with the first groups' scales", Q, "scales = slices(q.scales, 1, first, count)",
      "scales = slices(q.scales, 1, 0, count)" },
    { "a rank's columns are the first", Q, "slices(q.codes, 1, a - 1, b - a + 1)", "slices(q.codes, 1, 0, b - a + 1)" },
    { "parts of a layer one over the other", Q, "      at = at + rows\n", "" },
    { "parts of a layer from the first one's rows", LINEAR, "      n = n + L.outputs[part]\n", "" },
    { "groups torn apart between ranks", LINEAR, "L.k % columns ~= 0 then", "L.k % 16 ~= 0 then" },
    { "inputs as they are", DENSE, "if not a or not L.form then", "if true then" },
    { "the input's scale of a tensor of its own", DENSE, "act.quantize_dequantize(there, a, L.input)",
      "act.quantize_dequantize(there, a, { scale = 1, global = 1 })" },
    { "NaN among the codes", FLOAT, "if p[i] % cut == cut - 1 then", "if p[i] == cut then" },
  },
}
