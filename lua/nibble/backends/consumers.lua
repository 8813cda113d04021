-- backends.consumers: which consumers there are, newest rules first, and the data files their tables are in.
return {
  { name = "vllm-0.33", files = { "vllm_0_33", "vllm_0_33_moe" } },
  { name = "document-era", files = { "document_era" } },
  { name = "pymllm", files = { "pymllm" } },
  { name = "inc-xpu", files = { "inc_xpu" } },
  { name = "inc-cpu", files = { "inc_cpu" } },
  { name = "inc-cuda", files = { "inc_cuda" } },
  { name = "llama.cpp", files = { "llama_cpp" } },
  { name = "nibble", files = { "nibble_cpu", "nibble_cuda" } },
}
