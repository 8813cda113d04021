-- Bugs in what keeps inputs in f32 until they are quantized, in models on a device.
local runner, eval = "lua/nibble/methods/runner.lua", "lua/nibble/eval.lua"

return { spec = "spec/cuda_eval_spec.lua", bugs = {
  { "inputs rounded on their way", runner, "if given ~= L.dtype and not method.keeps_f32 then", "if given ~= L.dtype then" },
  { "methods that round", runner, "if method and exact and not method.keeps_f32 then", "if false then" },
  { "the dtype that is asked for", eval, "cache_bytes = o.cache_bytes, dtype = o.dtype }", "cache_bytes = o.cache_bytes }" },
} }
