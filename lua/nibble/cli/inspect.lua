-- inspect: what is in a checkpoint, module by module, from its headers only.
local show = require "nibble.show"
local stop_check = require("nibble.ffi").stop_check
local terminal = require "nibble.terminal"
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
  only_reads = true,
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

-- Modules whose names differ in numbers only, and that are alike, as one line each. What is alike is one table for
-- each pair of a scheme's text and a shape: many modules share both.
local function collapse(recs)
  local scheme, by_scheme = summary.schemes(), {}
  local function kind(rec)
    local said = scheme(rec)
    local shapes = by_scheme[said]
    if not shapes then
      shapes = {}
      by_scheme[said] = shapes
    end
    local shape = rec.n and rec.n * 2 ^ 26 + rec.k or table.concat(shape_of(rec), "x")
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

local function sums(recs)
  local params, bytes = 0, 0
  for _, rec in ipairs(recs) do params, bytes = params + (rec.params or 0), bytes + rec.bytes end
  return params, bytes
end

-- The table, cut to a terminal of that width; the totals are always whole.
local function as_text(ck, recs, all, everything, width)
  local groups = (#recs > MANY and not everything) and collapse(recs) or singles(recs)
  local rows = { { "module", "", "scheme", "shape", "bits/w", "bytes" } }
  for _, g in ipairs(groups) do
    rows[#rows + 1] = {
      g.name, g.count > 1 and "×" .. g.count or "", scheme_text(g.rec), table.concat(shape_of(g.rec), "×"),
      g.params > 0 and ("%.2f"):format(g.bytes * 8 / g.params) or "-", units.bytes(g.bytes),
    }
  end
  local params, bytes = sums(recs)
  return summary.line(ck, all) .. "\n" .. show.columns(rows, "lrlrrr", width, {
    ("total: %d modules, %s params"):format(#recs, units.count(params)), "", "", "",
    params > 0 and ("%.2f"):format(bytes * 8 / params) or "-", units.bytes(bytes),
  })
end

-- What many modules have in common is encoded once: values by their text at this place of the document.
local function memory(json, indent)
  local texts = {}
  return function(value)
    if value == nil then return nil end
    local text = texts[value]
    if not text then
      text = json.encode(value, { indent = 2 }):gsub("\n", "\n" .. (" "):rep(indent))
      texts[value] = text
    end
    return text
  end
end

-- fn(rec) that writes one module's object as json.encode would at this depth, piece by piece. `of` and `of_tensor`
-- remember what they encoded.
local function module_writer(json, file)
  local of, of_tensor, shapes, suffixes = memory(json, 6), memory(json, 10), {}, {}
  local function shape(rec)
    if not (rec.n and rec.k) then return of(json.array(shape_of(rec))) end
    local id = rec.n * 2 ^ 26 + rec.k
    if not shapes[id] then shapes[id] = of(json.array { rec.n, rec.k }) end
    return shapes[id]
  end
  local function tensors(rec)
    local count = 0
    for suffix in pairs(rec.tensors or {}) do
      count = count + 1
      suffixes[count] = suffix
    end
    for i = #suffixes, count + 1, -1 do suffixes[i] = nil end
    if count > 1 then table.sort(suffixes) end
    file:write(',\n      "tensors": {')
    for i = 1, count do
      local info = rec.tensors[suffixes[i]]
      file:write(i > 1 and "," or "", "\n        ", of(suffixes[i]), ': {\n          "bytes": ', of(info.bytes),
        ',\n          "dtype": ', of(info.dtype), ',\n          "file": ', of(info.file), ',\n          "shape": ',
        of_tensor(json.array(info.shape)), "\n        }")
    end
    file:write(count > 0 and "\n      }" or "}")
  end
  local function put(key, text)
    if text then file:write(",\n      ", key, text) end
  end
  return function(rec)
    file:write('    {\n      "name": ', json.encode(rec.name))
    put('"bias": ', of(rec.bias))
    put('"bits_per_weight": ', of(rec.bits_per_weight))
    put('"bytes": ', of(rec.bytes))
    put('"dtype": ', of(rec.dtype))
    put('"format": ', of(rec.format))
    put('"kind": ', of(rec.kind))
    put('"params": ', of(rec.params))
    put('"scheme": ', of(rec.scheme))
    put('"shape": ', shape(rec))
    tensors(rec)
    put('"unreadable": ', of(rec.unreadable))
    file:write "\n    }"
  end
end

-- Module after module, so that what is written never lies in memory as a whole.
local function write_json(ck, recs, file)
  local json = require "nibble.json"
  local params, bytes = sums(recs)
  local head = json.encode({
    name = ck.name, path = ck.path, files = json.array(ck.files), tensors = ck.count,
    metadata = ck.metadata, warnings = json.array(ck.warnings), params = params, bytes = bytes,
    model_type = ck.config and ck.config.model_type,
    quantization = ck.quantization and ck.quantization.config,
    bits_per_weight = params > 0 and bytes * 8 / params or nil,
  }, { indent = 2 })
  file:write(head:sub(1, -3), ',\n  "modules": [')
  local write = module_writer(json, file)
  for i, rec in ipairs(recs) do
    if i % 4096 == 0 then stop_check() end
    file:write(i > 1 and ",\n" or "\n")
    write(rec)
  end
  file:write(#recs > 0 and "\n  ]\n}\n" or "]\n}\n")
end

function M.run(values)
  local nb = require "nibble"
  collectgarbage "stop" -- all that is made here is shown: looking for garbage takes a third of the time
  local ck = assert(nb.open(values.model))
  local all = assert(ck:modules())
  local recs = values.pattern and assert(ck:grep(values.pattern)) or all
  if #recs == 0 and values.pattern then
    error(("no module of %s matches %s"):format(values.model, values.pattern), 0)
  end
  if not values.json then
    for _, warning in ipairs(ck.warnings or {}) do require("nibble.cli").say("%s", warning) end
  end
  if values.json then
    io.stdout:setvbuf("full", 65536)
    write_json(ck, recs, io.stdout)
  else
    io.write(as_text(ck, recs, all, values.all, terminal.width(1)))
  end
  return 0
end

return M
