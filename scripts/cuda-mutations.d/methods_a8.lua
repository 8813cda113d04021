-- Bugs in what brings layers with 8-bit activations onto the device.
local method, gemm, forms = "lua/nibble/methods/marlin_a8_cuda.lua", "lua/nibble/gemm.lua", "lua/nibble/methods/device_forms.lua"
local table_of, predicates = "lua/nibble/backends/nibble_cuda.lua", "lua/nibble/backends/predicates.lua"
local marlin = "lua/nibble/methods/marlin.lua"

return { spec = "spec/cuda_methods_a8_spec.lua spec/cuda_systems_spec.lua", bugs = {
  { "the peers' codes, whose scales are others", method, "act.quantize(x, self.config.scheme.activations, { scale = L.input_scale })",
    "layout.marlin.quantize_activations(x, L.matrix.activations)" },
  { "codes of rounded inputs", method, "local codes, scales, code = act.quantize(x,",
    "local codes, scales, code = act.quantize(x:cast(L.dtype)," },
  { "the static scale is 1", method, "L.input_scale = q.input_scale:get(1)", "L.input_scale = 1" },
  { "scales too small for f16", marlin, "2 ^ (LARGEST - e), dtype), 2 ^ (e - LARGEST)", "1, dtype), 1" },
  { "scales too large for f16", marlin, "local LARGEST = 6", "local LARGEST = 12" },
  { "groups taken for one", method, "q.groups > 1 and s.group or -1", "-1" },
  { "zero-points left out", method, "m.zeros = q.zeros and layout.awq.pack_zeros(q.zeros, s.bits)",
    "m.zeros = q.zeros and layout.awq.pack_zeros(q.zeros:clone():fill(8), s.bits)" },
  { "codes not folded for FP8", method, [[local STEPS = { "codes", "pad",]], [[local STEPS = { "pad",]] },
  { "bias in its plain order", method, "layout.marlin.permute_bias(padded):to", "padded:to" },
  { "columns of the padding", method, "w.outputs = w.words:size(1) * 16, w.words:size(2) * 2 / q.scheme.bits, L.n",
    "w.outputs = w.words:size(1) * 16, w.words:size(2) * 2 / q.scheme.bits, nil" },
  { "the scales' factor left out", gemm, "factor = factor * (number(m.scale_factor) or 1)", "factor = factor * 1" },
  { "int16 scales where they are floats", gemm,
    [[elseif m.activations == "int8" and m.global then]], [[elseif m.activations == "int8" then]] },
  { "a row more before inputs are quantized", "lua/nibble/methods/on_device.lua",
    "flat:size(1) >= form.least", "flat:size(1) > form.least" },
  { "narrow words in the order for wide inputs", forms, [[m.activations, m.dtype = "int8", L.dtype]], [[m.dtype = L.dtype]] },
  { "any group", predicates, "g == -1 or g == 32 or g == 64 or g % 128 == 0 or q.k and g >= q.k", "true" },
  { "FP8 inputs with int8 weights", table_of, [[{ "mxfp4", "fp8 token" },]], [[{ "mxfp4", "fp8 token" }, { "int8", "fp8 token" },]] },
} }
