-- method_configs: what the specs of quantization configs ask and expect (M.fused: an architecture's fused modules).
local M = { fused = { qkv_proj = { "q_proj", "k_proj", "v_proj" }, gate_up_proj = { "gate_proj", "up_proj" } } }

--- refused(code, ok, msg, found) -> msg of nil, msg, code, which must have this code
function M.refused(code, ok, msg, found)
  assert(ok == nil)
  assert(code == found, found)
  return msg
end

--- linear(name, n, k [, k_full]) and experts(name, hidden, intermediate) -> what a config is asked about
function M.linear(name, n, k, k_full) return { name = name, kind = "linear", n = n, k = k, k_full = k_full or k } end
function M.experts(name, hidden, intermediate)
  return { name = name, kind = "moe", hidden = hidden, intermediate = intermediate }
end

return M
