-- Llama and Mistral dense: 4-bit weights in groups of 128, for Marlin and its kin.
-- The output head stays as it is: it costs the most in quality per byte saved.
return {
  name   = "llama-w4a16",
  model  = { model_type = { "llama", "mistral" } },
  scheme = "W4A16", group = 128, method = "mse",
  skip   = {},
  lm_head = false,
  rules  = { -- 8 bits where a few weights dominate the rest
    { "*.mlp.down_proj", scheme = "W8A16", when = function(w) return w.kurtosis > 30 end },
  },
  kernels = { prefer = { "marlin" }, fallback = { "awq", "wna16" } },
  output = { format = "compressed-tensors", shard = "5GB" },
  accept = { sqnr_db = 12, ppl_ratio = 1.02 },
}
