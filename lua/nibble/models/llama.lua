-- llama: Llama 1 to 3 (rope with or without llama3 scaling, grouped heads).
local M = {
  name = "llama", title = "LlamaForCausalLM",
  embedding = "model.embed_tokens", lm_head = "lm_head", final_norm = "model.norm", router = {},
  fused = { { "q_proj", "k_proj", "v_proj", as = "qkv_proj" }, { "gate_proj", "up_proj", as = "gate_up_proj" } },
  defaults = { rms_norm_eps = 1e-6, rope_theta = 10000, hidden_act = "silu", max_position_embeddings = 2048 },
}

function M.layer(f, i)
  local p, get = "model.layers." .. i, f.c.get
  local bias = get "attention_bias" == true
  f:norm(p .. ".input_layernorm")
  f:attention(p .. ".self_attn", { qkv_bias = bias, o_bias = bias })
  f:residual()
  f:norm(p .. ".post_attention_layernorm")
  f:mlp(p .. ".mlp", { "gate_proj", "up_proj", "down_proj" }, f.c.intermediate, get "mlp_bias" == true)
  f:residual()
end

return M
