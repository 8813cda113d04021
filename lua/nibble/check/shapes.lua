-- check.shapes: every tensor's dtype and shape against its module's scheme and against config.json.
local model = require "nibble.check.model"
local text = require "nibble.text"

local dtypes = { float16 = "f16", half = "f16", bfloat16 = "bf16", float32 = "f32", float = "f32" }

-- config.json's dtype of the model | nil
local function model_dtype(config)
  local said = config and (config.torch_dtype or config.dtype)
  return type(said) == "string" and dtypes[said:match "[^.]*$"] or nil
end

-- ---- tensors against the scheme -----------------------------------------------------------

local function tensors(context, add)
  for _, rec in ipairs(context.faults) do
    if not context.explained[rec.name] then
      context.explained[rec.name] = true
      local says = rec.unreadable
      if says:sub(1, #rec.name + 2) == rec.name .. ": " then says = says:sub(#rec.name + 3) end
      add { module = rec.name, says = says, source = rec.format, fix = "write the module again, or mend the config where it is "
        .. "the config that is wrong" }
    end
  end
end

-- Suffixes that a format's modules may have.
local function set(words)
  local out = {}
  for word in words:gmatch "%S+" do out[word] = true end
  return out
end

local known = {
  ["compressed-tensors"] = set("weight weight_packed weight_scale weight_zero_point weight_shape weight_global_scale weight_g_idx "
    .. "input_scale input_zero_point input_global_scale bias output_scale"),
  gptq = set "qweight qzeros scales g_idx bias", gptq_v2 = set "qweight qzeros scales g_idx bias",
  awq = set "qweight qzeros scales g_idx bias", fp8 = set "weight weight_scale weight_scale_inv input_scale bias",
  modelopt = set "weight weight_scale weight_scale_2 input_scale bias pre_quant_scale",
}

local function extra(context, add)
  for _, rec in ipairs(context.modules) do
    local suffixes = rec.scheme and known[rec.format]
    for suffix in pairs(suffixes and rec.tensors or {}) do
      if not suffixes[suffix] then
        add { severity = "warning", module = rec.name, tensor = rec.name .. "." .. suffix, key = suffix,
          says = ("%s is no tensor of %s, and loaders stop at it or pass over it"):format(suffix, rec.format),
          source = rec.format, fix = "leave it out" }
      end
    end
  end
end
require("nibble.ffi").interpreted(extra)

-- Biases and scales that loaders cast when they load them.
local function side_dtypes(context, add)
  local dtype = model_dtype(context.config)
  if not dtype then return end
  for _, rec in ipairs(context.modules) do
    local bias = rec.scheme and rec.tensors.bias
    if bias and bias.dtype ~= dtype then
      add { severity = "note", module = rec.name, says = ("its bias is %s, and config.json says that the model is %s: loaders "
        .. "cast it"):format(bias.dtype, dtype), fix = "write the bias in the model's dtype", key = "bias " .. bias.dtype }
    end
    if rec.scheme and rec.format == "compressed-tensors" and rec.scheme.type == "int" and rec.dtype ~= dtype then
      add { severity = "note", module = rec.name, key = "scales " .. rec.dtype, source = "compressed-tensors",
        says = ("its scales are %s, and config.json says that the model is %s: loaders round them to it"):format(rec.dtype, dtype),
        fix = "quantize with scales in the model's dtype" }
    end
  end
end

-- ---- modules against config.json --------------------------------------------------------------

-- What config.json means | nil; told once where it can't be read.
local function expected(context)
  if context.expected == nil then
    local e, msg, code
    if context.arch then e, msg, code = model.expected(context.arch, context.ck) end
    context.expected = e or false
    context.config_fault = code == "eformat" and msg or nil
  end
  return context.expected
end

local function config_sizes(context, add)
  expected(context)
  if context.config_fault then
    add { file = "config.json", says = context.config_fault, source = "config.json", fix = "put the model's own value there" }
  end
end

local function shape_of(rec)
  if rec.n and rec.k then return { rec.n, rec.k } end
  local info = rec.tensors.weight or rec.tensors[""]
  return info and info.shape
end

local function sizes(context, add)
  local e = expected(context)
  for _, m in ipairs(e and e.list or {}) do
    local rec = context.by_name[m.name]
    local shape = rec and not rec.unreadable and not context.explained[m.name] and shape_of(rec)
    if shape and (shape[1] ~= m.n or shape[2] ~= m.k) then
      context.explained[m.name] = true
      add { module = m.name, says = ("config.json means %s, the tensors are %s"):format(text.shape { m.n, m.k }, text.shape(shape)),
        source = "config.json", fix = "the sizes in config.json or the tensors are another model's" }
    end
  end
end

-- Whether files are gone or can't be read: what they held is no fault of its own.
local function files_missing(context)
  for _, f in ipairs(context.ck.findings or {}) do
    if f.rule == "missing-file" or f.rule == "damaged-file" or f.rule == "index-stale" or f.rule == "header-entry" then return true end
  end
end

local function missing(context, add)
  local e = expected(context)
  if not e or files_missing(context) then return end
  local gone = {}
  for _, m in ipairs(e.list) do
    if not context.by_name[m.name] and not m.optional then gone[#gone + 1] = m.name end
  end
  if #gone == 0 then return end
  local prefix = context.arch.embedding
  if not context.by_name[prefix] and #gone * 2 > #e.list then
    context.partial = true
    return add { rule = "partial-model", severity = "warning", says = ("config.json means %d modules, and %d of them are here: a "
      .. "part of a model?"):format(#e.list, #e.list - #gone), source = "config.json", fix = "open the whole model's folder" }
  end
  for _, name in ipairs(gone) do
    add { module = name, says = "config.json means this module, and no file has it", key = "", source = "config.json",
      fix = "get the files again, or mend num_hidden_layers, the number of experts or tie_word_embeddings" }
  end
end

local function biases(context, add)
  local e = expected(context)
  for _, m in ipairs(e and e.list or {}) do
    local rec = context.by_name[m.name]
    if rec and m.biased and not rec.tensors.bias and not rec.unreadable then
      add { module = m.name, says = "config.json says that it has a bias, and none is stored", key = "", source = "config.json",
        fix = "store the bias, or set attention_bias or mlp_bias to false" }
    end
  end
end

-- Modules that the architecture has no place for: loaders stop at an unknown name.
local passed_over = { "rotary_emb$", "%.inv_freq$", "k_scale$", "v_scale$", "kv_scale$", "q_scale$", "prob_scale$", "output_scale$" }

local function more_layers(c)
  local more = c.get "num_nextn_predict_layers"
  return type(more) == "number" and more > 0 and more or 0
end

local function unexpected(context, add)
  local e = expected(context)
  if not e then return end
  local layers, more = e.c.layers, more_layers(e.c)
  for _, rec in ipairs(context.modules) do
    if not e.by[rec.name] and rec.name ~= context.arch.lm_head then
      local layer, skip = tonumber(rec.name:match "^model%.layers%.(%d+)%."), false
      for _, pattern in ipairs(passed_over) do skip = skip or rec.name:find(pattern) ~= nil end
      if not skip and layer and layer >= layers + more then
        add { severity = "warning", module = rec.name, key = "layer", source = "config.json",
          says = ("it belongs to layer %d, and num_hidden_layers is %d"):format(layer, layers),
          fix = "leave the layer out, or mend num_hidden_layers" }
      elseif not skip and (not layer or layer < layers) then
        add { severity = "warning", module = rec.name, key = "module", source = "config.json",
          says = ("%s has no such module, and loaders stop at it or pass over it"):format(context.arch.title),
          fix = "leave it out, or mend model_type" }
      end
    end
  end
end

local function absent_config(context, add)
  if context.config or context.ck.config_unknown or context.ck.path:match "%.safetensors$" then return end
  add { severity = "warning", file = "config.json", says = "there is no config.json: no consumer can tell the architecture",
    source = "transformers", fix = "copy the model's config.json into the folder" }
end

return {
  { id = "config-missing", about = "a folder without config.json", run = absent_config },
  { id = "config-sizes", about = "sizes that config.json lacks or gets wrong", run = config_sizes },
  { id = "module-tensors", about = "a quantized module's tensors against its scheme: missing, wrong dtype, wrong shape", run = tensors },
  { id = "extra-tensor", about = "tensors of a quantized module that its format doesn't know", run = extra },
  { id = "side-dtype", about = "biases and scales in another dtype than the model's", run = side_dtypes },
  { id = "config-shape", about = "modules' sizes against config.json", run = sizes },
  { id = "missing-module", about = "layers, experts and modules that config.json means and no file has", run = missing },
  { id = "missing-bias", about = "biases that config.json means", run = biases },
  { id = "unexpected-module", about = "layers and modules that the architecture doesn't have", run = unexpected },
}
