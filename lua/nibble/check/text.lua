-- check.text: what check found as lines for a person.
local names = require "nibble.names"

local M = {}

local SHOWN = 3 -- groups of names on one line

local function plural(n, word) return ("%d %s%s"):format(n, word, n == 1 and "" or "s") end

-- "model.layers.{0..3}.mlp.up_proj, lm_head, …": where a finding is.
local function place(f)
  local list = f.modules or f.tensors or { f.module or f.tensor or f.file }
  local groups, out = names.collapse(list, function(name) return name end, function() return "" end), {}
  for i = 1, math.min(SHOWN, #groups) do out[i] = groups[i].name end
  if #groups > SHOWN then out[#out + 1] = "…" end
  return table.concat(out, ", ")
end

local function head(r)
  local c, parts = r.counts, {}
  for _, severity in ipairs { "error", "warning", "note" } do
    if c[severity] > 0 then parts[#parts + 1] = plural(c[severity], severity) end
  end
  return ("%s at %s on %s, tp %s: %s"):format(r.name, table.concat(r.consumers, ", "), r.device, table.concat(r.tp, " "),
    #parts > 0 and table.concat(parts, ", ") or ("nothing found in %s of %s"):format(plural(r.modules, "module"),
      plural(r.tensors, "tensor")))
end

-- The kinds that nibble repair mends.
local function repairs()
  local found, repair = pcall(require, "nibble.repair")
  local out = {}
  for _, k in ipairs(found and repair.kinds() or {}) do out[k.kind] = true end
  return out
end

local function repair_of(f, kinds)
  if not f.repair or not kinds[f.repair.kind] then return "" end
  return (" (nibble repair --only %s%s)"):format(f.repair.kind, f.repair.kind == "padding" and " --tp " .. f.repair.tp or "")
end

--- text.of(result) -> lines: a head, then each finding: severity, rule, how many, where; the sentence; the fix.
function M.of(r)
  local out, kinds = { head(r) }, #r.findings > 0 and repairs() or {}
  for _, f in ipairs(r.findings) do
    out[#out + 1] = ("%-7s  %s%s  %s"):format(f.severity, f.rule, f.count > 1 and (" ×%d"):format(f.count) or "", place(f))
    out[#out + 1] = ("  %s%s"):format(f.says, f.source and ("  [%s]"):format(f.source) or "")
    if f.fix then out[#out + 1] = "  fix: " .. f.fix .. repair_of(f, kinds) end
  end
  for i, line in ipairs(out) do out[i] = line:gsub("%s+$", "") end
  return table.concat(out, "\n")
end

return M
