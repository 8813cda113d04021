-- Bugs for experts of integers with 8-bit inputs on a device.
local ON, EXPERTS, MOE = "lua/nibble/methods/on_device.lua", "lua/nibble/cuda/experts.lua", "lua/nibble/methods/marlin_a8_moe_cuda.lua"
local STACK, COMMON = "lua/nibble/methods/marlin.lua", "lua/nibble/methods/experts_cuda.lua"

return {
  spec = "spec/cuda_moe_a8_spec.lua",
  bugs = {
    { "what codes stand for instead of codes", MOE, 'form.codes = form.activations.type == "int" and "int8" or "fp8"', "" },
    { "codes of the first expert's static scale for all", MOE, "if act.by_expert(form.activations, numbers) then return end", "" },
    { "int8 for FP8", MOE, 'form.activations.type == "int" and "int8" or "fp8"', '"int8"' },
    { "one power of two for all experts", MOE, "factors:set(e, factor)", "factors:set(e, select(2, marlin.lifted(m.scales[1], m.dtype)))" },
    { "scales as they are", STACK, "layout.marlin.multiply_scales(scales, 2 ^ (LARGEST - e), dtype), 2 ^ (e - LARGEST)",
      "layout.marlin.multiply_scales(scales, 1, dtype), 1" },
    { "the power of two is not taken off", EXPERTS, 'm.global == nil and "scale_factor" or "global"', '"global"' },
    { "scales of rows left out", EXPERTS, "scales and { row_scale = scales }", "nil" },
    { "FP8's codes are not folded", STACK, 'prepare_all({ given }, { "codes", "device"', 'prepare_all({ given }, { "device"' },
    { "words of 16-bit products", STACK, "layout.marlin.repack(m.words, m.bits, m.a8, m.out.perm)",
      "layout.marlin.repack(m.words, m.bits, false, m.out.perm)" },
    { "halves filled up as one", COMMON, 'w == "w13" and both and 2 or 1', "1" },
    { "static scales of another projection", ON, "if form.codes then return act.quantize(x, a, scales[1]) end",
      "if form.codes then return act.quantize(x, a, form.scales.w2[1]) end" },
    { "inputs with zero-points, which nothing takes off", "lua/nibble/backends/nibble_cuda.lua",
      '{ "int4", "fp8 tensor static" } },\n            { "symmetric_activations" },', '{ "int4", "fp8 tensor static" } },' },
  },
}
