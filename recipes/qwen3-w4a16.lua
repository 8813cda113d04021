-- Qwen3 dense (and Qwen2, which lacks only the q/k norms): 4-bit weights for Marlin.
return {
  name   = "qwen3-w4a16",
  model  = { model_type = { "qwen3", "qwen2" } },
  scheme = "W4A16", group = 128, method = "mse",
  skip   = { "re:^visual%.", "re:^model%.visual%." }, -- vision towers of the VL siblings
  lm_head = false,
  kernels = { prefer = { "marlin" }, fallback = { "awq", "wna16" } },
  output = { format = "compressed-tensors", shard = "5GB" },
  accept = { sqnr_db = 12 },
}
