-- modules: a list of a checkpoint's modules, as m:grep and m:select give it: an array that prints as a table with
-- its totals and can be narrowed further. And that table, for any records.
local names = require "nibble.names"
local scheme = require "nibble.scheme"
local show = require "nibble.show"
local summary = require "nibble.summary"
local tensor = require "nibble.tensor"
local terminal = require "nibble.terminal"
local text = require "nibble.text"
local units = require "nibble.units"
local nffi = require "nibble.ffi"
local C = nffi.C

local M = {}

-- ---- the table -----------------------------------------------------------------------------

-- More modules than this share lines.
local MANY = 24

--- modules.shape(rec) -> array of numbers: the weight's [n,k], or the shape of the module's own tensor.
function M.shape(rec)
  if rec.n and rec.k then return { rec.n, rec.k } end
  for _, suffix in ipairs { "weight", "" } do
    if rec.tensors and rec.tensors[suffix] then return rec.tensors[suffix].shape end
  end
  local _, first = next(rec.tensors or {})
  return first and first.shape or {}
end

--- modules.totals(recs) -> {modules =, params =, bytes =, bits_per_weight = or nil where there are no params}
function M.totals(recs)
  local params, bytes = 0, 0
  for _, rec in ipairs(recs) do params, bytes = params + (rec.params or 0), bytes + rec.bytes end
  return { modules = #recs, params = params, bytes = bytes, bits_per_weight = params > 0 and bytes * 8 / params or nil }
end

-- Modules whose names differ in numbers only, and that are alike, as one line each. What is alike is one table for
-- each pair of a scheme's text and a shape: many modules share both.
local function collapse(recs)
  local described, by_scheme = summary.schemes(), {}
  local function kind(rec)
    local said = described(rec)
    local shapes = by_scheme[said]
    if not shapes then
      shapes = {}
      by_scheme[said] = shapes
    end
    local shape = rec.n and rec.n * 2 ^ 26 + rec.k or table.concat(M.shape(rec), "x")
    if not shapes[shape] then shapes[shape] = {} end
    return shapes[shape]
  end
  local groups = names.collapse(recs, function(rec) return rec.name end, kind)
  for _, g in ipairs(groups) do
    g.bytes, g.params, g.rec = 0, 0, g.items[1]
    for _, rec in ipairs(g.items) do g.bytes, g.params = g.bytes + rec.bytes, g.params + (rec.params or 0) end
  end
  return groups
end

local function singles(recs)
  local out = {}
  for i, rec in ipairs(recs) do
    out[i] = { name = rec.name, count = 1, bytes = rec.bytes, params = rec.params or 0, rec = rec }
  end
  return out
end

--- modules.table(recs [, {all =, width =}]) -> text: a line a module, or where there are many and not all, one for
-- those that differ in numbers only; and the totals. width: cut to a terminal of so many columns (the totals never).
function M.table(recs, options)
  local groups = (#recs > MANY and not (options and options.all)) and collapse(recs) or singles(recs)
  local rows = { { "module", "", "scheme", "shape", "bits/w", "bytes" } }
  for _, g in ipairs(groups) do
    rows[#rows + 1] = {
      g.name, g.count > 1 and "×" .. g.count or "", summary.scheme(g.rec), table.concat(M.shape(g.rec), "×"),
      g.params > 0 and ("%.2f"):format(g.bytes * 8 / g.params) or "-", units.bytes(g.bytes),
    }
  end
  local t = M.totals(recs)
  return show.columns(rows, "lrlrrr", options and options.width, {
    ("total: %d module%s, %s params"):format(t.modules, t.modules == 1 and "" or "s", units.count(t.params)), "", "", "",
    t.bits_per_weight and ("%.2f"):format(t.bits_per_weight) or "-", units.bytes(t.bytes),
  })
end

-- ---- which modules -----------------------------------------------------------------------

local function bits(rec)
  if rec.scheme then return rec.scheme.bits end
  return rec.dtype and tonumber(C.nb_dtype_bits(tensor.dtype_id(rec.dtype)))
end

-- "W4A16 g128" means "W4A16 g128 sym", too: every word of it is there. W4A16_ASYM is a preset's name.
local function has_words(wanted, rec)
  if not rec.scheme then return false end
  local have = " " .. summary.scheme(rec) .. " "
  for word in wanted:gsub("_ASYM", " asym"):gmatch "%S+" do
    if not have:find(" " .. word .. " ", 1, true) then return false end
  end
  return true
end

local function scheme_fault(wanted)
  if type(wanted) ~= "string" then return "select: scheme is a text, as the table shows it, found a " .. type(wanted) end
  local preset, presets = wanted:match "%f[%w]%u[%w_]*", scheme.names()
  for _, name in ipairs(presets) do
    if not preset or name == preset then return nil end
  end
  return ("select: unknown scheme %q%s"):format(preset, text.did_you_mean(preset, presets))
end

-- Key of select -> {of = function(rec) -> value} or {test = function(wanted, rec) -> bool}; number: it is one, and
-- has min_ and max_.
local keys = {
  kind = { of = function(rec) return rec.kind end, known = { "linear", "embedding", "norm", "other" } },
  format = { of = function(rec) return rec.format end },
  dtype = { of = function(rec) return rec.dtype end, known = tensor.names },
  scheme = { test = has_words },
  quantized = { of = function(rec) return rec.scheme ~= nil end },
  bits = { of = bits, number = true },
  group = { of = function(rec) return rec.scheme and rec.scheme.group end, number = true },
  symmetric = { of = function(rec) return rec.scheme and rec.scheme.symmetric end },
  n = { of = function(rec) return rec.n end, number = true },
  k = { of = function(rec) return rec.k end, number = true },
  params = { of = function(rec) return rec.params end, number = true },
  bytes = { of = function(rec) return rec.bytes end, number = true },
  bits_per_weight = { of = function(rec) return rec.bits_per_weight end, number = true },
  name = { pattern = true },
  where = { call = true },
}

local function known_keys()
  local out = {}
  for key, spec in pairs(keys) do
    out[#out + 1] = key
    if spec.number then out[#out + 1], out[#out + 2] = "min_" .. key, "max_" .. key end
  end
  table.sort(out)
  return out
end

M.keys = known_keys -- for completion

-- What is wrong with a key's value, or nil.
local function fault(key, spec, value)
  if spec.call and type(value) ~= "function" then return "select: where is a function of a module's record" end
  if spec.pattern and type(value) ~= "string" then return "select: name is a pattern, as grep takes it" end
  local wanted = type(value) == "table" and value or { value }
  for _, v in ipairs(wanted) do
    if spec.number and type(v) ~= "number" and type(v) ~= "function" then
      return ("select: %s is a number, found %s"):format(key, type(v) == "string" and ("%q"):format(v) or type(v))
    end
    local msg = spec.test and scheme_fault(v)
    if msg then return msg end
    local found = not spec.known or type(v) == "function"
    for _, name in pairs(spec.known or {}) do found = found or name == v end
    if not found then
      return ("select: no module has the %s %q%s"):format(key, tostring(v), text.did_you_mean(tostring(v), spec.known))
    end
  end
end

local function either(wanted, test)
  if type(wanted) ~= "table" then return test(wanted) end
  for _, one in ipairs(wanted) do
    if test(one) then return true end
  end
  return false
end

-- One key and its value as function(rec) -> bool | nil, msg.
local function condition(key, value)
  local bound, of_key = key:match "^(m[inax]+)_(.+)$"
  local spec = keys[key]
  if not spec and bound and keys[of_key] and keys[of_key].number then
    if type(value) ~= "number" then return nil, ("select: %s is a number, found %s"):format(key, type(value)) end
    local of = keys[of_key].of
    if bound == "min" then return function(rec) return (of(rec) or -math.huge) >= value end end
    if bound == "max" then return function(rec) return (of(rec) or math.huge) <= value end end
  end
  if not spec then return nil, ("select has no key %q%s"):format(key, text.did_you_mean(key, known_keys())) end
  local msg = fault(key, spec, value)
  if msg then return nil, msg end
  if spec.call then return value end
  if spec.pattern then return require("nibble.formats").matcher(value), nil, true end
  return function(rec)
    return either(value, function(wanted)
      if spec.test then return spec.test(wanted, rec) end
      local found = spec.of(rec)
      if type(wanted) == "function" then return found ~= nil and wanted(found) and true or false end
      return found == wanted
    end)
  end
end

-- ---- the list ------------------------------------------------------------------------------

local methods = {}
local List = { __index = methods, __methods = methods }

--- modules.list(ck, recs) -> list: the modules of these records (as ck["name"] gives them: with .weight and
-- .quantized), in their order; an array with methods.
function M.list(ck, recs)
  local out, formats = {}, require "nibble.formats"
  for i, rec in ipairs(recs) do out[i] = rec.checkpoint and rec or assert(formats.module(ck, rec.name)) end
  out.checkpoint = ck
  return setmetatable(out, List)
end

--- modules.is_list(x) -> whether x is such a list.
function M.is_list(x) return getmetatable(x) == List end

local function keep(list, test)
  local out = {}
  for _, rec in ipairs(list) do
    nffi.stop_check()
    if test(rec) then out[#out + 1] = rec end
  end
  return out
end

--- modules.grep(recs, pattern) -> array of the records whose names match | nil, msg, code
function M.grep(recs, pattern)
  if type(pattern) ~= "string" then return nil, "grep: expected a pattern, found " .. type(pattern), "einval" end
  local matches, msg, code = require("nibble.formats").matcher(pattern)
  if not matches then return nil, msg, code end
  return keep(recs, function(rec) return matches(rec.name) end)
end

--- modules.choose(recs, wanted) -> array of the records that m:select{…} means | nil, msg, "einval"
function M.choose(recs, wanted)
  if type(wanted) ~= "table" then
    return nil, 'select: expected a table, as in m:select{kind = "linear", bits = 4}', "einval"
  end
  local order = {}
  for key in pairs(wanted) do order[#order + 1] = tostring(key) end
  table.sort(order)
  for _, key in ipairs(order) do
    local test, msg, by_name = condition(key, wanted[key])
    if not test then return nil, msg, "einval" end
    recs = keep(recs, by_name and function(rec) return test(rec.name) end or test)
  end
  return recs
end

-- A caller's mistake is an error at the caller.
local function listed(ck, recs, msg)
  if not recs then error(msg, 3) end
  return M.list(ck, recs)
end

--- list:grep(pattern) -> list of those whose names match
-- pattern: a glob ("*.mlp.*"), "re:" and a regular expression, or a piece of a name.
function methods.grep(list, pattern) return listed(list.checkpoint, M.grep(list, pattern)) end

--- list:select{…} -> list of those that have it all; what it may say: ?m.select
function methods.select(list, wanted) return listed(list.checkpoint, M.choose(list, wanted)) end

--- list:names() -> array of the modules' names.
function methods.names(list)
  local out = {}
  for i, rec in ipairs(list) do out[i] = rec.name end
  return out
end

--- list:totals() -> {modules =, params =, bytes =, bits_per_weight =}
function methods.totals(list) return M.totals(list) end

--- list:show() -> text: one line for every module, and the totals.
function methods.show(list) return (M.table(list, { all = true, width = terminal.width() }):gsub("\n$", "")) end

--- list:stats([options]) -> what nb.stats says of these modules.
function methods.stats(list, options) return require("nibble.stats").of(list, options) end

function List.__tostring(list) return (M.table(list, { width = terminal.width() }):gsub("\n$", "")) end

M.methods = methods

return M
