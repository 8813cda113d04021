-- qwen3_moe: Qwen3's attention; the MLP is a choice among experts in the layers that
-- decoder_sparse_step picks and mlp_only_layers doesn't list.
local M = {
  name = "qwen3_moe", title = "Qwen3MoeForCausalLM",
  embedding = "model.embed_tokens", lm_head = "lm_head", final_norm = "model.norm", router = { "mlp.gate" },
  fused = { { "q_proj", "k_proj", "v_proj", as = "qkv_proj" }, { "gate_proj", "up_proj", as = "gate_up_proj" } },
  defaults = { rms_norm_eps = 1e-6, rope_theta = 10000, hidden_act = "silu", max_position_embeddings = 32768,
    num_key_value_heads = 4, intermediate_size = 6144, sliding_window = 4096, num_experts_per_tok = 8,
    moe_intermediate_size = 768, decoder_sparse_step = 1, norm_topk_prob = false },
}

local MLP = { "gate_proj", "up_proj", "down_proj" }

function M.check(c, whole, refuse)
  -- Unlike the dense models', this family's window holds in every layer.
  if c.get "use_sliding_window" == true and c.get "sliding_window" ~= nil then c.window = whole(c.get, "sliding_window") end
  local only = c.get "mlp_only_layers" or {}
  if type(only) ~= "table" then refuse("mlp_only_layers must be a list, found " .. tostring(only)) end
  local step = whole(c.get, "decoder_sparse_step")
  c.sparse = {}
  for i = 0, c.layers - 1 do c.sparse[i] = (i + 1) % step == 0 end
  for _, i in ipairs(only) do c.sparse[i] = false end
  -- Configs of recent versions have num_local_experts in place of num_experts.
  local count = c.get "num_local_experts" and not c.get "num_experts" and "num_local_experts" or "num_experts"
  c.experts = { names = MLP, count = whole(c.get, count, 128), top = whole(c.get, "num_experts_per_tok"),
    normalize = c.get "norm_topk_prob" == true, intermediate = whole(c.get, "moe_intermediate_size") }
end

function M.layer(f, i)
  local p = "model.layers." .. i
  local bias = f.c.get "attention_bias" == true
  f:norm(p .. ".input_layernorm")
  f:attention(p .. ".self_attn", { qkv_bias = bias, o_bias = bias, qk_norm = true, sliding = f.c.window })
  f:residual()
  f:norm(p .. ".post_attention_layernorm")
  if f.c.sparse[i] then f:experts(p .. ".mlp", f.c.experts) else f:mlp(p .. ".mlp", MLP, f.c.intermediate) end
  f:residual()
end

return M
