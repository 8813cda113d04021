-- formats.mxfp4: GPT-OSS (FORMATS 7), read only: all experts of a layer in two tensors, which come out as the modules
-- that other checkpoints store one by one: experts.E.gate_proj, up_proj, down_proj.
--
--   experts.gate_up_proj_blocks  U8 [E, 2I, H/32, 16]   even rows gate, odd rows up; byte b: columns 2b (low) and 2b+1
--   experts.gate_up_proj_scales  U8 [E, 2I, H/32]       2^(s-127)
--   experts.gate_up_proj_bias    BF16 [E, 2I]
--   experts.down_proj_blocks, _scales, _bias            the same of [E, H, I]
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local scheme = require "nibble.scheme"
local tensor = require "nibble.tensor"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local floats = require "nibble.formats.floats"
local fail, expect = common.fail, common.expect
local C, must = nffi.C, nffi.must

local M = { name = "mxfp4", title = "GPT-OSS MXFP4 (fused experts)" }

local GROUP = 32

--- detect(ck) -> true when the quantization config's quant_method is mxfp4.
function M.detect(ck)
  return ck.quantization ~= nil and tostring(ck.quantization.config.quant_method):lower() == "mxfp4"
end

function M.settings() return { scheme = scheme.parse "MXFP4A16" } end

-- The modules in one fused tensor: leaf, and which rows of it (every `step`th from `first` on) are its.
local fused = {
  { prefix = "gate_up_proj", { leaf = "gate_proj", first = 0, step = 2 }, { leaf = "up_proj", first = 1, step = 2 } },
  { prefix = "down_proj", { leaf = "down_proj", first = 0, step = 1 } },
}

local function sizes_of(module, tensors, prefix)
  local ok, msg, code = expect(module, tensors, prefix .. "_blocks", "u8")
  if not ok then return nil, msg, code end
  local shape = tensors[prefix .. "_blocks"].shape
  if #shape ~= 4 or shape[4] ~= GROUP / 2 or shape[1] * shape[2] * shape[3] == 0 then
    return fail("eformat", "%s: %s_blocks is %s, expected experts × rows × groups × 16 bytes", module, prefix, text.shape(shape))
  end
  local e, rows, groups = shape[1], shape[2], shape[3]
  local why = ("%s_blocks is %s"):format(prefix, text.shape(shape))
  ok, msg, code = expect(module, tensors, prefix .. "_scales", "u8 f8_e8m0", { { e, rows, groups } }, why)
  if ok and tensors[prefix .. "_bias"] then
    ok, msg, code = expect(module, tensors, prefix .. "_bias", "bf16 f16 f32", { { e, rows } }, why)
  end
  if not ok then return nil, msg, code end
  return { experts = e, rows = rows, k = groups * GROUP }
end

-- A tensor's share of one module, for sizes.
local function share(info, parts)
  return { name = info.name, dtype = info.dtype, shape = info.shape, bytes = info.bytes / parts, params = info.params / parts }
end

local function parts_of(out, module, tensors, group, size, st)
  local prefix, pieces = group.prefix, #group * size.experts
  local held = { blocks = share(tensors[prefix .. "_blocks"], pieces), scales = share(tensors[prefix .. "_scales"], pieces) }
  local bias = tensors[prefix .. "_bias"]
  if bias then held.bias = share(bias, pieces) end
  for e = 0, size.experts - 1 do
    for _, part in ipairs(group) do
      out[#out + 1] = { name = ("%s.%d.%s"):format(module, e, part.leaf), kind = "linear", n = size.rows / part.step, k = size.k,
        scheme = st.scheme, dtype = "f8_e8m0", tensors = held, bias = bias ~= nil, variant = "fused experts",
        first = e * size.rows + part.first, step = part.step, bias_dtype = bias and bias.dtype }
    end
  end
end

-- Tensors that belong to none of the experts' matrices would get lost.
local function strangers(module, tensors)
  local known = {}
  for _, group in ipairs(fused) do
    for _, ending in ipairs { "_blocks", "_scales", "_bias" } do known[group.prefix .. ending] = true end
  end
  for suffix in pairs(tensors) do
    if not known[suffix] then return fail("eformat", "%s: holds %s beside fused experts, which is none of theirs", module, suffix) end
  end
  return true
end
nffi.interpreted(strangers)

--- probe(ck, module, tensors, settings) -> {parts = {rec, …}} | nil (not quantized) | nil, msg, code
function M.probe(_, module, tensors, st)
  local out, some = {}, false
  for _, group in ipairs(fused) do some = some or tensors[group.prefix .. "_blocks"] or tensors[group.prefix .. "_scales"] end
  if not some then return nil end
  local ok, msg, code = strangers(module, tensors)
  if not ok then return nil, msg, code end
  for _, group in ipairs(fused) do
    if tensors[group.prefix .. "_blocks"] or tensors[group.prefix .. "_scales"] or tensors[group.prefix .. "_bias"] then
      local size
      size, msg, code = sizes_of(module, tensors, group.prefix)
      if not size then return nil, msg, code end
      if size.rows % #group ~= 0 then
        return fail("eformat", "%s: %s_blocks has %d rows, expected gate and up in turn", module, group.prefix, size.rows)
      end
      parts_of(out, module, tensors, group, size, st)
    end
  end
  return { parts = out }
end

function M.row_step() return 1 end

-- Rows a..b of the module, out of a matrix whose every step-th row is its, into dst [b-a+1, width].
local function gather(dst, matrix, rec, a)
  local bytes = dst:bytes() / dst:size(1)
  local from, to = ffi.cast("const uint8_t *", matrix.data), ffi.cast("uint8_t *", dst.data)
  for r = 0, dst:size(1) - 1 do
    ffi.copy(to + r * bytes, from + (rec.first + (a - 1 + r) * rec.step) * bytes, bytes)
  end
end

local function all_rows(t) -- [E, rows, …] -> [E * rows, …]
  return t:reshape { t:size(1) * t:size(2), t:numel() / (t:size(1) * t:size(2)) }
end

local function bias_of(whole, rec, a, n)
  local out = tensor.new(whole:type(), { n })
  gather(out:reshape { n, 1 }, whole:reshape { whole:numel(), 1 }, rec, a)
  return out
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b into the tile q.
function M.read(src, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  gather(q.scales:as("u8", q.scales:size()), all_rows(src.scales:as("u8", src.scales:size())), rec, a)
  if q.codes then
    local packed = tensor.new("u8", { q.n, rec.k / 2 })
    gather(packed, all_rows(src.blocks), rec, a)
    must(C.nb_fp4_unpack(q.codes, packed, 0))
    packed:free()
  end
  local ok, msg, code = floats.finish(rec, {}, a, b, q)
  if ok and src.bias then q.bias = bias_of(src.bias, rec, a, q.n) end
  return ok, msg, code
end

--- part(ck, rec, suffix) -> tensor | nil, msg, code: the module's own bias.
function M.part(ck, rec, suffix)
  local t, msg, code = ck:tensor(rec.tensors[suffix].name)
  if not t then return nil, msg, code end
  return bias_of(t, rec, 1, rec.n)
end

function M.layout() error("mxfp4: fused experts are only read", 2) end
function M.write() error("mxfp4: fused experts are only read", 2) end
function M.config() return nil, "mxfp4: fused experts are only read", "eunsupported" end

--- can() -> false, reason
function M.can()
  return false, "GPT-OSS's fused experts are only read; compressed-tensors holds the same codes (MXFP4A16), expert by expert"
end

return M
