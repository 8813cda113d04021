-- inspect: what is in a checkpoint, module by module, from its headers only.
local modules = require "nibble.modules"
local stop_check = require("nibble.ffi").stop_check
local summary = require "nibble.summary"
local terminal = require "nibble.terminal"

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
    if not (rec.n and rec.k) then return of(json.array(modules.shape(rec))) end
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
  local totals = modules.totals(recs)
  local head = json.encode({
    name = ck.name, path = ck.path, files = json.array(ck.files), tensors = ck.count,
    metadata = ck.metadata, warnings = json.array(ck.warnings), params = totals.params, bytes = totals.bytes,
    model_type = ck.config and ck.config.model_type,
    quantization = ck.quantization and ck.quantization.config,
    bits_per_weight = totals.bits_per_weight,
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

local function inspect(values)
  local nb = require "nibble"
  local ck = assert(nb.open(values.model))
  local all = assert(ck:modules())
  local recs = values.pattern and assert(modules.grep(all, values.pattern)) or all
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
    io.write(summary.line(ck, all), "\n", modules.table(recs, { all = values.all, width = terminal.width() }))
  end
  return 0
end

--- run(values) -> status. All that is made is shown: looking for garbage would take a third of the time.
function M.run(values) return require("nibble.ffi").uncollected(inspect, values) end

return M
