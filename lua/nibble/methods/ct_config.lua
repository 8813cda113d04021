-- methods.ct_config: compressed-tensors checkpoints as consumers see them: config groups, ignore list, which scheme a
-- layer has and which method that scheme gets (SYSTEMS CTM-SEL-01 to CTM-SEL-05).
local json = require "nibble.json"
local match = require "nibble.match"
local ct_args = require "nibble.formats.ct_args"
local common = require "nibble.methods.config"

local M = {
  name = "compressed-tensors", files = {}, activations = { "f16", "bf16" }, min_capability = 70,
}

-- ---- the config -----------------------------------------------------------------------------

local config_mt = { __index = {} }

function config_mt.__tostring(c)
  local groups = {}
  for i, g in ipairs(c.groups) do groups[i] = g.name .. ": " .. ct_args.describe(g.weights) end
  return ("CompressedTensorsConfig(format=%s, %s; ignore %d)"):format(tostring(c.format), table.concat(groups, ", "),
    #c.ignore)
end

local function args_of(value, where, what)
  if value == nil or value == json.null then return nil end
  if type(value) ~= "table" then
    return nil, ("%s: %s is %s, expected a table of arguments"):format(where, what, tostring(value)), "eformat"
  end
  local a, msg, code = ct_args.parse(value)
  if not a then return nil, ("%s: %s: %s"):format(where, what, msg), code end
  return a
end

local function group_of(name, value, format, where)
  where = ("%s: config_groups.%s"):format(where, name)
  if type(value) ~= "table" then
    return nil, ("%s is %s, expected a table"):format(where, tostring(value)), "eformat"
  end
  local preset = ct_args.presets[name]
  if preset and value[1] then value = { targets = value, weights = preset } end
  local targets, msg, code = common.names(value, where, "targets")
  if not targets then return nil, msg, code end
  if #targets == 0 then return nil, where .. " has no list of targets", "eformat" end
  local g = { name = name, targets = targets, format = common.present(value, "format") or format }
  g.weights, msg, code = args_of(value.weights, where, "weights")
  if msg then return nil, msg, code end
  g.activations, msg, code = args_of(value.input_activations, where, "input_activations")
  if msg then return nil, msg, code end
  if g.format == "mixed-precision" then
    return nil, where .. ': the format is "mixed-precision", so the group must name its own', "eformat"
  end
  g.format = g.format or (g.weights and ct_args.format(g.weights, g.activations))
  return g
end

--- ct_config.new(config [, {where =}]) -> config | nil, msg, code
-- config_groups in the file's order (the first target that matches counts), ignore, format. -> {groups = {{name,
-- targets, weights, activations, format}, …}, ignore, format, targets = all in order, by_target}. (CTM-SEL-02,
-- CTM-SEL-03)
function M.new(config, options)
  local where = options and options.where or "the compressed-tensors config"
  local c = setmetatable({ full = config, where = where, groups = {}, targets = {}, by_target = {}, stages = {} },
    config_mt)
  c.format = common.present(config, "format")
  local groups = common.present(config, "config_groups")
  if type(groups) ~= "table" then
    return nil, where .. ": config_groups is missing", "eformat"
  end
  for _, name in ipairs(json.keys(groups)) do
    local g, msg, code = group_of(tostring(name), groups[name], c.format, where)
    if not g then return nil, msg, code end
    c.groups[#c.groups + 1] = g
    for _, target in ipairs(g.targets) do
      c.targets[#c.targets + 1] = target
      c.by_target[target] = g
    end
  end
  local msg, code
  c.ignore, msg, code = common.names(config, where, "ignore")
  if not c.ignore then return nil, msg, code end
  return c
end

-- ---- which scheme a layer has (CTM-SEL-01, CTM-SEL-02) ---------------------------------------

local classes = { linear = "Linear", lm_head = "ParallelLMHead", moe = "RoutedExperts" }

--- config:group(name, {class =, fused =}) -> group, target, how | false, why (ignored, or no target) | nil, msg, code
-- The ignore list first; then by name, by all shards of a fused layer, by class. (CTM-SEL-02)
function config_mt.__index.group(c, name, options)
  local ignored, entry, code = match.ignored(name, c.ignore, options.fused)
  if ignored == nil then return nil, entry, code end
  if ignored then return false, ("%q of the ignore list means it"):format(entry) end
  local target, how
  target, how, code = match.target(c.targets, name, options)
  if not target and how then return nil, how, code end
  if not target then return false, "no target of the config groups means it" end
  return c.by_target[target], target, how
end

local projections = { "gate_proj", "up_proj", "down_proj" }

--- config:moe_group(name, {fused =, projections =}) -> as group: of the three projections of expert 0, which must share
-- one scheme; ignored: unquantized. (CTM-SEL-01)
function config_mt.__index.moe_group(c, name, options)
  local first, of, how
  for i, part in ipairs(options and options.projections or projections) do
    local sub = ("%s.0.%s"):format(name, part)
    local g, why, code = c:group(sub, { class = "Linear" })
    if g == nil then return nil, why, code end
    if i == 1 then first, of, how = g, sub, why
    elseif g ~= first then
      local function said(x) return x and ("config group " .. x.name) or "not quantized" end
      return nil, ("%s: the projections of a mixture of experts must share one scheme, but %s is %s and %s is %s")
        :format(name, of, said(first), sub, said(g)), "eformat"
    end
  end
  if not first then
    local g, target, code = c:group(name, { class = classes.moe })
    if g == nil then return nil, target, code end
    if g and how:find("no target", 1, true) then return g, target, "class" end
  end
  return first, how
end

-- ---- which method a scheme gets (CTM-SEL-04) --------------------------------------------------

local function static(a) return a.dynamic == false end
local function dynamic_token(a) return a ~= nil and a.dynamic == true and a.strategy == "token" end
local function by_rows(w) return w.strategy == "channel" or w.strategy == "group" end

-- w8a8 of floats: static and symmetric weights by tensor, channel or block.
local function fp8_weights(w)
  return w.type == "float" and w.bits == 8 and w.symmetric and static(w)
    and (w.strategy == "tensor" or w.strategy == "channel" or w.strategy == "block")
end

-- Formats whose activations are quantized too; only vLLM's linear layers look at that.
local act_formats = { ["int-quantized"] = true, ["float-quantized"] = true, ["naive-quantized"] = true }
local function act_format(q) return q.kind == "moe" or act_formats[q.format] end

-- In order; the first whose test holds. method: ours; peer: vLLM's class for linear layers; kind: only for these
-- layers. Tests see {weights = w, activations = a, format =, capability =, kind =}.
M.dispatch = {
  { method = "w4a8_mxfp4", peer = "CompressedTensorsW4A8Mxfp4", test = function(w, a)
    return ct_args.is_mxfp4(w) and a ~= nil and a.type == "float" and a.bits == 8 and a.dynamic == true
      and (a.strategy == "token" or a.strategy == "group")
  end },
  { method = "mxfp4", peer = "CompressedTensorsW4A4Mxfp4", test = function(w) return ct_args.is_mxfp4(w) end },
  { method = "mxfp8", peer = "CompressedTensorsW8A8Mxfp8", test = function(w) return ct_args.is_mxfp8(w) end },
  { method = "wna16", peer = "CompressedTensorsWNA16", test = function(w, a, q)
    -- vLLM's linear layers don't look at the type here.
    return a == nil and by_rows(w) and static(w) and (w.type == "int" or q.kind ~= "moe")
      and q.format == "pack-quantized" and w.bits >= 2 and w.bits <= 8
  end },
  { method = "wna8_int", peer = "CompressedTensorsWNA8Int", kind = "linear", test = function(w, a, q)
    return q.format == "pack-quantized" and w.type == "int" and by_rows(w) and static(w) and dynamic_token(a)
      and a.type == "int" and a.bits == 8 and a.symmetric
  end },
  { method = "nvfp4", peer = "CompressedTensorsW4A4Fp4", test = function(w, a)
    if not ct_args.is_nvfp4(w) then return false end
    if a == nil or ct_args.is_nvfp4(a) then return true end
    return nil, ("weights are NVFP4, so activations must be NVFP4 too, or none (NVFP4A16), found %s")
      :format(ct_args.describe(a))
  end },
  { method = "fp8_w8a8", peer = "CompressedTensorsW8A8Fp8", test = function(w, a, q)
    return act_format(q) and fp8_weights(w) and a ~= nil and a.type == "float"
      and (a.dynamic ~= false or (a.symmetric and a.strategy == "tensor"))
      and (q.capability == nil or q.capability >= 89 or q.kind == "moe")
  end },
  { method = "w8a16_fp8", peer = "CompressedTensorsW8A16Fp8", kind = "linear", test = function(w, _, q)
    return act_format(q) and fp8_weights(w)
  end },
  { method = "int8_w8a8", peer = "CompressedTensorsW8A8Int8", test = function(w, a, q)
    if not act_format(q) or a == nil or w.bits ~= 8 or a.bits ~= 8 or w.type ~= "int" then return false end
    if not (w.symmetric and static(w)) then return false end
    if w.strategy ~= "tensor" and w.strategy ~= "channel" then return false end
    return dynamic_token(a) or (static(a) and a.strategy == "tensor")
  end },
  { method = "w4a8_fp8", peer = "CompressedTensorsW4A8Fp8", test = function(w, a, q)
    return w.type == "int" and w.bits == 4 and w.symmetric and static(w) and w.strategy == "group" and w.group == 128
      and dynamic_token(a) and a.type == "float" and a.bits == 8 and (q.capability == nil or q.capability == 90)
  end },
  { method = "w4a8_int", peer = "CompressedTensorsW4A8Int", test = function(w, a, q)
    return act_format(q) and w.type == "int" and w.bits == 4 and w.symmetric and static(w) and by_rows(w)
      and dynamic_token(a) and a.type == "int" and a.bits == 8
  end },
}

--- ct_config.method_of{weights =, activations = | nil, format =, kind = "linear" | "moe", capability = | nil, layer =}
-- -> entry of ct_config.dispatch | nil, msg, code
-- The sentence names both schemes. capability nil: not looked at. (CTM-SEL-04)
function M.method_of(q)
  for _, rule in ipairs(M.dispatch) do
    if not rule.kind or rule.kind == q.kind or (rule.kind == "linear" and q.kind ~= "moe") then
      local yes, msg = rule.test(q.weights, q.activations, q)
      if yes then return rule end
      if msg then return nil, ("%s: %s"):format(q.layer or "the layer", msg), "eunsupported" end
    end
  end
  local why = ""
  if q.activations == nil and q.weights.type == "int" and by_rows(q.weights) and q.format ~= "pack-quantized" then
    why = "; weights without activations need format pack-quantized"
  end
  return nil, ("%s: no method takes weights %s with activations %s in format %s%s%s"):format(q.layer or "the layer",
    ct_args.describe(q.weights), ct_args.describe(q.activations), tostring(q.format),
    q.capability and (" on SM %d"):format(q.capability) or "", why), "eunsupported"
end

-- ---- what a method builds itself (CTM-SEL-05) --------------------------------------------------

-- experts: built only when asked for them; owns: sets up its kernel itself.
local kernels = {
  nvfp4 = { owns = true }, fp8_w8a8 = { owns = true }, wna16 = { experts = true }, awq_marlin = { experts = true },
  w4a8_int = {},
}

--- ct_config.kernel_setup(method) -> {owns = true} | {experts = true} | {}: who sets up a mixture's kernel.
-- (CTM-SEL-05)
function M.kernel_setup(method) return kernels[method] or {} end

--- ct_config.prepare_finalize(method) -> nil: no such object; an error naming the method where it owns its kernel.
function M.prepare_finalize(method)
  if M.kernel_setup(method).owns then
    error(("%s sets up its kernel itself when it processes weights: it has no prepare/finalize object to give")
      :format(method), 2)
  end
end

-- ---- a layer's method --------------------------------------------------------------------------

--- config:method(layer [, {fused =, capability =, actorder = false: refused}]) -> {action, method, reason, requirement,
-- weights =, activations =, format =} | nil where the class says nothing | nil, msg, code. layer as in awq_config.
function config_mt.__index.method(c, layer, options)
  local o = options or {}
  local class = classes[layer.kind]
  if not class then return nil end
  local moe = layer.kind == "moe"
  local g, why, how
  if moe then g, why, how = c:moe_group(layer.name, { projections = layer.projections })
  else g, why, how = c:group(layer.name, { class = class, fused = o.fused }) end
  if g == nil then return nil, why, how end
  if not g or not g.weights then
    return { action = "skip", method = "unquantized", requirement = moe and "CTM-SEL-01" or "CTM-SEL-02",
      reason = g and ("config group %s quantizes no weights"):format(g.name) or why }
  end
  local rule, msg, code = M.method_of { weights = g.weights, activations = g.activations, format = g.format,
    kind = moe and "moe" or "linear", capability = o.capability, layer = layer.name }
  if rule and o.actorder == false and g.weights.actorder == "group" then
    return { action = "refuse", requirement = "CTM-SEL-04", reason = ("%s: groups in act-order (actorder = group) are no "
      .. "longer supported; quantize with actorder = weight or none"):format(layer.name) }
  end
  if not rule then
    if code == "eunsupported" then return { action = "refuse", requirement = "CTM-SEL-04", reason = msg } end
    return nil, msg, code
  end
  return { action = "method", method = rule.method, requirement = "CTM-SEL-04", weights = g.weights,
    activations = g.activations, format = g.format, reason = ("config group %s targets %q: %s%s"):format(g.name, why,
      ct_args.describe(g.weights), g.activations and ", activations " .. ct_args.describe(g.activations) or "") }
end

return M
