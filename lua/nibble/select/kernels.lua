-- select.kernels: the kernel of a layer whose method is chosen: what the oracle is asked, the recipe's wishes, and what
-- comes of a refusal (SYSTEMS AWQ-17, ORC-11).
local backends = require "nibble.backends"

local M = {}

-- Words of recipes that are no kernel's name: the consumer's own order.
local automatic = { auto = true, wna16 = true, generic = true, moe_wna16 = true }

local dtypes = { float16 = "f16", half = "f16", bfloat16 = "bf16", float32 = "f32", float = "f32" }

-- The model's dtype, by config.json or else by the scales.
local function dtype_of(s, layer)
  local c = s.from.config or {}
  local said = c.torch_dtype or c.dtype
  local rec = layer.members[1]
  return s.target.dtype or type(said) == "string" and dtypes[said:match "[^.]*$"]
    or rec and (rec.dtype == "f16" or rec.dtype == "bf16") and rec.dtype or "bf16"
end

-- Our formats' names -> the oracle's.
local layouts = { ["compressed-tensors"] = "pack-quantized", gptq_v2 = "gptq" }

-- The layer's weight as the oracle wants it; layout: whose tensors.
local function weight_of(s, layer, d)
  local rec, w = layer.members[1], {}
  if rec and rec.scheme then
    for k, v in pairs(rec.scheme) do w[k] = v end
    w.format = d.format or layouts[rec.format] or rec.format
  elseif d.weights then
    for k, v in pairs(d.weights) do w[k] = v end
    w.group, w.format = w.group or -1, d.format
  elseif d.resolved then
    local r = d.resolved
    w = { bits = r.bits, symmetric = r.sym, group = r.group, format = r.is_gptq and "gptq" or "awq" }
  elseif d.type then
    w = { type = d.type, group = d.group, format = "gptq" }
  else
    local c = s.config
    w = { type = c.type, group = c.group, symmetric = not c.zero_point, format = "awq" }
  end
  if d.method == "moe_wna16" then w.format = "moe_wna16" end
  w.activations = nil
  return w
end

local function query_of(s, layer, d)
  local c, t = s.from.config or {}, s.target
  local rec = layer.members[1]
  local q = {
    consumer = s.consumer, device = s.device, tp = s.tp, ep = t.ep, kind = layer.kind == "moe" and "moe" or "linear",
    weight = weight_of(s, layer, d), dtype = dtype_of(s, layer), input = t.input, packages = t.packages,
    activation = rec and rec.scheme and rec.scheme.activations or d.activations, disabled = t.disabled,
    format = t.format, backend = d.wanted or t.backend,
    strict = (t.policy or s.rule.policy) == "raise" or nil,
  }
  if layer.kind == "moe" then
    q.hidden, q.intermediate, q.intermediate_full = layer.hidden, layer.intermediate, layer.intermediate_full
    q.experts = layer.experts
    q.top = layer.top or c.num_experts_per_tok
    q.activation_fn = layer.activation or type(c.hidden_act) == "string" and c.hidden_act or nil
    q.gated = layer.gated
  else
    q.n, q.k, q.n_full, q.k_full, q.parallel = layer.n, layer.k, layer.n_full, layer.k_full, layer.parallel
  end
  return q
end

-- Layers that are alike are asked about once: what tells a query from another.
local query_keys = { "kind", "n", "k", "n_full", "k_full", "parallel", "hidden", "intermediate", "intermediate_full",
  "experts", "backend", "dtype" }
local weight_keys = { "type", "bits", "group", "symmetric", "strategy", "format", "actorder", "scale_dtype" }
local activation_keys = { "type", "bits", "group", "symmetric", "strategy", "dynamic" }

local function key_of(q)
  local out = {}
  for _, part in ipairs { { q, query_keys }, { q.weight, weight_keys }, { q.activation or {}, activation_keys } } do
    for _, key in ipairs(part[2]) do out[#out + 1] = tostring(part[1][key]) end
  end
  if q.weight.block then out[#out + 1] = table.concat(q.weight.block, "x") end
  return table.concat(out, "|")
end

local function ask(s, q)
  local key = key_of(q)
  local known = s.asked[key]
  if not known then
    local r, msg, code, rejected = backends.select(q)
    known = { r = r, msg = msg, code = code, rejected = r and r.rejected or rejected or {} }
    s.asked[key] = known
  end
  return known
end

local function take(d, known)
  local r = known.r
  d.backend, d.class, d.rejected, d.change, d.note = r.backend, r.class, r.rejected, r.change, r.note
  d.better, d.also = r.better and r.better.backend, r.also
  d.position, d.of, d.monolithic = r.position, r.of, r.monolithic
  if r.fallback then
    d.action, d.method, d.warning = "fallback", r.backend, r.warning
    d.requirement = r.requirement or d.requirement
    d.reason = ("%s; no kernel takes it"):format(d.reason)
  end
  return d
end

-- The first of the recipe's names that can | nil; every one that cannot goes into `refused`.
local function wished(s, layer, d, names, refused)
  for _, name in ipairs(names or {}) do
    if name == "awq" and s.config and s.config.stages.plain == "awq" and layer.kind ~= "moe" then
      return name, "plain"
    elseif automatic[name] then
      d.wanted = nil
      local known = ask(s, query_of(s, layer, d))
      if known.r then return name, known end
      refused[#refused + 1] = { backend = name, reason = known.msg, requirement = "AWQ-17" }
    else
      d.wanted = name
      local known = ask(s, query_of(s, layer, d))
      d.wanted = nil
      if known.r and not known.r.fallback then return name, known end
      local last = known.rejected[#known.rejected]
      refused[#refused + 1] = { backend = name, reason = last and last.reason or known.msg, requirement = "AWQ-17" }
    end
  end
end

local function refuse(d, known, extra)
  local list = known.rejected or {}
  local out = { action = "refuse", requirement = d.requirement, rejected = list, change = list.change,
    better = list.better and list.better.backend, config_reason = d.reason, wanted_method = d.method,
    reason = (#list > 1 and list.summary or known.msg) .. (extra or "") }
  return out
end

local verbs = { prefer = "prefers", fallback = "falls back to" }

-- A recipe's wishes: prefer, then fallback, then the consumer's own order. -> decision, or nil when it has none
local function by_wish(s, layer, d, wishes, by)
  if not (wishes.prefer or wishes.fallback) then return nil end
  local own = ask(s, query_of(s, layer, d))
  local refused = {}
  for _, list in ipairs { "prefer", "fallback" } do
    local name, known = wished(s, layer, d, wishes[list], refused)
    if known == "plain" then
      d.action, d.method, d.backend, d.rejected, d.requirement = "override", "awq", "awq", refused, "AWQ-17"
      d.reason = ("%s; %s %s awq"):format(d.reason, by, verbs[list])
      return d
    elseif name then
      local changed = not own.r or own.r.backend ~= known.r.backend
      take(d, known)
      if changed and d.action ~= "fallback" then d.action, d.requirement = "override", "AWQ-17" end
      if not automatic[name] then d.reason = ("%s; %s %s %s"):format(d.reason, by, verbs[list], name) end
      local all = {}
      for _, r in ipairs(refused) do all[#all + 1] = r end
      for _, r in ipairs(known.r.rejected) do all[#all + 1] = r end
      d.rejected = all
      return d
    end
  end
  if not own.r then return refuse(d, own) end
  take(d, own)
  d.reason = ("%s; none of the recipe's kernels can (%s: %s)"):format(d.reason, refused[1].backend, refused[1].reason)
  return d
end

--- kernels.choose(selection, layer, decision, wishes, by) -> the decision with backend, class, rejected, change, …; or a
-- refusal with every kernel's reason. A backend that was asked for by name is checked alone. (ORC-11)
function M.choose(s, layer, d, wishes, by)
  local own = s.rule.own and s.rule.own[d.method] or d.method == "awq" and s.class ~= "scheme"
  if own then -- no choice among kernels; what stood in the way of the others is told
    d.backend = d.method
    d.rejected = ask(s, query_of(s, layer, d)).rejected
    return d
  end
  local out = not d.wanted and not s.target.backend and by_wish(s, layer, d, wishes, by)
  if out then return out end
  local known = ask(s, query_of(s, layer, d))
  if not known.r then return refuse(d, known) end
  return take(d, known)
end

return M
