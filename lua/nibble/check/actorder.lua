-- check.actorder: act-order that a consumer refuses, and act-order that is none.
local json = require "nibble.json"
local oracle = require "nibble.check.oracle"

-- Where the config says that columns are out of order -> "desc_act" | "actorder" | nil
local function said(context)
  local q = context.quantization and context.quantization.config
  if not q then return nil end
  if q.desc_act == true and q.group_size ~= -1 then return "desc_act" end
  for _, group in pairs(type(q.config_groups) == "table" and q.config_groups or {}) do
    local w = type(group) == "table" and group.weights
    local order = type(w) == "table" and w ~= json.null and w.actorder
    if order == "group" or order == "dynamic" or order == true then return "actorder" end
  end
end
require("nibble.ffi").interpreted(said)

-- Whether any module's columns really are.
local function acts(context)
  for _, rec in ipairs(context.modules) do
    if rec.scheme and rec.scheme.actorder == "group" then return true end
  end
  return false
end

local off = { desc_act = "desc_act to false", actorder = "actorder to null" }
local TRIVIAL = "the group indices are trivial in every module: set %s, and nothing else changes"

local function refused(context, add)
  local key, s = said(context), oracle.selection(context)
  if not s or not key then return end
  local fix = acts(context) and "quantize without act-order, or with actorder = weight, which reorders nothing on disk"
    or TRIVIAL:format(off[key])
  local repair = not acts(context) and { kind = "actorder" } or nil
  if s.refused and s.refused:find("desc_act", 1, true) then
    context.told_config, context.told_actorder = true, true
    add { says = s.refused, fix = fix, repair = repair, source = context.consumer .. " " .. (s.refused_by or "") }
  end
  oracle.tell(context, add, "actorder", function()
    context.told_actorder = true
    return { fix = fix, repair = repair, key = "" }
  end)
end

local function trivial(context, add)
  local key = said(context)
  if not key or context.told_actorder or acts(context) or #context.faults > 0 or context.faults.config then return end
  add { severity = "note", says = ("the config says act-order (%s), and every module's columns are in order"):format(key),
    fix = "set " .. off[key], source = context.quantization.source }
end

return {
  { id = "actorder-refused", about = "act-order that the consumer doesn't load", consumer = true, run = refused },
  { id = "actorder-trivial", about = "act-order in the config and none in the group indices", consumer = true, run = trivial },
}
