-- Bugs for layers and experts of floats on a device: what of a checkpoint a rank or an expert gets, and what its input becomes.
local ON, EXPERTS, MOE = "lua/nibble/methods/on_device.lua", "lua/nibble/cuda/experts.lua", "lua/nibble/methods/marlin_float_moe_cuda.lua"
local LINEAR, Q, FLOAT = "lua/nibble/methods/linear.lua", "lua/nibble/quantized.lua", "lua/nibble/methods/marlin_float.lua"
local DENSE = "lua/nibble/methods/marlin_float_cuda.lua"

return {
  spec = "spec/cuda_moe_float_spec.lua spec/cuda_layers_float_spec.lua spec/cuda_experts_spec.lua",
  bugs = {
    { "experts: all with the first one's scale", ON, "if #list > 1 then", "if #list > 1e9 then" },
    { "experts: up's input as gate's", EXPERTS, 'product(o, from, "w3", first)', 'product(o, from, "w13", first)' },
    { "experts: a row a pair taken for a row a token", EXPERTS,
      "q:size(1) ~= t:size(1) and with(blocks, { top = 1 }) or blocks", "blocks" },
    { "experts: gate and up together whatever their scales", MOE,
      "not gate.global:equal(up.global) or not same_inputs(gate, up)", "false" },
    { "experts: gate's scale for both inputs", MOE, " or not same_inputs(gate, up)", "" },
    { "experts: one input scale for all", MOE, "return s.inputs end", "return { s.inputs[1] } end" },
    { "experts: up lies where gate does", MOE, "up[part], 1, rows, 0, rows", "up[part], 1, 0, 0, rows" },
    { "experts: each rank has the first one's rows", MOE, "local a, b = L.rank * L.i + 1, (L.rank + 1) * L.i", "local a, b = 1, L.i" },
    { "experts: each rank adds w2's bias", MOE, '(shard ~= "w2" or L.rank == 0) and', "true and" },
    { "experts: global scales of the first weight for all", EXPERTS, "local kept = copied[m]", "local kept = select(2, next(copied))",
      "if kept and kept.of == g and kept.device == device", "if kept" },
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
