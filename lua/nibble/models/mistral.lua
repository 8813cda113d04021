-- mistral: Llama's block with a sliding window in every layer, or (Ministral) in
-- those that layer_types names, and no biases.
local windows = require "nibble.models.windows"

local M = {
  name = "mistral", title = "MistralForCausalLM",
  embedding = "model.embed_tokens", lm_head = "lm_head", final_norm = "model.norm", router = {},
  fused = { { "q_proj", "k_proj", "v_proj", as = "qkv_proj" }, { "gate_proj", "up_proj", as = "gate_up_proj" } },
  defaults = { rms_norm_eps = 1e-6, rope_theta = 10000, hidden_act = "silu", max_position_embeddings = 131072,
    num_key_value_heads = 8 },
}

-- A window that is null is none; one that is not there is the family's 4096.
function M.check(c, _, refuse)
  c.window = c.get "sliding_window"
  if c.config.sliding_window == nil then c.window = 4096 end
  if c.window ~= nil and not (type(c.window) == "number" and c.window >= 1) then
    refuse("sliding_window must be a number above 0 or null, found " .. tostring(c.window))
  end
  windows.types(c, refuse)
end

function M.layer(f, i)
  local p = "model.layers." .. i
  f:norm(p .. ".input_layernorm")
  f:attention(p .. ".self_attn", { sliding = windows.of(f.c, i) })
  f:residual()
  f:norm(p .. ".post_attention_layernorm")
  f:mlp(p .. ".mlp", { "gate_proj", "up_proj", "down_proj" }, f.c.intermediate)
  f:residual()
end

return M
