-- models: which architectures are known, by a checkpoint's config.json.
local M = {}

-- One file per architecture, named after its model_type.
local known = { "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe" }

--- known() -> sorted array of the model types that nibble can run.
function M.known() return { unpack(known) } end

local function text(v) return type(v) == "string" and v or "none" end

--- of(config) -> architecture | nil, msg, code
-- config: config.json as a table. The architecture tells {name, title,
-- fused = {{"q_proj", "k_proj", "v_proj", as = "qkv_proj"}, …} (siblings that run as one kernel),
-- router = {"mlp.gate", …} (name endings of modules that must stay float),
-- embedding, lm_head, final_norm (module names), layer(forward, i)}.
function M.of(config)
  if type(config) ~= "table" then
    return nil, "the checkpoint has no config.json, so its architecture is unknown", "eformat"
  end
  local title = type(config.architectures) == "table" and config.architectures[1] or nil
  for _, name in ipairs(known) do
    if config.model_type == name then return require("nibble.models." .. name) end
  end
  for _, name in ipairs(config.model_type == nil and known or {}) do
    local arch = require("nibble.models." .. name)
    if arch.title == title then return arch end
  end
  return nil, ("architecture %s (model_type %s) is not known; known: %s"):format(text(title), text(config.model_type),
    table.concat(known, ", ")), "eunsupported"
end

--- load(ck [, {cache_bytes=}]) -> model | nil, msg, code
-- Checks config.json against what the architecture needs; reads no weights yet.
-- model:logits(ids) -> f32 [m, vocab]; see decoder.lua for its memory bound.
function M.load(ck, options)
  local arch, msg, code = M.of(ck.config)
  if not arch then return nil, ("%s: %s"):format(ck.path, msg), code end
  return require("nibble.models.decoder").new(arch, ck, options)
end

return M
