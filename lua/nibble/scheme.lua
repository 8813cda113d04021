-- scheme: how a weight is quantized, in compressed-tensors' vocabulary (SYSTEMS CTM-SEL-03).
--
-- A scheme is a plain table; checked once when it is made:
--   {type="int"|"float", bits=4, symmetric=true, strategy="tensor"|"channel"|"group"|"block"|"tensor_group",
--    group=128|-1, block={rows, columns}|nil, scale_dtype="f16"|"bf16"|"f32"|"f8_e4m3"|"e8m0"|nil,
--    actorder=nil|"group"|"weight", activations=nil|{…} (see scheme_activations)}
-- Float weights: 8 bits are e4m3 (any strategy but tensor_group); 4 bits are e2m1, either tensor_group (e4m3
-- scales under one of the tensor: NVFP4) or group with e8m0 scales (MXFP4). Their scales otherwise are plain floats.
local M = {}

local nffi = require "nibble.ffi"
local text = require "nibble.text"
local presets = require "nibble.scheme_presets"
local activations = require "nibble.scheme_activations"

M.MIN_BITS, M.MAX_BITS = 2, 8

local fields = { "activations", "actorder", "bits", "block", "group", "scale_dtype", "strategy", "symmetric", "type" }
local strategies = { group = true, channel = true, tensor = true, block = true, tensor_group = true }
-- nibble's and tensors' spellings.
local scale_dtypes = { f16 = "f16", bf16 = "bf16", f32 = "f32", f8_e4m3 = "f8_e4m3", e8m0 = "e8m0", f8_e8m0 = "e8m0" }
-- compressed-tensors' spellings of actorder.
local actorders = { group = "group", dynamic = "group", weight = "weight", static = "weight" }

--- names() -> sorted array of the presets' names.
function M.names() return presets.names() end

-- The strategy that a group size means, when none is named (CTM-SEL-03).
local function inferred_strategy(group)
  if group == nil then return "tensor" end
  return group == -1 and "channel" or "group"
end

local function whole(v) return type(v) == "number" and v == math.floor(v) end

local function grouped(s) return s.strategy == "group" or s.strategy == "tensor_group" end

-- ---- what a scheme may not say -----------------------------------------------------

-- Each field for itself.
local function field_fault(s)
  if s.type ~= "int" and s.type ~= "float" then
    return ('type = "%s": expected int or float'):format(tostring(s.type))
  end
  if not whole(s.bits) or s.bits < M.MIN_BITS or s.bits > M.MAX_BITS then
    return ("bits = %s: expected %d to %d"):format(tostring(s.bits), M.MIN_BITS, M.MAX_BITS)
  end
  if type(s.symmetric) ~= "boolean" then
    return ("symmetric = %s: expected true or false"):format(tostring(s.symmetric))
  end
  if not strategies[s.strategy] then
    return ('strategy = "%s": expected group, channel, tensor, block or tensor_group'):format(tostring(s.strategy))
  end
  if s.group ~= nil and not (whole(s.group) and (s.group > 0 or s.group == -1)) then
    return ("group = %s: expected a number above 0, or -1 for one group a row"):format(tostring(s.group))
  end
end

-- Strategy against group, block and actorder.
local function strategy_fault(s)
  if grouped(s) and (s.group or -1) < 0 then
    return ('strategy = "%s" needs group > 0, found group = %s'):format(s.strategy, tostring(s.group))
  end
  if not grouped(s) and (s.group or -1) > 0 then
    return ('strategy = "%s" contradicts group = %d: leave group out, or use strategy = "group"')
      :format(s.strategy, s.group)
  end
  if s.strategy == "block" and not s.block then
    return 'strategy = "block" needs block = {rows, columns}, found none'
  end
  if s.strategy ~= "block" and s.block then
    return ('strategy = "%s" contradicts block = %dx%d: leave block out, or use strategy = "block"'):format(s.strategy,
      s.block[1], s.block[2])
  end
  if s.actorder == "group" and s.strategy ~= "group" then
    return ('actorder = "group" needs strategy = "group", found strategy = "%s"'):format(s.strategy)
  end
end

-- Type against everything else.
local function type_fault(s)
  if s.type == "int" then
    if s.strategy == "block" or s.strategy == "tensor_group" then
      return ('strategy = "%s" needs type = "float", found type = "int"'):format(s.strategy)
    end
    if s.scale_dtype == "f8_e4m3" or s.scale_dtype == "e8m0" then
      return ('scale_dtype = "%s" needs type = "float", found type = "int"'):format(s.scale_dtype)
    end
    return nil
  end
  if s.bits ~= 4 and s.bits ~= 8 then return ('type = "float" needs bits = 4 or 8, found bits = %d'):format(s.bits) end
  if not s.symmetric then return 'type = "float" contradicts symmetric = false: float codes have a sign of their own' end
  if s.actorder == "group" then return 'type = "float" contradicts actorder = "group"' end
  if (s.strategy == "tensor_group") ~= (s.scale_dtype == "f8_e4m3") then
    return ('scale_dtype = "f8_e4m3" and strategy = "tensor_group" belong together, found scale_dtype = %s and strategy = "%s"')
      :format(s.scale_dtype and '"' .. s.scale_dtype .. '"' or "none", s.strategy)
  end
  if s.strategy == "tensor_group" and s.bits ~= 4 then
    return ('strategy = "tensor_group" needs bits = 4, found bits = %d'):format(s.bits)
  end
  if s.bits == 4 and not grouped(s) then
    return ('type = "float" with bits = 4 needs strategy = "tensor_group" or "group", found strategy = "%s"'):format(s.strategy)
  end
  if s.bits == 4 and s.strategy == "group" and s.scale_dtype ~= "e8m0" then
    return ('type = "float" with bits = 4 and strategy = "group" needs scale_dtype = "e8m0", found scale_dtype = "%s"')
      :format(s.scale_dtype)
  end
end

-- The first rule that a set of fields breaks, as a sentence; nil when it breaks none.
local function fault(s) return field_fault(s) or strategy_fault(s) or type_fault(s) end

-- Scales of 4-bit floats, where none are named.
local function inferred_scale_dtype(s)
  if s.type ~= "float" or s.bits ~= 4 then return nil end
  return s.strategy == "tensor_group" and "f8_e4m3" or s.strategy == "group" and "e8m0" or nil
end

-- {128, 128} or "128x128" -> {rows, columns} | nil, msg
local function block_of(value)
  local b = value
  if type(value) == "string" then
    local rows, columns = value:match "^(%d+)x(%d+)$"
    b = { tonumber(rows), tonumber(columns) }
  end
  if type(b) == "table" and #b == 2 and whole(b[1]) and whole(b[2]) and b[1] > 0 and b[2] > 0 then
    return { b[1], b[2] }
  end
  local found = tostring(value)
  if type(value) == "table" then found = ("{%s, %s}"):format(tostring(value[1]), tostring(value[2])) end
  return nil, ('block = %s: expected {rows, columns}, both above 0, or "128x128"'):format(found)
end

-- ---- making ------------------------------------------------------------------------

-- The parts that have spellings of their own, into s | msg
local function spelled_parts(s, f)
  local order = f.actorder
  if order == true then order = "group" elseif order == false then order = nil end
  if order ~= nil and not actorders[order] then
    return ('actorder = "%s": expected group or weight'):format(tostring(order))
  end
  s.actorder = actorders[order]
  if f.scale_dtype ~= nil and not scale_dtypes[f.scale_dtype] then
    return ('scale_dtype = "%s": expected f16, bf16, f32, f8_e4m3 or e8m0'):format(tostring(f.scale_dtype))
  end
  s.scale_dtype = scale_dtypes[f.scale_dtype]
  local msg
  if f.block then s.block, msg = block_of(f.block) end
  if msg then return msg end
  if f.activations then s.activations, msg = activations.new(f.activations) end
  return msg
end

--- new(fields) -> scheme | nil, msg, code
-- fields: type ("int"), bits, symmetric (true), strategy (inferred from group: none = tensor, -1 =
-- channel, above 0 = group), group, block ({rows, columns} or "128x128"), scale_dtype, actorder (group |
-- weight, or compressed-tensors' dynamic | static, true = group), activations (a table or a word, false:
-- none). Contradictions are refused with both fields named (CTM-SEL-03).
function M.new(f)
  local s = { type = f.type or "int", bits = f.bits, group = f.group }
  local msg = spelled_parts(s, f)
  if msg then return nil, msg, "einval" end
  if f.symmetric == nil then s.symmetric = true else s.symmetric = f.symmetric end
  s.strategy = f.strategy or inferred_strategy(s.group)
  s.scale_dtype = s.scale_dtype or inferred_scale_dtype(s)
  msg = fault(s)
  if msg then return nil, msg, "einval" end
  s.group = grouped(s) and s.group or -1
  return s
end

-- One word after the preset's name in "W4A16 g64 asym channel f16 actorder".
local function apply_word(f, word)
  local group, block = word:match "^g(%-?%d+)$", word:match "^block(%d+x%d+)$"
  if group then
    f.group, f.block = tonumber(group), nil
    if f.strategy ~= "tensor_group" then f.strategy = nil end
  elseif block then f.strategy, f.block, f.group = "block", block, nil
  elseif word == "sym" then f.symmetric = true
  elseif word == "asym" then f.symmetric = false
  elseif word == "channel" or word == "tensor" then f.strategy, f.group, f.block = word, nil, nil
  elseif word == "actorder" then f.actorder = "group"
  elseif word:match "^act:" then f.activations = word:sub(5)
  elseif scale_dtypes[word] then f.scale_dtype = word
  else return false end
  return true
end

-- A given group or block decides the strategy and a given strategy drops the preset's group and block,
-- unless both are given.
local function override(f, options)
  for key, value in pairs(options) do
    local known = false
    for _, name in ipairs(fields) do known = known or name == key end
    if not known then return ("unknown scheme option %s%s"):format(tostring(key), text.did_you_mean(key, fields)) end
    f[key] = value
  end
  if options.strategy == nil then
    if options.block ~= nil then f.strategy, f.group = "block", options.group
    elseif options.group ~= nil then
      f.block = nil
      if f.strategy ~= "tensor_group" then f.strategy = nil end
    end
    return nil
  end
  if options.block == nil and options.strategy ~= "block" then f.block = nil end
  if options.group == nil and options.strategy ~= "group" and options.strategy ~= "tensor_group" then f.group = nil end
end

nffi.interpreted(override)

--- try(name [, options]) -> scheme | nil, msg, code
-- parse() for names that come from a file: nothing is raised.
function M.try(name, options)
  if type(name) == "table" then
    local f = {}
    for k, v in pairs(name) do f[k] = v end
    if not grouped(f) and f.group == -1 then f.group = nil end
    local msg = override(f, options or {})
    if msg then return nil, msg, "einval" end
    return M.new(f)
  end
  if type(name) ~= "string" then return nil, "a scheme is a name or a table, found " .. type(name), "einval" end
  local words = {}
  for word in name:gmatch "%S+" do words[#words + 1] = word end
  local f = presets.get(words[1] or "")
  if not f then
    return nil, ("unknown scheme %q%s"):format(name, text.did_you_mean(words[1] or "", M.names())), "einval"
  end
  for i = 2, #words do
    if not apply_word(f, words[i]) then
      return nil, ("scheme %q: unknown word %q; known: g<size>, channel, tensor, block<rows>x<columns>, sym, asym, actorder, "
        .. "act:<type><bits>:<strategy>, f16, bf16, f32, f8_e4m3, e8m0"):format(name, words[i]), "einval"
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
-- name: a preset (names()), with words after it ("W4A16 g64 asym", "FP8 channel"), or a scheme's table;
-- options override fields. What is unknown or contradictory is an error.
function M.parse(name, options)
  local s, msg = M.try(name, options)
  if not s then error(msg, 2) end
  return s
end

-- ---- telling -----------------------------------------------------------------------

-- e8m0 and e4m3 scales make another scheme; f16, bf16 and f32 only say how scales are stored.
local function scale_kind(s) return (s.scale_dtype == "e8m0" or s.scale_dtype == "f8_e4m3") and s.scale_dtype or "float" end

local function same_block(a, b)
  return a == b or (a ~= nil and b ~= nil and a[1] == b[1] and a[2] == b[2])
end

-- What the preset and the scheme have in common: nil where the name can't stand for it, else how well it fits.
local function fit(s, p, with_activations)
  if p.type ~= s.type or p.bits ~= s.bits or not p.symmetric then return nil end
  if with_activations and not activations.same(p.activations, s.activations) then return nil end
  if not with_activations and p.activations then return nil end
  local strategy = p.strategy or "group"
  if scale_kind(s) ~= scale_kind(p) then return nil end
  return (strategy == s.strategy and 1 or 0) + (same_block(p.block, s.block) and 1 or 0)
end

local function named(s, with_activations)
  local best, score
  for _, preset in ipairs(presets.list) do
    local f = fit(s, preset.fields, with_activations)
    if f and (not best or f > score) then best, score = preset, f end
  end
  return best
end

-- The word for where scales are shared.
local function strategy_word(s)
  if grouped(s) then return "g" .. s.group end
  return s.strategy == "block" and ("block%dx%d"):format(s.block[1], s.block[2]) or s.strategy
end

--- describe(scheme) -> "W4A16 g128 sym", "FP8_DYNAMIC", "NVFP4A16": parse() reads it back.
-- Ints always tell group and symmetry; floats what their preset doesn't.
function M.describe(s)
  local preset = named(s, true)
  local act = not preset and s.activations
  preset = preset or named(s, false)
  local words = { preset.name }
  if s.type == "int" then
    words[2], words[3] = strategy_word(s), s.symmetric and "sym" or "asym"
  else
    local p = preset.fields
    if p.strategy ~= s.strategy or (grouped(s) and p.group ~= s.group) or not same_block(p.block, s.block) then
      words[2] = strategy_word(s)
    end
  end
  if s.actorder == "group" then words[#words + 1] = "actorder" end
  if act then words[#words + 1] = "act:" .. activations.word(act) end
  return table.concat(words, " ")
end

--- same(a, b) -> true when both quantize alike (f16, bf16 or f32 scales, and metadata, apart).
function M.same(a, b)
  return a.type == b.type and a.bits == b.bits and a.symmetric == b.symmetric and a.strategy == b.strategy
    and a.group == b.group and same_block(a.block, b.block) and (a.actorder == "group") == (b.actorder == "group")
    and scale_kind(a) == scale_kind(b) and activations.same(a.activations, b.activations)
end

-- ---- sizes --------------------------------------------------------------------------

--- block(scheme, n, k) -> rows, columns of the weight that one scale serves. A tensor's one scale is
-- repeated for every row, so it counts as a channel's here.
function M.block(s, _, k)
  if s.strategy == "block" then return s.block[1], s.block[2] end
  return 1, grouped(s) and s.group or math.max(k, 1)
end

--- groups(scheme, k) -> how many scales a row of k has.
function M.groups(s, k)
  local _, columns = M.block(s, nil, k)
  return math.max(1, math.ceil(k / columns))
end

--- scale_rows(scheme, n) -> how many rows of scales n rows of weight have.
function M.scale_rows(s, n)
  local rows = M.block(s, n, 1)
  return math.ceil(n / rows)
end

--- scale_storage(scale_dtype) -> the dtype of a tensor that holds such scales ("e8m0" is "f8_e8m0").
function M.scale_storage(dtype) return dtype == "e8m0" and "f8_e8m0" or dtype end

--- code_dtype(scheme) -> the dtype of codes in memory: u8 (ints unsigned; e2m1 codes, one a byte) or f8_e4m3.
function M.code_dtype(s) return s.type == "float" and s.bits == 8 and "f8_e4m3" or "u8" end

--- zero_code(scheme) -> the code that stands for 0 when no zero-points are stored: 2^(bits-1).
function M.zero_code(s) return 2 ^ (s.bits - 1) end

--- static_activations(scheme) -> true when scales of the input come from calibration and are stored.
function M.static_activations(s) return activations.static(s.activations) end

--- quantized(scheme, n, k, scale_dtype [, g_idx [, new]]) -> Quantized: zero-filled storage for a weight
-- [n,k] or a tile of its rows; see nibble.quantized.
function M.quantized(s, n, k, scale_dtype, g_idx, new)
  return require "nibble.quantized".new(s, n, k, scale_dtype, g_idx, new)
end

return M
