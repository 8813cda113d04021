-- report.pack: what the page's script reads, small: each text once, module names once for a model, figures of modules
-- as columns of short numbers. Levels leave out more and more of the modules, for sweeps that would make the page too large.
local format = require "nibble.report.format"
local json = require "nibble.json"

local M = {}

--- What each level leaves out, as the page says it.
M.levels = {
  [0] = false,
  "the squared error of each module",
  "the bytes, scheme and squared error of each module",
  "the modules (each layer's worst one is kept)",
  "the modules",
  "the modules and the recipes' text",
}

-- Rows are arrays in this order; strings are places in the table of texts (0: none). JS reads the names from `fields`.
local fields = {
  "status", "recipe", "set", "model", "text", "scheme", "bits", "bytes", "ppl", "ratio", "kl", "top1", "sqnr", "seconds", "peak",
  "modelIndex", "job", "hash", "source", "context", "windows", "tokens", "nll", "against", "bytesModel", "worst", "secondsRun",
  "secondsEval", "attempts", "host", "processor", "version", "dbs", "schemes", "sizes", "errors", "layers",
}

local function rounded(v)
  v = format.finite(v)
  return v and tonumber(("%.6g"):format(v)) or json.null
end

-- Decibels as whole numbers, of tenths or hundredths; "i": no error at all.
local function whole(db, scale)
  if type(db) ~= "number" or db ~= db then return "" end
  return db == math.huge and "i" or math.abs(db) < 1e5 and ("%.0f"):format(db * scale) or ""
end

-- One column of a row's modules, in the order of the model's names; trailing holes cut.
local function column(m, row, f)
  local cells = {}
  for i = 1, #m.names do cells[i] = "" end
  for _, module in ipairs(row.modules) do
    local at = type(module) == "table" and m.index[module.name]
    if at then cells[at] = f(module) end
  end
  return (table.concat(cells, ","):gsub(",+$", ""))
end

local function byte_text(module) return format.finite(module.bytes) and ("%.0f"):format(module.bytes) or "" end
local function error_text(module)
  return format.finite(module.mse) and ("%.2e"):format(module.mse):gsub("e([+-])0", "e%1") or ""
end

local function layer_text(m, row)
  local _, worst = require("nibble.report.layers").by_layer(m, row)
  local out = {}
  for i = 1, #m.columns do out[i] = whole(worst[i], 10) end
  return table.concat(out, ",")
end

-- Texts by their place, each once.
local function texts()
  local list, place = json.array {}, {}
  return list, function(s)
    if s == nil or s == "" then return 0 end
    if not place[s] then
      list[#list + 1] = s
      place[s] = #list
    end
    return place[s]
  end
end

local function scheme_column(m, row, id)
  return column(m, row, function(module)
    return type(module.scheme) == "string" and tostring(id(format.clean(module.scheme, 80))) or ""
  end)
end

-- The columns of a row's modules are made once and serve every level.
local function memo(row, name, f)
  row.packed = row.packed or {}
  if not row.packed[name] then row.packed[name] = f() end
  return row.packed[name]
end

-- Models with the same modules share their names: {like = place of the first one, from 0}.
local function kept_models(models, level)
  local kept, first = json.array {}, {}
  for i, m in ipairs(models) do
    local key = table.concat(m.names, "\0") .. "\1" .. table.concat(m.kind, ",")
    if first[key] then
      kept[i] = { like = first[key] - 1 }
    else
      first[key] = i
      kept[i] = { columns = json.array(m.columns), kinds = json.array(m.kinds) }
      if level <= 2 then
        local names = json.array {}
        for k, name in ipairs(m.names) do names[k] = format.clean(name, 300) end
        kept[i].names, kept[i].kind, kept[i].column = names, json.array(m.kind), json.array(m.column)
      end
    end
  end
  return kept
end

--- new(rows, models, level) -> a table for format.data. level: 0 (all) to 5, see levels.
function M.new(rows, models, level)
  local list, id = texts()
  local out, scale = json.array {}, level == 0 and 100 or 10
  for i, row in ipairs(rows) do
    local m = models[row.model_index]
    local modules = #row.modules > 0
    local function packed(most, name, f) return modules and level <= most and id(memo(row, name, f)) or 0 end
    out[i] = json.array {
      id(row.status), id(row.recipe), id(row.set), id(row.model_name), id(row.text_name), id(row.scheme),
      rounded(row.bits), rounded(row.bytes), rounded(row.ppl), rounded(row.ratio), rounded(row.kl), rounded(row.top1),
      rounded(row.sqnr), rounded(row.seconds), rounded(row.peak),
      row.model_index - 1, id(row.job), id(row.recipe_hash), level < 5 and id(row.recipe_text) or 0,
      rounded(row.context), rounded(row.windows), rounded(row.tokens), rounded(row.nll), rounded(row.ppl_against),
      rounded(row.bytes_model), id(row.worst),
      rounded(row.seconds_run), rounded(row.seconds_eval), rounded(row.attempts), id(row.host), id(row.processor), id(row.version),
      packed(2, scale, function() return column(m, row, function(module) return whole(module.sqnr_db, scale) end) end),
      modules and level <= 1 and id(scheme_column(m, row, id)) or 0,
      packed(1, "sizes", function() return column(m, row, byte_text) end),
      packed(0, "errors", function() return column(m, row, error_text) end),
      level == 3 and modules and id(layer_text(m, row)) or 0,
    }
  end
  return { fields = fields, rows = out, models = kept_models(models, level), texts = list, scale = scale,
           chart = require("nibble.report.layers").chart }
end

--- least_bytes(packed) -> what its JSON takes at the least: spares writing what would be too long.
function M.least_bytes(packed)
  local bytes = 0
  for _, s in ipairs(packed.texts) do bytes = bytes + #s + 3 end
  return bytes
end

return M
