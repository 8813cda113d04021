-- mixtral: Mistral's attention; every MLP is a choice among experts w1 (gate),
-- w3 (up), w2 (down), with the chosen ones' weights normalized.
local M = {
  name = "mixtral", title = "MixtralForCausalLM",
  embedding = "model.embed_tokens", lm_head = "lm_head", final_norm = "model.norm",
  router = { "block_sparse_moe.gate" },
  fused = { { "q_proj", "k_proj", "v_proj", as = "qkv_proj" }, { "w1", "w3", as = "w13" } },
  defaults = { rms_norm_eps = 1e-5, rope_theta = 1000000, hidden_act = "silu", max_position_embeddings = 131072,
    num_key_value_heads = 8, num_local_experts = 8, num_experts_per_tok = 2 },
}

function M.check(c, whole)
  if c.get "sliding_window" ~= nil then c.window = whole(c.get, "sliding_window") end
  c.experts = { names = { "w1", "w3", "w2" }, count = whole(c.get, "num_local_experts"),
    top = whole(c.get, "num_experts_per_tok"), normalize = true, intermediate = c.intermediate }
end

function M.layer(f, i)
  local p = "model.layers." .. i
  f:norm(p .. ".input_layernorm")
  f:attention(p .. ".self_attn", { sliding = f.c.window })
  f:residual()
  f:norm(p .. ".post_attention_layernorm")
  f:experts(p .. ".block_sparse_moe", f.c.experts)
  f:residual()
end

return M
