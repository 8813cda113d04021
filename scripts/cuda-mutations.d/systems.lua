-- Bugs in what brings the systems' layers into the device's form.
local forms, experts = "lua/nibble/methods/device_forms.lua", "lua/nibble/methods/device_experts.lua"
local device, marlin = "lua/nibble/methods/on_device.lua", "lua/nibble/methods/marlin.lua"

return { spec = "spec/cuda_systems_spec.lua", bugs = {
  { "zero-points taken as they are", forms,
    "layout.gptq.unpack_zeros(zeros, method.bits, true, L.n)", "layout.gptq.unpack_zeros(zeros, method.bits, false, L.n)" },
  { "columns not padded", forms, "or n % 64 ~= 0 then", "then" },
  { "gate and up padded as one", experts, [[m.dtype, m.on, m.halves = L.dtype, device, w == "w13" and L.s or 1
    local msg, code
    out[w], msg, code = marlin.stack(]], [[m.dtype, m.on, m.halves = L.dtype, device, 1
    local msg, code
    out[w], msg, code = marlin.stack(]] },
  { "scales of groups permuted as one group's", marlin,
    "m.scale_k or k, m.group, m.a8)", "m.scale_k or k, -1, m.a8)" },
  { "halves stay swapped", experts, [[elseif form == "swapped" and gated then]], [[elseif form == "swapped" and not gated then]] },
  { "rows shuffled once more", experts,
    "layout.experts.inverse_order(layout.experts.shuffled_rows(n, gated))", "layout.experts.shuffled_rows(n, gated)" },
  { "filled up rows taken for up's", experts, "math.floor(r / per) * half + r % per", "r" },
  { "an input scale for its reciprocal", experts, "kernel.emulated and s:get(e) or 1 / s:get(e)", "s:get(e)" },
  { "the bias of w2 is left out", experts,
    [[(w == "w13" or L.rank == 0) and L:get(w .. "_bias") or nil]], [[w == "w13" and L:get(w .. "_bias") or nil]] },
  { "a cut K has its own groups", marlin, "m.scales:size(m.scales.ndim - 1) * m.group or m.k", "m.k or m.k" },
  { "inputs are not quantized", device, "quantize = form.activations and quantize or nil", "quantize = nil" },
  { "experts' 8-bit activations taken for 16", experts, "activations = activations_of(method), global", "global" },
  { "the global scale of int8 scales left out", experts, [[global = L:get(w .. "_input_global_scale") }]], "global = nil }" },
  { "folded codes repacked apart from their zero-points", experts, "(method.monolithic or activations_of(method)) and",
    "method.monolithic and" },
} }
