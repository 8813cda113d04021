-- backends.selection: how consumers choose quantization methods: data for nibble.select, which knows no consumer.
--
--   first     the consumer that is meant where none is named
--   methods   quant_method of a checkpoint -> {config = which class (awq | gptq | inc | ct | pymllm | scheme),
--             dialect = of that class, plain = the dialect where that one doesn't take over, actorder = false: groups
--             in act-order are refused}; scheme: no class of its own, the tensors say what a layer is
--   fuses     qkv_proj and gate_up_proj are one layer, experts are one layer; experts: these alone
--   policy    "raise": a shape that does not fit is refused (C-05); else the consumer falls back
--   platform  the only platform there is
--   own       methods with kernels of their own that no table lists
local vllm = {
  fuses = true,
  methods = {
    awq = { config = "awq", dialect = "auto_awq" }, gptq = { config = "gptq" }, gptq_v2 = { config = "gptq" },
    ["auto-round"] = { config = "inc" }, inc = { config = "inc" },
    ["compressed-tensors"] = { config = "ct", actorder = false },
  },
}
for _, name in ipairs { "fp8", "fbgemm_fp8", "modelopt", "modelopt_fp4", "modelopt_mixed", "quark", "torchao",
  "experts_int8", "mxfp4", "gpt_oss_mxfp4", "mxfp8", "deepseek_v4_fp8" } do
  vllm.methods[name] = { config = "scheme" }
end

local inc = { ["auto-round"] = { config = "inc" }, inc = { config = "inc" } }
-- What this workbench reads, it runs.
local any = { ["*"] = { config = "scheme" } }

return {
  first = "vllm-0.33",
  ["vllm-0.33"] = vllm,
  ["document-era"] = { fuses = true, own = { moe_wna16 = true }, methods = {
    awq = { config = "awq", dialect = "awq_marlin", plain = "awq" }, gptq = { config = "gptq" },
    ["auto-round"] = { config = "inc" }, inc = { config = "inc" }, ["compressed-tensors"] = { config = "ct" },
  } },
  pymllm = { fuses = true, policy = "raise", methods = {
    awq = { config = "pymllm" }, awq_marlin = { config = "pymllm" },
  } },
  ["inc-xpu"] = { fuses = true, platform = "xpu", methods = inc },
  ["inc-cpu"] = { fuses = true, platform = "cpu", methods = inc },
  ["inc-cuda"] = { fuses = true, platform = "cuda", methods = inc },
  ["llama.cpp"] = { methods = any },
  nibble = { experts = true, methods = any },
  -- A consumer that is added with tables alone.
  default = { methods = any },
}
