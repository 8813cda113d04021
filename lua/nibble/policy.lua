-- policy: which module gets which scheme and which stays float, of a checkpoint, a plan, a recipe or a quantization
-- config; compiled into any config's targets and ignore lists, and back into a recipe.
--
-- What a policy is compiled into is evaluated by the dialect's own matching rule over all modules, and over the layers
-- that consumers make of them; it means exactly the policy, or it is refused with the module that can't be told apart.
local json = require "nibble.json"
local layers = require "nibble.select.layers"
local names_m = require "nibble.names"
local nffi = require "nibble.ffi"
local schemes = require "nibble.scheme"
local show = require "nibble.show"
local dialects = require "nibble.policy.dialects"

local M = {}
local policy_mt = { __index = {} }
local methods = policy_mt.__index

--- policy.dialects() -> array of the dialects' names.
function M.dialects()
  local out = {}
  for i, d in ipairs(dialects.list) do out[i] = d.name end
  return out
end

-- ---- making one ---------------------------------------------------------------------------

local function new(fields)
  fields.by_name = {}
  for _, entry in ipairs(fields.entries) do fields.by_name[entry.name] = entry end
  return setmetatable(fields, policy_mt)
end

local function entry_of(rec, scheme)
  return { name = rec.name, kind = "linear", n = rec.n or 0, k = rec.k or 0, dtype = rec.dtype, scheme = scheme or nil }
end

local function of_plan(p)
  local entries = {}
  for _, job in ipairs(p.jobs) do
    if job.rec.kind == "linear" then entries[#entries + 1] = entry_of(job.rec, job.out.scheme) end
  end
  return new { name = p.recipe and p.recipe.name or p.model.name, config = p.model.config, entries = entries, format = p.format.name }
end

local function of_checkpoint(ck)
  local modules, msg, code = ck:modules()
  if not modules then return nil, msg, code end
  local entries, format = {}, nil
  for _, rec in ipairs(modules) do
    if rec.unreadable then return nil, rec.unreadable, "eunsupported" end
    if rec.kind == "linear" then entries[#entries + 1] = entry_of(rec, rec.scheme) end
    format = format or rec.scheme and rec.format
  end
  return new { name = ck.name, config = ck.config, entries = entries, format = format }
end

--- policy.of(checkpoint | plan | recipe, checkpoint) -> policy | nil, msg, code; `policy(m)` is this.
-- Of a recipe: what it makes of the checkpoint's modules. Fields: name; entries = array of {name, n, k, scheme | nil: stays
-- float} of the linear modules, in natural order; format = what they are or will be stored as.
function M.of(what, ck)
  if type(what) == "table" and rawget(what, "jobs") then return of_plan(what) end
  if type(what) == "table" and getmetatable(what) == policy_mt then return what end
  if type(what) == "table" and type(what.modules) == "function" then return of_checkpoint(what) end
  if ck == nil then error("policy: a recipe needs the model that it is for: policy(recipe, model)", 2) end
  local p, msg, code = require("nibble.plan").new(what, ck)
  if not p then return nil, msg, code end
  return of_plan(p)
end

-- Modules as entries without schemes: of a checkpoint, a policy, records or names.
local function modules_of(modules)
  if type(modules) ~= "table" then error("policy: expected modules (a checkpoint, records or names), found " .. type(modules), 3) end
  local p, msg, code
  if getmetatable(modules) == policy_mt then p = modules
  elseif rawget(modules, "jobs") or type(modules.modules) == "function" then
    p, msg, code = M.of(modules)
    if not p then return nil, msg, code end
  end
  local out = {}
  for i, m in ipairs(p and p.entries or modules) do
    if type(m) == "string" then out[i] = entry_of({ name = m })
    elseif m.kind == nil or m.kind == "linear" then out[#out + 1] = entry_of(m) end
  end
  return out, p and p.config
end

--- policy.parse(dialect, data [, modules]) -> policy | nil, msg, code
-- data: a quantization config as a table; dialect: its name, or nil: as data's quant_method says. modules: what it is
-- laid over (a checkpoint, a policy, records or names); without them policy:over(modules) does that.
function M.parse(dialect, data, modules)
  if type(data) ~= "table" then error("policy.parse: expected a config as a table, found " .. type(data), 2) end
  local d, msg, code
  if dialect == nil then d, msg, code = dialects.of(data) else d, msg, code = dialects.get(dialect) end
  if not d then return nil, msg, code end
  local reader
  reader, msg, code = d.read(data)
  if not reader then return nil, msg, code end
  local p = new { name = d.name, entries = {}, reader = reader, format = d.format }
  if modules == nil then return p end
  return p:over(modules)
end

--- policy:over(modules) -> policy | nil, msg, code: what the parsed data means for these modules.
function methods.over(p, modules)
  if not p.reader then error("policy:over is for a policy that was parsed", 2) end
  local entries, config, code = modules_of(modules)
  if not entries then return nil, config, code end
  for _, entry in ipairs(entries) do
    local scheme, msg, kind = p.reader.module(entry.name)
    if scheme == nil then return nil, msg, kind end
    entry.scheme = scheme or nil
  end
  return new { name = p.name, entries = entries, reader = p.reader, format = p.format, config = config }
end

--- policy:scheme(name) -> scheme | false: stays float | nil: no module of the policy.
function methods.scheme(p, name)
  local entry = p.by_name[name]
  if not entry then return nil end
  return entry.scheme or false
end

local function said(scheme) return scheme and schemes.describe(scheme) or "float" end

-- ---- compiling ------------------------------------------------------------------------------

-- Whether what the data says of a module or layer is what was wanted.
local function agree(d, wanted, found)
  if not wanted or not found then return not wanted and not found end
  return (d.same or schemes.same)(wanted, found)
end

local function refuse(d, name, wanted, found, msg)
  local why = msg or ("%s would be %s there, not %s"):format(name, said(found), said(wanted))
  return nil, ("%s cannot say this policy: %s"):format(d.name, why), "einexact"
end

-- The scheme that all members of a layer have: scheme | false | nil where they differ.
local function shared(layer)
  local first = layer.members[1].scheme or false
  for _, rec in ipairs(layer.members) do
    local other = rec.scheme or false
    if other ~= first and not (other and first and schemes.same(other, first)) then return nil end
  end
  return first
end

-- Evaluates the data by the dialect's rule: over the modules, then over the layers whose members agree.
local function prove(d, data, entries, config)
  local reader, msg, code = d.read(data)
  if not reader then return nil, msg, code end
  for _, entry in ipairs(entries) do
    nffi.stop_check()
    local found, why = reader.module(entry.name)
    if found == nil or not agree(d, entry.scheme, found) then return refuse(d, entry.name, entry.scheme, found, why) end
  end
  local made, _, fused = layers.of(entries, { fuses = true, config = config })
  for _, layer in ipairs(made) do
    local wanted = shared(layer)
    if (layer.fused or layer.kind == "moe" or layer.kind == "lm_head") and wanted ~= nil then
      local found, why = reader.layer(layer, fused)
      if found == nil or not agree(d, wanted, found) then
        return refuse(d, layer.name, wanted, found, why or ("the layer %s that consumers make of %s and %d more would be %s there, not %s")
          :format(layer.name, layer.members[1].name, #layer.members - 1, said(found), said(wanted)))
      end
    end
  end
  return true
end

-- In a session data shows as what a config file would hold.
local as_json = { __tostring = function(data) return json.encode(data, { indent = 2 }) end }

--- policy:compile(dialect [, modules]) -> data | nil, msg, code
-- data: the quantization config that means the policy, and for these modules (default: the policy's own) nothing else.
-- "einexact": the dialect can't hold a scheme or can't tell two modules apart; the sentence names them.
function methods.compile(p, dialect, modules)
  local d, msg, code = dialects.get(dialect)
  if not d then return nil, msg, code end
  local entries, config = p.entries, p.config
  if modules ~= nil then
    local list, own = modules_of(modules)
    if not list then return nil, own end
    entries, config = list, own or config
    for _, entry in ipairs(list) do
      local known = p.by_name[entry.name]
      if not known then error(("policy:compile: the policy says nothing of %s%s"):format(entry.name, #p.entries == 0
        and "; lay it over modules first: policy:over(modules)" or ""), 2) end
      entry.scheme = known.scheme
    end
  end
  for _, entry in ipairs(entries) do
    local ok, why = true, nil
    if entry.scheme then ok, why = d.can(entry.scheme, entry.n, entry.k) end
    if not ok then return refuse(d, entry.name, nil, nil, ("%s, %s: %s"):format(entry.name, said(entry.scheme), why)) end
  end
  local data
  data, msg, code = d.write(entries, (layers.structure(config)))
  if not data then return nil, msg, code == "einval" and "einexact" or code end
  local ok
  ok, msg, code = prove(d, data, entries, config)
  if not ok then return nil, msg, code end
  return setmetatable(data, as_json)
end

--- policy:same(other) -> true | false, sentence: whether both say the same of the same modules.
function methods.same(p, other)
  for _, pair in ipairs { { p, other }, { other, p } } do
    for _, entry in ipairs(pair[1].entries) do
      local mine, theirs = entry.scheme or false, pair[2]:scheme(entry.name)
      if theirs == nil then return false, entry.name .. " is in one of them only" end
      if not agree({}, mine, theirs) then return false, ("%s is %s and %s"):format(entry.name, said(mine), said(theirs)) end
    end
  end
  return true
end

--- policy:recipe([{name =, format =}]) -> text of a recipe file | nil, msg, code: it makes the same of the same modules.
function methods.recipe(p, options) return require("nibble.policy.recipe").text(p, options or {}) end

-- ---- showing -----------------------------------------------------------------------------------

local function groups_of(p)
  return names_m.collapse(p.entries, function(e) return e.name end, function(e)
    return e.scheme and schemes.describe(e.scheme) or "float " .. tostring(e.dtype)
  end)
end

function policy_mt.__tostring(p)
  if #p.entries == 0 and p.reader then return ("policy of %s data, over no modules yet: policy:over(modules)"):format(p.name) end
  local rows, quantized = {}, 0
  for i, g in ipairs(groups_of(p)) do
    local e = g.items[1]
    rows[i] = { g.name, e.scheme and schemes.describe(e.scheme) or "float" .. (e.dtype and " " .. e.dtype or ""), tostring(g.count) }
    if e.scheme then quantized = quantized + g.count end
  end
  return ("policy %s: %d of %d linear modules quantized\n"):format(p.name, quantized, #p.entries)
    .. show.columns(rows, "llr"):gsub("\n$", "")
end

--- policy:totable() -> {name =, modules = array of {name, scheme = "W4A16 g128 sym" | null}}
function methods.totable(p)
  local list = json.array {}
  for i, e in ipairs(p.entries) do list[i] = { name = e.name, scheme = e.scheme and schemes.describe(e.scheme) or json.null } end
  return { name = p.name, modules = list }
end

M.methods = methods
policy_mt.__methods = methods -- for completion

return setmetatable(M, { __call = function(_, ...) return M.of(...) end })
