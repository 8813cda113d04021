-- methods.inc_config: AutoRound's checkpoints as INC sees them: the config and its checks, what holds for a layer,
-- and which method the platform gives it (SYSTEMS INC-01 to INC-06, INC-18 to INC-20).
local backends = require "nibble.backends"
local decide = require "nibble.backends.decide"
local match = require "nibble.match"
local overrides = require "nibble.formats.overrides"
local common = require "nibble.methods.config"

local M = {
  name = "inc", files = { "quantization_config.json" }, activations = { "f16", "bf16" }, min_capability = 0,
  says = { ["auto-round"] = true, ["intel/auto-round"] = true, inc = true },
  packings = { "auto_round:auto_gptq", "auto_round:auto_awq", "auto_round:fp8", "auto_round:llm_compressor" },
  backends = { "auto", "gptq", "gptq:marlin", "awq", "awq:marlin", "marlin" },
  -- The XPU's explicit kernels; what a user may name there besides the ones above.
  kernels = { "ark", "w4a16", "w4a8" },
}

local function contains(list, x)
  for _, v in ipairs(list) do if v == x then return true end end
  return false
end

-- ---- the config (INC-03, INC-04) -------------------------------------------------------

local config_mt = { __index = {} }

function config_mt.__tostring(c)
  return common.printable("INCConfig", {
    { "weight_bits", c.bits }, { "group_size", c.group }, { "sym", c.sym }, { "packing_format", c.packing },
    { "data_type", c.data_type }, { "block_name_to_quantize", c.blocks }, { "backend", c.backend },
  })
end

-- "a, b" or a list -> array; nil stays nil
local function blocks_of(value, where)
  if value == nil then return nil end
  if type(value) == "table" then return common.names({ list = value }, where, "list") end
  local out = {}
  for name in tostring(value):gmatch "[^,]+" do
    local trimmed = name:match "^%s*(.-)%s*$"
    if trimmed ~= "" then out[#out + 1] = trimmed end
  end
  return out
end

local function check(c, where)
  local function refuse(key, value, allowed)
    return nil, ("%s: %s = %s; expected %s"):format(where, key, tostring(value), allowed), "eunsupported"
  end
  if type(c.bits) ~= "number" or c.bits < 2 or c.bits > 8 or c.bits % 1 ~= 0 then
    return refuse("bits", c.bits, "2, 3, 4, 5, 6, 7 or 8")
  end
  if c.data_type ~= "int" and c.data_type ~= "fp" and not c.data_type:match "^mx_fp" then
    return refuse("data_type", c.data_type, "int, mx_fp… or fp")
  end
  if not contains(M.packings, c.packing) then
    return refuse("packing_format", c.packing, table.concat(M.packings, ", "))
  end
  if not contains(M.backends, c.backend) and not contains(M.kernels, c.backend) then
    return refuse("backend", c.backend, table.concat(M.backends, ", "))
  end
  if c.data_type == "int" and type(c.group) ~= "number" then
    return refuse("group_size", type(c.group) == "table" and "[" .. table.concat(c.group, ", ") .. "]" or c.group,
      "one number, because data_type = int")
  end
  if c.data_type == "int" and not (c.packing:find("gptq", 1, true) or c.packing:find("awq", 1, true)) then
    return refuse("packing_format", c.packing, "auto_round:auto_gptq or auto_round:auto_awq, because data_type = int")
  end
  return true
end

--- inc_config.new(config [, {where =}]) -> config | nil, msg, code
-- Required: bits, group_size. Defaults: sym true, packing_format auto_round:auto_gptq, data_type int,
-- block_name_to_quantize (or to_quant_block_names) none, extra_config none, backend (or vllm_backend) auto.
-- -> {bits, group, sym, packing, data_type, blocks | nil, rules, ignored, backend, full}. (INC-03, INC-04)
function M.new(config, options)
  local where = options and options.where or "the AutoRound config"
  local c = setmetatable({ full = config, where = where, ignored = {}, stages = { generic = "moe_wna16" } }, config_mt)
  local msg, code
  c.bits, msg, code = common.required(config, where, "number", "bits")
  if not c.bits then return nil, msg, code end
  c.group = common.present(config, "group_size")
  if c.group == nil then return nil, ("%s: none of the keys group_size is there"):format(where), "eformat" end
  c.sym, msg, code = common.optional(config, where, "boolean", true, "sym")
  if c.sym == nil then return nil, msg, code end
  for _, part in ipairs { { "packing", "auto_round:auto_gptq", "packing_format" }, { "data_type", "int", "data_type" },
    { "backend", "auto", "backend", "vllm_backend" } } do
    c[part[1]], msg, code = common.optional(config, where, "string", part[2], part[3], part[4])
    if not c[part[1]] then return nil, msg, code end
  end
  c.blocks, msg, code = blocks_of(common.present(config, "block_name_to_quantize", "to_quant_block_names"), where)
  if msg then return nil, msg, code end
  c.rules, msg, code = overrides.rules({ extra_config = common.present(config, "extra_config") }, where, c.ignored)
  if not c.rules then return nil, msg, code end
  local ok
  ok, msg, code = check(c, where)
  if not ok then return nil, msg, code end
  return c
end

--- inc_config.override(config) -> "inc", sentence | nil: a checkpoint that says auto-round. (INC-03)
function M.override(config)
  local said = common.present(config, "quant_method")
  if type(said) ~= "string" or not M.says[said:lower()] or said:lower() == "inc" then return nil end
  return M.name, ("the checkpoint says %s: inc is used"):format(said)
end

-- ---- what holds for a layer (INC-01, INC-02, INC-05, INC-06) ---------------------------

-- {bits, group, sym} of a rule's fields over the defaults; not quantized: 16 bits.
local function resolved(c, rule, quantized)
  local f = rule and rule.fields or {}
  local function pick(key, own) if f[key] ~= nil then return f[key] end return own end
  return { bits = pick("bits", quantized and c.bits or 16), group = pick("group_size", quantized and c.group or -1),
    sym = pick("sym", not quantized or c.sym), rule = rule }
end

local function same(a, b) return a.bits == b.bits and a.group == b.group and a.sym == b.sym end

local function shown(r)
  if r.bits >= 16 then return "not quantized" end
  return ("%d bits g%s %s"):format(r.bits, tostring(r.group), r.sym and "sym" or "asym")
end

-- What the named sub-layers agree on | nil, msg, code
local function agreed(layer, kind, names, of)
  local first = of(names[1])
  for i = 2, #names do
    local other = of(names[i])
    if not same(first, other) then
      return nil, ("%s: the %s's sub-layers must share one config, but %s is %s and %s is %s"):format(layer, kind,
        names[1], shown(first), names[i], shown(other)), "eformat"
    end
  end
  return first
end

-- The keys of extra_config that are sub-layers of a mixture of experts.
local function below(c, name)
  local out = {}
  for _, rule in ipairs(c.rules) do
    if rule.how == "exact" and rule.key:sub(1, #name) == name then out[#out + 1] = rule.key end
  end
  return out
end

--- config:resolve(name, kind [, fused]) -> {bits, group, sym, quantized, is_awq, is_gptq, pack_factor, how, rule} |
-- nil, msg, code. kind: "linear" | "lm_head" | "moe". The order: the exact key of extra_config; a key that is a
-- dotted suffix; the default by kind (an LM head isn't quantized, unless blocks are named: then what begins with one
-- is); a mixture's sub-entries; a fused layer's shards, if one of them is configured; regex keys; the global values.
-- pack_factor is 32 // bits. (INC-01, INC-02, INC-05, INC-06)
function config_mt.__index.resolve(c, name, kind, fused)
  local function finish(r, how)
    r.how, r.quantized = how, r.bits < 16
    r.is_awq = (c.packing .. c.backend):find("awq", 1, true) ~= nil
    r.is_gptq = (c.packing .. c.backend):find("gptq", 1, true) ~= nil
    r.pack_factor = math.floor(32 / r.bits)
    return r
  end
  local quantized = kind ~= "lm_head"
  if c.blocks then
    quantized = false
    for _, block in ipairs(c.blocks) do quantized = quantized or name:sub(1, #block) == block end
  end
  for _, how in ipairs { "exact", "suffix" } do
    local rule = overrides.find(c.rules, name, how)
    if rule then return finish(resolved(c, rule, true), ("extra_config %q (%s)"):format(rule.key, how)) end
  end
  local function of(n) return resolved(c, overrides.find(c.rules, n), quantized) end
  local names = kind == "moe" and below(c, name) or {}
  local shards = kind ~= "moe" and match.shards(name, fused) or {}
  local configured
  for _, shard in ipairs(shards) do configured = configured or overrides.find(c.rules, shard) end
  if #names > 0 or configured then
    local moe = #names > 0
    local r, msg, code = agreed(name, moe and "mixture of experts" or "fused layer", moe and names or shards, of)
    if not r then return nil, msg, code end
    return finish(r, ("extra_config's entries for its %s agree"):format(moe and "experts" or "shards"))
  end
  local rule = overrides.find(c.rules, name, "regex")
  if rule then return finish(resolved(c, rule, quantized), ("extra_config %q (regex)"):format(rule.key)) end
  if quantized then return finish(resolved(c, nil, true), "the config's global values") end
  return finish(resolved(c, nil, false), c.blocks and "no entry of block_name_to_quantize begins its name"
    or "the LM head stays as it is")
end

-- ---- which method (INC-18 to INC-20) ------------------------------------------------------

-- Every refusal names layer, backend, bits, symmetry and group. (INC-20)
local function refuse(layer, r, backend, requirement, why)
  return { action = "refuse", requirement = requirement, reason = ("%s (backend %s, %d bits, %s, group %s): %s"):format(
    layer.name, tostring(backend), r.bits, r.sym and "symmetric" or "asymmetric", tostring(r.group), why) }
end

-- The consumers whose tables know a platform's rules, and the methods that their backends stand for.
local platforms = {
  xpu = { consumer = "inc-xpu", methods = { ark = "inc_ark", w4a16 = "inc_xpu", w4a8 = "inc_xpu_w4a8" } },
  cpu = { consumer = "inc-cpu", methods = { ark = "inc_ark", generic = "wna16" } },
  cuda = { consumer = "inc-cuda", methods = { humming = "wna16", awq = "awq", moe_wna16 = "moe_wna16" } },
}
platforms.rocm = platforms.cuda
-- What runs where Marlin was wanted and can't.
local instead = { awq = true, moe_wna16 = true }

local function query_of(c, layer, r, o, awq)
  local p, platform = platforms[o.platform or "cuda"], o.platform or "cuda"
  return { consumer = p.consumer, kind = layer.kind == "moe" and "moe" or "linear", name = layer.name,
    device = platform == "cuda" and ("sm_%d"):format(o.capability or 90) or platform,
    weight = { type = c.data_type == "int" and "int" or "float", bits = r.bits, symmetric = r.sym,
      group = type(r.group) == "number" and r.group or nil, format = awq and "awq" or "gptq" },
    n = layer.n, k = layer.k, k_full = layer.k_full or layer.k, hidden = layer.hidden,
    intermediate = layer.intermediate, tile_padding = true, packages = o.packages }
end

-- The platform's kernel by the oracle's table. (INC-18, INC-19)
local function by_table(c, layer, r, backend, o)
  local p, awq = platforms[o.platform or "cuda"], r.is_awq and not r.is_gptq
  local q = query_of(c, layer, r, o, awq)
  if contains(M.kernels, backend) and p.methods[backend] then q.backend = backend end
  local found, msg, _, rejected = backends.select(q, { change = false })
  if not found then
    local why = rejected and #rejected > 0 and decide.reasons_text(rejected) or msg
    return refuse(layer, r, backend, p.consumer == "inc-cuda" and "INC-19" or "INC-18", why)
  end
  local kind = awq and ("uint%d"):format(r.bits) or ("uint%db%d"):format(r.bits, 2 ^ (r.bits - 1))
  local out = { action = "method", method = p.methods[found.backend] or awq and "awq_marlin" or "gptq_marlin",
    requirement = found.requirement, type = kind }
  if instead[found.backend] then
    local why = found.rejected[1].reason
    out.action, out.reason = "fallback", "Marlin does not take it: " .. why
    if found.backend == "awq" then
      out.warning = ("%s: Marlin does not take it (%s): falling back to unoptimized AWQ"):format(layer.name, why)
    end
    return out
  end
  out.reason = q.backend and ("the backend %s was asked for"):format(backend)
    or ("%s packing, %d bits, %s: %s takes it"):format(awq and "AWQ" or "GPTQ", r.bits,
      r.sym and "symmetric" or "asymmetric", found.backend)
  if found.note then out.reason = out.reason .. "; " .. found.note end
  return out
end

--- config:method(layer [, {fused =, platform = "cuda", capability =, backend =, packages =}])
-- -> {action, method, reason, requirement, resolved =} | nil where the class says nothing | nil, msg, code
-- backend: the user's, else the file's; packages: as backends.select's ("auto_round_kernel" is ARK); layer as in
-- awq_config. (INC-05, INC-06, INC-18 to INC-20)
function config_mt.__index.method(c, layer, options)
  local o = options or {}
  if layer.kind ~= "linear" and layer.kind ~= "lm_head" and layer.kind ~= "moe" then return nil end
  local r, msg, code = c:resolve(layer.name, layer.kind, o.fused)
  if not r then return nil, msg, code end
  if not r.quantized then
    return { action = "skip", method = "unquantized", requirement = r.rule and "INC-06" or "INC-05",
      reason = r.rule and ("%s says %d bits"):format(r.how, r.bits) or r.how, resolved = r }
  end
  local backend = o.backend or c.backend
  if not contains(M.backends, backend) and not contains(M.kernels, backend) then
    return nil, refuse(layer, r, backend, "INC-18", ("unknown backend; expected %s, or %s on the XPU"):format(
      table.concat(M.backends, ", "), table.concat(M.kernels, ", "))).reason, "einval"
  end
  if not platforms[o.platform or "cuda"] then
    return nil, refuse(layer, r, backend, "INC-18", ("INC has no method on %s; known: cpu, cuda, rocm, xpu"):format(
      tostring(o.platform))).reason, "eunsupported"
  end
  local out = by_table(c, layer, r, backend, o)
  out.resolved = r
  out.reason = out.action == "refuse" and out.reason or ("%s; %s"):format(out.reason, r.how)
  return out
end

return M
