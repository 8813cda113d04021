-- scheme: how a weight is quantized, in compressed-tensors' vocabulary (SYSTEMS CTM-SEL-03).
--
-- A scheme is a plain table; checked once when it is made:
--   {type="int", bits=4, symmetric=true, strategy="group"|"channel"|"tensor", group=128|-1,
--    scale_dtype="bf16"|"f16"|"f32"|nil, actorder=nil|"group"|"weight"}
-- type is "int": the codes of a float type (fp8, fp4) have no scheme here yet.
local M = {}

local nffi = require "nibble.ffi"
local text = require "nibble.text"

M.MIN_BITS, M.MAX_BITS = 2, 8

local fields = { "actorder", "bits", "group", "scale_dtype", "strategy", "symmetric", "type" }
local strategies = { group = true, channel = true, tensor = true }
local scale_dtypes = { f16 = true, bf16 = true, f32 = true }
-- compressed-tensors' spellings of actorder.
local actorders = { group = "group", dynamic = "group", weight = "weight", static = "weight" }

-- Name -> the fields it stands for.
local presets = {}
for bits = M.MIN_BITS, M.MAX_BITS do
  presets[("W%dA16"):format(bits)] = { bits = bits, symmetric = true, group = 128 }
  presets[("W%dA16_ASYM"):format(bits)] = { bits = bits, symmetric = false, group = 128 }
end

--- names() -> sorted array of the presets' names.
function M.names()
  local out = {}
  for name in pairs(presets) do out[#out + 1] = name end
  table.sort(out)
  return out
end

-- The strategy that a group size means, when none is named (CTM-SEL-03).
local function inferred_strategy(group)
  if group == nil then return "tensor" end
  return group == -1 and "channel" or "group"
end

local function whole(v) return type(v) == "number" and v == math.floor(v) end

-- Which rule a set of fields breaks, as a sentence; nil when it breaks none.
local function fault(s)
  if s.type ~= "int" then
    return ('type = "%s": only "int" weights can be quantized here'):format(tostring(s.type))
  end
  if not whole(s.bits) or s.bits < M.MIN_BITS or s.bits > M.MAX_BITS then
    return ("bits = %s: expected %d to %d"):format(tostring(s.bits), M.MIN_BITS, M.MAX_BITS)
  end
  if type(s.symmetric) ~= "boolean" then
    return ("symmetric = %s: expected true or false"):format(tostring(s.symmetric))
  end
  if not strategies[s.strategy] then
    return ('strategy = "%s": expected group, channel or tensor'):format(tostring(s.strategy))
  end
  if s.group ~= nil and not (whole(s.group) and (s.group > 0 or s.group == -1)) then
    return ("group = %s: expected a number above 0, or -1 for one group a row"):format(tostring(s.group))
  end
  if s.strategy == "group" and (s.group or -1) < 0 then
    return ('strategy = "group" needs group > 0, found group = %s'):format(tostring(s.group))
  end
  if s.strategy ~= "group" and (s.group or -1) > 0 then
    return ('strategy = "%s" contradicts group = %d: leave group out, or use strategy = "group"')
      :format(s.strategy, s.group)
  end
  if s.scale_dtype ~= nil and not scale_dtypes[s.scale_dtype] then
    return ('scale_dtype = "%s": expected f16, bf16 or f32'):format(tostring(s.scale_dtype))
  end
  if s.actorder and s.strategy ~= "group" then
    return ('actorder = "%s" needs strategy = "group", found strategy = "%s"'):format(s.actorder, s.strategy)
  end
end

--- new(fields) -> scheme | nil, msg, code
-- fields: type ("int"), bits, symmetric (true), strategy (inferred from group: none = tensor, -1 =
-- channel, above 0 = group), group, scale_dtype, actorder (group | weight, or compressed-tensors'
-- dynamic | static, true = group). Contradictions are refused with both fields named.
function M.new(f)
  local order = f.actorder
  if order == true then order = "group" elseif order == false then order = nil end
  if order ~= nil and not actorders[order] then
    return nil, ('actorder = "%s": expected group or weight'):format(tostring(order)), "einval"
  end
  local s = {
    type = f.type or "int", bits = f.bits, group = f.group, scale_dtype = f.scale_dtype,
    strategy = f.strategy, actorder = actorders[order],
  }
  if f.symmetric == nil then s.symmetric = true else s.symmetric = f.symmetric end
  s.strategy = s.strategy or inferred_strategy(s.group)
  local msg = fault(s)
  if msg then return nil, msg, "einval" end
  s.group = s.strategy == "group" and s.group or -1
  return s
end

-- One word after the preset's name in "W4A16 g64 asym channel f16 actorder".
local function apply_word(f, word)
  local group = word:match "^g(%-?%d+)$"
  if group then
    f.group = tonumber(group)
    f.strategy = nil
  elseif word == "sym" then f.symmetric = true
  elseif word == "asym" then f.symmetric = false
  elseif word == "channel" or word == "tensor" then f.strategy, f.group = word, nil
  elseif word == "actorder" then f.actorder = "group"
  elseif scale_dtypes[word] then f.scale_dtype = word
  else return false end
  return true
end

-- A given group decides the strategy and a given strategy drops the preset's group, unless both are given.
local function override(f, options)
  for key, value in pairs(options) do
    local known = false
    for _, name in ipairs(fields) do known = known or name == key end
    if not known then return ("unknown scheme option %s%s"):format(tostring(key), text.did_you_mean(key, fields)) end
    f[key] = value
  end
  if options.group ~= nil and options.strategy == nil then f.strategy = nil end
  if options.strategy ~= nil and options.strategy ~= "group" and options.group == nil then f.group = nil end
end

nffi.interpreted(override)

--- try(name [, options]) -> scheme | nil, msg, code
-- parse() for names that come from a file: nothing is raised.
function M.try(name, options)
  if type(name) == "table" then
    local f = {}
    for k, v in pairs(name) do f[k] = v end
    if f.strategy ~= "group" and f.group == -1 then f.group = nil end
    local msg = override(f, options or {})
    if msg then return nil, msg, "einval" end
    return M.new(f)
  end
  if type(name) ~= "string" then return nil, "a scheme is a name or a table, found " .. type(name), "einval" end
  local words = {}
  for word in name:gmatch "%S+" do words[#words + 1] = word end
  local preset = presets[(words[1] or ""):upper()]
  if not preset then
    return nil, ("unknown scheme %q%s"):format(name, text.did_you_mean(words[1] or "", M.names())), "einval"
  end
  local f = {}
  for k, v in pairs(preset) do f[k] = v end
  for i = 2, #words do
    if not apply_word(f, words[i]) then
      return nil, ("scheme %q: unknown word %q; known: g<size>, channel, tensor, sym, asym, actorder, f16, bf16, f32")
        :format(name, words[i]), "einval"
    end
  end
  local msg = override(f, options or {})
  if msg then return nil, msg, "einval" end
  local s, why, code = M.new(f)
  if not s then return nil, ("scheme %q: %s"):format(name, why), code end
  return s
end

nffi.interpreted(M.try)

--- parse(name [, options]) -> scheme
-- name: a preset W{2..8}A16 or W{2..8}A16_ASYM (group 128), words after it ("W4A16 g64 asym"), or a
-- scheme's table; options override fields. What is unknown or contradictory is an error.
function M.parse(name, options)
  local s, msg = M.try(name, options)
  if not s then error(msg, 2) end
  return s
end

--- describe(scheme) -> "W4A16 g128 sym": parse() reads it back.
function M.describe(s)
  local words = { ("W%dA16"):format(s.bits) }
  words[2] = s.strategy == "group" and ("g%d"):format(s.group) or s.strategy
  words[3] = s.symmetric and "sym" or "asym"
  if s.actorder == "group" then words[#words + 1] = "actorder" end
  return table.concat(words, " ")
end

--- same(a, b) -> true when both quantize alike (the scales' dtype and metadata apart).
function M.same(a, b)
  return a.type == b.type and a.bits == b.bits and a.symmetric == b.symmetric and a.strategy == b.strategy
    and a.group == b.group and (a.actorder == "group") == (b.actorder == "group")
end

--- groups(scheme, k) -> how many scales a row of k has.
function M.groups(s, k)
  return s.strategy == "group" and math.ceil(k / s.group) or 1
end

--- zero_code(scheme) -> the code that stands for 0 when no zero-points are stored: 2^(bits-1).
function M.zero_code(s) return 2 ^ (s.bits - 1) end

--- quantized(scheme, n, k, scale_dtype [, g_idx]) -> Quantized: zero-filled storage for a weight
-- [n,k] or a tile of its rows; see nibble.quantized.
function M.quantized(s, n, k, scale_dtype, g_idx)
  return require "nibble.quantized".new(s, n, k, scale_dtype, g_idx)
end

return M
