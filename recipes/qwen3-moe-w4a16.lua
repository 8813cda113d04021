-- Qwen3-MoE and Mixtral: experts and attention in 4 bits, the router untouched
-- (it decides which experts run; consumers load it unquantized).
return {
  name   = "qwen3-moe-w4a16",
  model  = { model_type = { "qwen3_moe", "qwen2_moe", "mixtral" } },
  scheme = "W4A16", group = 128, method = "mse",
  skip   = { "*.mlp.gate", "*.mlp.shared_expert_gate", "*.block_sparse_moe.gate" },
  lm_head = false,
  kernels = { prefer = { "marlin" }, fallback = { "wna16" } },
  output = { format = "compressed-tensors", shard = "5GB" },
}
