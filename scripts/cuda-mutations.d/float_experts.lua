-- Bugs for experts of floats on a device: what of a checkpoint an expert gets, and what its input becomes.
local ON, EXPERTS, MOE = "lua/nibble/methods/on_device.lua", "lua/nibble/cuda/experts.lua", "lua/nibble/methods/experts_cuda.lua"

return {
  spec = "spec/cuda_moe_float_spec.lua spec/cuda_experts_spec.lua",
  bugs = {
    { "all with the first one's scale", ON, "if #list > 1 then", "if #list > 1e9 then" },
    { "up's input as gate's", EXPERTS, 'product(o, from, "w3", first)', 'product(o, from, "w13", first)' },
    { "a row a pair taken for a row a token", EXPERTS,
      "q:size(1) ~= t:size(1) and with(blocks, { top = 1 }) or blocks", "blocks" },
    { "gate and up together whatever their scales", MOE,
      "not gate.global:equal(up.global) or not same_inputs(gate, up)", "false" },
    { "gate's scale for both inputs", MOE, " or not same_inputs(gate, up)", "" },
    { "one input scale for all", MOE, "return s.inputs end", "return { s.inputs[1] } end" },
    { "up lies where gate does", MOE, "up[part], 1, rows, 0, rows", "up[part], 1, 0, 0, rows" },
    { "each rank has the first one's rows", MOE, "local a, b = L.rank * L.i + 1, (L.rank + 1) * L.i", "local a, b = 1, L.i" },
    { "each rank adds w2's bias", MOE, '(shard ~= "w2" or L.rank == 0) and', "true and" },
    { "global scales of the first weight for all", EXPERTS, "local kept = copied[m]", "local kept = select(2, next(copied))",
      "if kept and kept.of == g and kept.device == device", "if kept" },
  },
}
