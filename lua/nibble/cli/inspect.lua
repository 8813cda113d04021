-- inspect: what is in a checkpoint, module by module, from its headers only.
local show = require "nibble.show"
local summary = require "nibble.summary"
local units = require "nibble.units"
local names = require "nibble.names"

local M = {
  summary = "what is in a checkpoint: modules, schemes, shapes, bits per weight, bytes",
  notes = "PATTERN: a glob over module names (*.mlp.*), a piece of a name, or re:REGULAR-EXPRESSION.\n"
    .. "Modules of the same kind in many layers share a line, unless --all is given.",
  args = { { "MODEL" }, { "PATTERN", optional = true } },
  options = {
    { "--all", doc = "one line for every module" },
    { "--json", doc = "one JSON document, every module in full" },
  },
}

-- More modules than this share lines.
local MANY = 24

local function shape_of(rec)
  if rec.n and rec.k then return { rec.n, rec.k } end
  for _, suffix in ipairs { "weight", "" } do
    if rec.tensors and rec.tensors[suffix] then return rec.tensors[suffix].shape end
  end
  local _, first = next(rec.tensors or {})
  return first and first.shape or {}
end

local scheme_text = summary.scheme

-- Modules whose names differ in numbers only, and that are alike, as one line each.
local function collapse(recs)
  local scheme = summary.schemes()
  local groups = names.collapse(recs, function(rec) return rec.name end, function(rec)
    return scheme(rec) .. "\1" .. (rec.n and rec.n .. "x" .. rec.k or table.concat(shape_of(rec), "x"))
  end)
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

local function sums(recs)
  local params, bytes = 0, 0
  for _, rec in ipairs(recs) do params, bytes = params + (rec.params or 0), bytes + rec.bytes end
  return params, bytes
end

local function as_text(ck, recs, all, everything)
  local lines = { summary.line(ck, all) }
  local groups = (#recs > MANY and not everything) and collapse(recs) or singles(recs)
  local rows = { { "module", "", "scheme", "shape", "bits/w", "bytes" } }
  for _, g in ipairs(groups) do
    rows[#rows + 1] = {
      g.name, g.count > 1 and "×" .. g.count or "", scheme_text(g.rec), table.concat(shape_of(g.rec), "×"),
      g.params > 0 and ("%.2f"):format(g.bytes * 8 / g.params) or "-", units.bytes(g.bytes),
    }
  end
  local shown, bytes = sums(recs)
  rows[#rows + 1] = {
    ("total: %d modules, %s params"):format(#recs, units.count(shown)), "", "", "",
    shown > 0 and ("%.2f"):format(bytes * 8 / shown) or "-", units.bytes(bytes),
  }
  lines[#lines + 1] = show.columns(rows, "lrlrrr")
  return table.concat(lines, "\n")
end

local function as_json(ck, recs)
  local json = require "nibble.json"
  local modules = {}
  for i, rec in ipairs(recs) do
    local tensors = {}
    for suffix, info in pairs(rec.tensors or {}) do
      tensors[suffix] = { dtype = info.dtype, shape = json.array(info.shape), file = info.file, bytes = info.bytes }
    end
    modules[i] = {
      name = rec.name, kind = rec.kind, format = rec.format, dtype = rec.dtype, scheme = rec.scheme,
      shape = json.array(shape_of(rec)), params = rec.params, bytes = rec.bytes,
      bits_per_weight = rec.bits_per_weight, bias = rec.bias, tensors = tensors,
      unreadable = rec.unreadable,
    }
  end
  local params, bytes = sums(recs)
  return json.encode({
    name = ck.name, path = ck.path, files = json.array(ck.files), tensors = #ck.tensors,
    metadata = ck.metadata, warnings = json.array(ck.warnings), params = params, bytes = bytes,
    model_type = ck.config and ck.config.model_type,
    quantization = ck.quantization and ck.quantization.config,
    bits_per_weight = params > 0 and bytes * 8 / params or nil, modules = json.array(modules),
  }, { indent = 2 }) .. "\n"
end

function M.run(values)
  local nb = require "nibble"
  local ck = assert(nb.open(values.model))
  local all = assert(ck:modules())
  local recs = values.pattern and assert(ck:grep(values.pattern)) or all
  if #recs == 0 and values.pattern then
    error(("no module of %s matches %s"):format(values.model, values.pattern), 0)
  end
  if not values.json then
    for _, warning in ipairs(ck.warnings or {}) do require("nibble.cli").say("%s", warning) end
  end
  io.write(values.json and as_json(ck, recs) or as_text(ck, recs, all, values.all))
  return 0
end

return M
