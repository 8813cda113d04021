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

--- place(ck, {device=, dtype=, cache_bytes=, share=}) -> where the model of checkpoint ck may lie | nil, msg, code
-- As nibble.place makes it. dtype: of activations on a device; default f32 where the checkpoint's floats are that, else f16.
function M.place(ck, o)
  local arch, msg, code = M.of(ck.config)
  if not arch then return nil, ("%s: %s"):format(ck.path, msg), code end
  local info = ck:info(arch.embedding .. ".weight")
  local dtype = o.dtype or info and info.dtype:lower() == "f32" and "f32" or "f16"
  return require("nibble.place").new { device = o.device, dtype = dtype, cache_bytes = o.cache_bytes, share = o.share }
end

--- load(ck [, {cache_bytes=, activations=, device=, dtype=, place=, runner=}]) -> model | nil, msg, code
-- Checks config.json against what the architecture needs; reads no weights yet. device: "cuda", …: the model lies there
-- (place: as models.place made it), and what it computes does. runner: runs layers by methods (methods.runner).
-- model:logits(ids) -> f32 [m, vocab]; see decoder.lua for its memory bound.
function M.load(ck, options)
  local o = options or {}
  local arch, msg, code = M.of(ck.config)
  if not arch then return nil, ("%s: %s"):format(ck.path, msg), code end
  local place = o.place
  if not place and o.device then place, msg, code = M.place(ck, o) end
  if o.device and not place then return nil, msg, code end
  return require("nibble.models.decoder").new(arch, ck, setmetatable({ place = place }, { __index = o }))
end

return M
