-- summary: a checkpoint in one line.
local units = require "nibble.units"

local M = {}

--- scheme(rec) -> "W4A16 g128 sym" of a quantized module's record, else its dtype.
function M.scheme(rec)
  if rec.scheme then return require("nibble.scheme").describe(rec.scheme) end
  return rec.dtype or (rec.unreadable and "not readable") or "-"
end

--- schemes() -> scheme(rec) that makes each text once: many modules share one scheme's table.
function M.schemes()
  local texts = {}
  return function(rec)
    if not rec.scheme then return M.scheme(rec) end
    local said = texts[rec.scheme]
    if not said then
      said = M.scheme(rec)
      texts[rec.scheme] = said
    end
    return said
  end
end

-- What most of the parameters are in: dtype, or format and scheme.
local function mainly(recs)
  local by, best, scheme = {}, nil, M.schemes()
  for _, rec in ipairs(recs) do
    local text = rec.scheme and rec.format .. " " .. scheme(rec) or rec.dtype or "?"
    by[text] = (by[text] or 0) + (rec.params or rec.bytes)
    if not best or by[text] > by[best] then best = text end
  end
  return best or "empty"
end

--- line(ck [, recs]) -> "Qwen3-8B  safetensors ×5  399 tensors  8.2 G params  bf16  15.3 GiB"
-- recs: the checkpoint's module records, if they are there already.
function M.line(ck, recs)
  recs = recs or ck:modules() or {}
  local params, bytes = 0, 0
  for _, rec in ipairs(recs) do params, bytes = params + (rec.params or 0), bytes + rec.bytes end
  return table.concat({
    ck.name, #ck.files > 1 and ("safetensors ×%d"):format(#ck.files) or "safetensors",
    ("%d tensors"):format(ck.count), units.count(params) .. " params", mainly(recs), units.bytes(bytes),
  }, "  ")
end

return M
