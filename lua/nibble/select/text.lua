-- select.text: decisions of nibble.select as text for a person and as tables for JSON.
local names = require "nibble.names"
local scheme_m = require "nibble.scheme"
local show = require "nibble.show"
local text = require "nibble.text"

local M = {}

local shown_mt = { __index = {} }

-- "W4A16 g128 asym, awq" of a quantized layer, "bf16" of a plain one.
local function stored(layer)
  local rec = layer.members[1]
  if not rec then return "" end
  if rec.scheme then return ("%s, %s"):format(scheme_m.describe(rec.scheme), rec.format) end
  return rec.unreadable and rec.format or tostring(rec.dtype or "")
end

local function size(layer)
  if layer.kind == "moe" then
    return ("%d experts [%s×%s]"):format(layer.experts or 0, tostring(layer.intermediate_full), tostring(layer.hidden))
  end
  return layer.n_full and ("[%d×%d]"):format(layer.n_full, layer.k_full) or ""
end

-- "of this rank 384×256", where it is not the whole.
local function rank(layer, tp)
  if tp == 1 then return "" end
  local on = ("  on each of %d ranks "):format(tp)
  if layer.kind == "moe" then return on .. ("[%s×%s]"):format(tostring(layer.intermediate), tostring(layer.hidden)) end
  return layer.n and layer.parallel and on .. ("[%d×%d], %s parallel"):format(layer.n, layer.k, layer.parallel) or ""
end

-- What makes two layers one line.
local function key_of(d)
  local layer = d.layer
  local leaf = #layer.members
  local reason = d.reason:gsub("%d+", "#")
  return table.concat({ d.action, d.method or "", d.backend or "", stored(layer), size(layer), tostring(leaf), reason },
    "\1")
end

local function groups_of(list) return names.collapse(list, function(d) return d.name end, key_of) end

local function verdict(d)
  if d.action == "refuse" then return "refused" end
  if d.action == "skip" then return "unquantized" end
  return d.method .. (d.action == "fallback" and " (fallback)" or d.action == "override" and " (forced)" or "")
end

-- Which modules the consumer makes one layer of | nil
local function together(layer)
  if layer.kind == "moe" then
    return ("one layer of %d experts' %s"):format(layer.experts, table.concat(layer.projections, ", "))
  end
  if #layer.members < 2 then return nil end
  local out = {}
  for i, rec in ipairs(layer.members) do out[i] = text.leaf(rec.name) end
  return "one layer of " .. table.concat(out, ", ")
end

local function rejected_lines(out, d)
  local width = 0
  for _, r in ipairs(d.rejected) do
    r.shown = r.variant and ("%s (%s)"):format(r.backend, r.variant) or r.backend
    width = math.max(width, show.width(r.shown))
  end
  for _, r in ipairs(d.rejected) do
    out[#out + 1] = ("    no %s%s  %s%s"):format(r.shown, (" "):rep(width - show.width(r.shown)), r.reason,
      r.requirement and "  [" .. r.requirement .. "]" or "")
  end
end

-- One decision in full; g: the group it stands for.
local function in_full(out, s, d, g)
  local layer = d.layer
  local what = {}
  for _, word in ipairs { size(layer), stored(layer) } do
    if word ~= "" then what[#what + 1] = word end
  end
  out[#out + 1] = ("%s%s  %s%s"):format(g.name, g.count > 1 and " ×" .. g.count or "", table.concat(what, "  "),
    rank(layer, s.tp))
  local parts = together(layer)
  if parts then out[#out + 1] = "  " .. parts end
  out[#out + 1] = ("  %s  %s  [%s]"):format(verdict(d), d.reason, d.requirement or "-")
  if d.backend then
    out[#out + 1] = ("  kernel %s%s%s"):format(d.backend, d.class and " (" .. d.class .. ")" or "",
      d.of and d.of > 1 and d.position and (", %d of %d by priority"):format(d.position, d.of) or "")
  end
  rejected_lines(out, d)
  if d.note then out[#out + 1] = "  note: " .. d.note end
  if d.also and #d.also > 0 then out[#out + 1] = "  also: " .. table.concat(d.also, ", ") end
  if d.change then out[#out + 1] = ("  change: %s → %s"):format(d.change, d.better) end
  if d.warning then out[#out + 1] = "  warning: " .. d.warning end
end

local function head(s)
  local config = "no quantization config"
  if s.source then config = ("config from %s%s"):format(s.source, s.method and ", method " .. s.method or "") end
  local ranks = s.tp > 1 and ", " .. s.tp .. " ranks" or ""
  local out = { ("%s at %s on %s%s: %s"):format(s.from.name, s.consumer, s.device, ranks, config) }
  if s.said then out[2] = "  " .. s.said end
  return out
end

-- Layers that methods take at all.
local function counted(layer) return layer.kind == "moe" or layer.n_full ~= nil and layer.kind ~= "embedding" end

local function summary(out, list)
  local rows = { { "layer", "", "stored", "method", "kernel", "why" } }
  local others = 0
  for _, g in ipairs(groups_of(list)) do
    local d = g.items[1]
    if d.action == "skip" and not counted(d.layer) then
      others = others + g.count
    else
      rows[#rows + 1] = { g.name, g.count > 1 and "×" .. g.count or "", stored(d.layer), verdict(d), d.backend or "",
        d.reason }
    end
  end
  for line in show.columns(rows, "lrllll"):gmatch "[^\n]+" do out[#out + 1] = line end
  if others > 0 then out[#out + 1] = ("and %d modules that are no linear layers"):format(others) end
end

local function counts(list)
  local by = { method = 0, override = 0, fallback = 0, skip = 0, refuse = 0 }
  for _, d in ipairs(list) do
    if counted(d.layer) then by[d.action] = by[d.action] + 1 end
  end
  return by
end

--- shown:lines() -> array of text lines: each decision in full for a name or pattern, else a table of all.
function shown_mt.__index.lines(r)
  local out = head(r.selection)
  if r.pattern then
    for _, g in ipairs(groups_of(r.list)) do in_full(out, r.selection, g.items[1], g) end
  else
    summary(out, r.list)
    local by = counts(r.list)
    local all = by.method + by.override + by.fallback + by.skip + by.refuse
    out[#out + 1] = ("%d layers: %d by their method, %d forced, %d fall back, %d unquantized, %d refused"):format(all,
      by.method, by.override, by.fallback, by.skip, by.refuse)
    local seen = {}
    for _, d in ipairs(r.list) do
      if d.change and not seen[d.change] then
        seen[d.change] = true
        out[#out + 1] = ("change: %s → %s"):format(d.change, d.better)
      end
    end
  end
  return out
end

function shown_mt.__tostring(r) return table.concat(r:lines(), "\n") end

local function rejected_table(list)
  local out = {}
  for i, r in ipairs(list) do
    out[i] = { backend = r.backend, variant = r.variant, reason = r.reason, requirement = r.requirement }
  end
  return require("nibble.json").array(out)
end

--- shown:totable() -> {model, consumer, device, tp, config, method, said, layers = {{name, kind, modules, action,
-- method, backend, reason, requirement, rejected, change, …}, …}, warnings}: what --json prints.
function shown_mt.__index.totable(r)
  local json, s, layers = require "nibble.json", r.selection, {}
  for i, d in ipairs(r.list) do
    local layer, modules = d.layer, {}
    for j, rec in ipairs(layer.members) do modules[j] = rec.name end
    layers[i] = { name = layer.name, kind = layer.kind, modules = json.array(modules), action = d.action,
      method = d.method, backend = d.backend, class = d.class, reason = d.reason, requirement = d.requirement,
      change = d.change, better = d.better, note = d.note, warning = d.warning,
      rejected = rejected_table(d.rejected), also = d.also and json.array(d.also),
      n = layer.n, k = layer.k, n_full = layer.n_full, k_full = layer.k_full, parallel = layer.parallel,
      hidden = layer.hidden, intermediate = layer.intermediate, intermediate_full = layer.intermediate_full,
      experts = layer.experts, stored = stored(layer) }
  end
  return { model = s.from.name, consumer = s.consumer, device = s.device, tp = s.tp, config = s.source,
    method = s.method, said = s.said, layers = json.array(layers), warnings = json.array(s.warnings) }
end

--- text.new(selection, decisions [, pattern]) -> what explain gives: the decisions as an array, with lines(),
-- totable() and text for a session.
function M.new(selection, list, pattern)
  local out = setmetatable({ selection = selection, list = list, pattern = pattern }, shown_mt)
  for i, d in ipairs(list) do out[i] = d end
  return out
end

return M
