-- Any architecture: 4-bit weights in groups of 128, by round to nearest as llm-compressor does it.
return {
  name   = "any-w4a16",
  scheme = "W4A16", group = 128, method = "rtn", options = { arithmetic = "dtype" },
  lm_head = false, -- routers of experts stay as they are by themselves
  output = { format = "compressed-tensors", shard = "5GB" },
}
