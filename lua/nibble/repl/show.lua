-- show: how a session and the commands print things: tables of text, a
-- checkpoint's one line, and any Lua value.
local units = require "nibble.units"
local text = require "nibble.show"

local M = {}

M.width, M.columns = text.width, text.columns

-- The dtype that holds most of the bytes.
local function main_dtype(tensors)
  local by, best = {}, nil
  for _, t in ipairs(tensors) do
    by[t.dtype] = (by[t.dtype] or 0) + t.bytes
    if not best or by[t.dtype] > by[best] then best = t.dtype end
  end
  return best or "empty"
end

--- totals(ck) -> params, bytes over all tensors of a checkpoint.
function M.totals(ck)
  local params, bytes = 0, 0
  for _, t in ipairs(ck.tensors) do params, bytes = params + t.params, bytes + t.bytes end
  return params, bytes
end

--- checkpoint(ck) -> "Qwen3-8B  safetensors ×5  399 tensors  8.2 G params  bf16  15.3 GiB"
-- what: the word for what most bytes are (default: their dtype); params: their
-- number where the tensors' own elements don't tell (packed weights).
function M.checkpoint(ck, what, params)
  local elements, bytes = M.totals(ck)
  local files = #ck.files > 1 and ("safetensors ×%d"):format(#ck.files) or "safetensors"
  return table.concat({
    ck.name, files, ("%d tensors"):format(#ck.tensors), units.count(params or elements) .. " params",
    what or main_dtype(ck.tensors), units.bytes(bytes),
  }, "  ")
end

local function key_text(k)
  if type(k) == "string" and k:match "^[%a_][%w_]*$" then return k end
  return ("[%s]"):format(type(k) == "string" and ("%q"):format(k) or tostring(k))
end

local function sorted_keys(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then return a < b end
    return type(a) == "number" and type(b) ~= "number"
  end)
  return keys
end

local function has_tostring(v)
  local mt = getmetatable(v)
  return type(mt) == "table" and rawget(mt, "__tostring") ~= nil
end

-- Text of a nested value; deep and long tables are cut, and say so.
local function brief(v, depth)
  if type(v) == "string" then return ("%q"):format(v):gsub("\\\n", "\\n") end
  if type(v) ~= "table" or has_tostring(v) then return tostring(v) end
  if depth <= 0 then return next(v) == nil and "{}" or "{…}" end
  local out, listed = {}, #v
  for i = 1, math.min(listed, 16) do out[i] = brief(v[i], depth - 1) end
  if listed > 16 then out[#out + 1] = ("… %d in all"):format(listed) end
  for _, k in ipairs(sorted_keys(v)) do
    if not (type(k) == "number" and k >= 1 and k <= listed) then
      if #out >= 32 then
        out[#out + 1] = "…"
        break
      end
      out[#out + 1] = key_text(k) .. " = " .. brief(v[k], depth - 1)
    end
  end
  return "{" .. table.concat(out, ", ") .. "}"
end

--- value(v) -> text: what the session prints for v. Things with their own
-- text (tensors, plans, checkpoints) use it; tables are written out, two deep.
function M.value(v)
  if type(v) == "table" and not has_tostring(v) then return brief(v, 3) end
  return tostring(v)
end

return M
