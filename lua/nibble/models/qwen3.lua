-- qwen3: Llama's block with q and k normed over each head, a head size of its own,
-- and Qwen2's rule for sliding windows.
local windows = require "nibble.models.windows"

local M = {
  name = "qwen3", title = "Qwen3ForCausalLM",
  embedding = "model.embed_tokens", lm_head = "lm_head", final_norm = "model.norm", router = {},
  fused = { { "q_proj", "k_proj", "v_proj", as = "qkv_proj" }, { "gate_proj", "up_proj", as = "gate_up_proj" } },
  defaults = { rms_norm_eps = 1e-6, rope_theta = 10000, hidden_act = "silu", max_position_embeddings = 32768,
    num_key_value_heads = 32, sliding_window = 4096, max_window_layers = 28 },
}

M.check = windows.check

function M.layer(f, i)
  local p = "model.layers." .. i
  local bias = f.c.get "attention_bias" == true
  f:norm(p .. ".input_layernorm")
  f:attention(p .. ".self_attn", { qkv_bias = bias, o_bias = bias, qk_norm = true, sliding = windows.of(f.c, i) })
  f:residual()
  f:norm(p .. ".post_attention_layernorm")
  f:mlp(p .. ".mlp", { "gate_proj", "up_proj", "down_proj" }, f.c.intermediate)
  f:residual()
end

return M
