-- Consumer llama.cpp: GGUF files only, every GGML type on the CPU, nearly every one on a GPU; a layer's K must hold
-- whole blocks of its type (32 values, 256 for k- and i-quants).
local gguf = { "only_layout", "gguf", advice = "convert it to GGUF first" }
local small = { "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4" }
local super = { "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
  "IQ3_S", "IQ4_XS" }
local ternary = { "TQ1_0", "TQ2_0" }

local function types(...)
  local out = { "ggml" }
  for _, list in ipairs { ... } do
    for _, name in ipairs(list) do out[#out + 1] = name end
  end
  return out
end

local gpu = { gguf, types(small, super), { "whole_blocks" } }
local rows = {
  { name = "ggml-cuda", checks = { gguf, { "platform", "cuda" }, { "capability", min = 50 }, gpu } },
  { name = "ggml-hip", checks = { gguf, { "platform", "rocm" }, gpu } },
  { name = "ggml-sycl", checks = { gguf, { "platform", "xpu" }, gpu } },
  { name = "ggml-cpu", note = "on a machine with a GPU, such layers stay in main memory",
    checks = { gguf, types(small, super, ternary), { "whole_blocks" } } },
}

return {
  name = "llama.cpp",
  about = "llama.cpp: GGUF only",
  tables = {
    { name = "GGUF linear", kind = "linear", when = {}, rows = rows, quant = { none = true } },
    { name = "GGUF MoE", kind = "moe", when = {}, rows = rows, quant = { none = true } },
  },
}
