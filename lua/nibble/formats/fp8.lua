-- formats.fp8: quant_method "fp8" (FORMATS 5): DeepSeek's blocks and one scale a tensor.
--
--   weight            F8_E4M3 [n,k]
--   weight_scale_inv  F32 (BF16, F8_E8M0 seen) [ceil(n/bn), ceil(k/bk)]   blocks; the name lies: it multiplies
--   weight_scale      F32 [] or [1]                                       one scale a tensor
--   input_scale       F32 [] or [1]                                       activation_scheme "static"
-- Consumers always quantize activations: blocks' in groups of bk columns, others' by token ("dynamic") or with
-- input_scale ("static").
local nffi = require "nibble.ffi"
local scheme = require "nibble.scheme"
local common = require "nibble.formats.common"
local floats = require "nibble.formats.floats"
local fail, expect = common.fail, common.expect
local C, must = nffi.C, nffi.must

local M = { name = "fp8", title = "FP8 by block or tensor (DeepSeek, transformers)" }

--- detect(ck) -> true when the quantization config's quant_method is fp8.
function M.detect(ck)
  return ck.quantization ~= nil and tostring(ck.quantization.config.quant_method):lower() == "fp8"
end

local function positive(v) return type(v) == "number" and v >= 1 and v == math.floor(v) and v < 2 ^ 31 end

local function token() return { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true } end
local function static() return { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = false } end
local function by_group(width)
  return { type = "float", bits = 8, symmetric = true, strategy = "group", group = width, dynamic = true }
end

--- settings(ck) -> {static=, block=|nil, where=} | nil, msg, code
function M.settings(ck)
  local config, where = common.null_free(ck.quantization.config), common.source_name(ck)
  local activation, block = config.activation_scheme or "dynamic", config.weight_block_size
  if activation ~= "dynamic" and activation ~= "static" then
    return fail("eformat", "%s: activation_scheme is %s, expected dynamic or static", where, tostring(activation))
  end
  if config.fmt ~= nil and config.fmt ~= "e4m3" then
    return fail("eunsupported", "%s: fmt is %s, expected e4m3", where, tostring(config.fmt))
  end
  if block ~= nil then
    if type(block) ~= "table" or not (positive(block[1]) and positive(block[2])) or block[3] ~= nil then
      return fail("eformat", "%s: weight_block_size must be two numbers above 0", where)
    end
    if activation == "static" then
      return fail("eformat", "%s: activation_scheme is static, but weights in blocks need dynamic", where)
    end
    block = { block[1], block[2] }
  end
  return { static = activation == "static", block = block, where = where }
end

--- says(settings) -> scheme of the modules that the config does not leave out.
function M.says(st)
  if st.block then
    return scheme.new { type = "float", bits = 8, strategy = "block", block = st.block, activations = by_group(st.block[2]) }
  end
  return scheme.new { type = "float", bits = 8, strategy = "tensor", activations = st.static and static() or token() }
end

local function scale_suffix(s) return s.strategy == "block" and "weight_scale_inv" or "weight_scale" end

-- The scheme that config and tensors mean | nil, msg, code
local function scheme_of(module, tensors, st)
  local fields = { type = "float", bits = 8, symmetric = true }
  if tensors.weight_scale_inv then
    if not st.block then
      return common.contradiction(module, "nothing of weight_block_size", "it holds weight_scale_inv")
    end
    fields.strategy, fields.block, fields.activations = "block", st.block, by_group(st.block[2])
    fields.scale_dtype = tensors.weight_scale_inv.dtype
  elseif tensors.weight_scale then
    fields.strategy, fields.activations = "tensor", st.static and static() or token()
    fields.scale_dtype = tensors.weight_scale.dtype
  else
    return fail("eformat", "%s: weight is f8_e4m3, but the tensor %s is missing", module,
      st.block and "weight_scale_inv" or "weight_scale")
  end
  local ok, msg, code = expect(module, tensors, scale_suffix(fields), "f32 bf16 f16 f8_e8m0")
  if not ok then return nil, msg, code end
  local s
  s, msg = scheme.new(fields)
  if not s then return fail("eformat", "%s: %s", module, msg) end
  return s
end

local function shapes_fit(module, tensors, s, n, k, st)
  local suffix = scale_suffix(s)
  local why = s.strategy == "block" and ("the weight is [%dx%d] in blocks of %dx%d"):format(n, k, s.block[1], s.block[2])
    or "one scale serves the tensor"
  local ok, msg, code = expect(module, tensors, suffix, "f32 bf16 f16 f8_e8m0", floats.scale_shapes(s, n, k), why)
  if ok and s.strategy == "tensor" and st.static then
    ok, msg, code = expect(module, tensors, "input_scale", "f32 bf16 f16", { {}, { 1 } },
      "the config says activation_scheme static")
  end
  if ok then ok, msg, code = common.bias_ok(module, tensors, n) end
  return ok, msg, code
end

--- probe(ck, module, tensors, settings) -> rec | nil (not quantized) | nil, msg, code
function M.probe(_, module, tensors, st)
  local weight = tensors.weight
  if not weight or (weight.dtype ~= "f8_e4m3" and not tensors.weight_scale_inv and not tensors.weight_scale) then return nil end
  if weight.dtype ~= "f8_e4m3" then
    return fail("eformat", "%s: weight is %s beside its scales, expected f8_e4m3", module, weight.dtype)
  end
  local ok, msg, code = floats.matrix(module, weight)
  if not ok then return nil, msg, code end
  local s
  s, msg, code = scheme_of(module, tensors, st)
  if not s then return nil, msg, code end
  local n, k = weight.shape[1], weight.shape[2]
  ok, msg, code = shapes_fit(module, tensors, s, n, k, st)
  if not ok then return nil, msg, code end
  local dtype = (tensors.weight_scale_inv or tensors.weight_scale).dtype
  return { name = module, kind = "linear", n = n, k = k, scheme = s, dtype = dtype, tensors = tensors,
    bias = tensors.bias ~= nil }
end

M.row_step = floats.row_step

--- layout(rec) -> ordered list of {suffix, dtype, shape, rows=function(a,b)|nil}.
function M.layout(rec)
  local s, n, k = rec.scheme, rec.n, rec.k
  local out = {
    { suffix = "weight", dtype = "f8_e4m3", shape = { n, k }, rows = floats.same_rows },
    { suffix = scale_suffix(s), dtype = scheme.scale_storage(rec.dtype), shape = floats.scale_shapes(s, n, k)[1],
      rows = floats.scale_rows(s), scales = true },
  }
  if scheme.static_activations(s) then out[3] = { suffix = "input_scale", dtype = "f32", shape = { 1 } } end
  if rec.bias then
    out[#out + 1] = { suffix = "bias", dtype = rec.bias_dtype or "bf16", shape = { n }, rows = floats.same_rows }
  end
  return out
end

--- read(src, rec, a, b, q) -> true | nil, msg, code: rows a..b into the tile q.
function M.read(src, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  floats.read_codes(src.weight, q, a, b)
  floats.read_scales(src[scale_suffix(rec.scheme)], rec, a, b, q)
  if scheme.static_activations(rec.scheme) then
    local msg, code
    q.input_scale, msg, code = floats.number(rec, src, "input_scale")
    if not q.input_scale then return nil, msg, code end
  end
  return floats.finish(rec, src, a, b, q)
end

--- input(src, rec) -> {scale=} | nil, msg, code
function M.input(src, rec) return floats.input_numbers(rec, src, { scale = "input_scale" }) end

--- write(dst, rec, a, b, q [, base]) -> true | nil, msg, code
function M.write(dst, rec, a, b, q, base)
  common.rows_ok(rec, a, b, q)
  base = base or 1
  floats.write_codes(dst.weight, q, a, b, base)
  local ok, msg, code = floats.write_scales(dst[scale_suffix(rec.scheme)], rec, a, b, q, base)
  if not ok then return nil, msg, code end
  if a == 1 and dst.input_scale then
    if not q.input_scale then
      return fail("einexact", "%s: static activations, but no input scale is known; calibrate, or use dynamic ones", rec.name)
    end
    must(C.nb_tensor_copy(dst.input_scale, q.input_scale))
  end
  return common.put_bias(dst, rec, q, a - base + 1)
end

local json = require "nibble.json"

--- config(records) -> quantization_config | nil, msg, code
-- One config for all modules: one block size, one way with activations.
function M.config(records)
  local kinds = common.by_scheme(records)
  if #kinds > 1 then
    return nil, ("fp8 has one scheme for a checkpoint, but the modules have %s (%s) and %s (%s); quantize all alike, or write "
      .. "compressed-tensors"):format(scheme.describe(kinds[1].scheme), kinds[1].records[1].name,
      scheme.describe(kinds[2].scheme), kinds[2].records[1].name), "einval"
  end
  local s, skipped = kinds[1].scheme, common.unquantized(records)
  return {
    quant_method = "fp8", fmt = "e4m3", activation_scheme = scheme.static_activations(s) and "static" or "dynamic",
    weight_block_size = s.block and json.array { s.block[1], s.block[2] } or nil,
    modules_to_not_convert = #skipped > 0 and json.array(skipped) or nil,
  }
end

-- Whether a consumer of this format would treat activations as the scheme says.
local function activations_fault(s)
  local a = s.activations
  local same = a and a.type == "float" and a.bits == 8 and a.symmetric
  if s.strategy == "block" then
    if same and a.dynamic == true and a.strategy == "group" and a.group == s.block[2] then return nil end
    return ("fp8's consumers quantize activations of blocks in groups of %d columns, but the scheme says %s"):format(s.block[2],
      require("nibble.act").describe(a))
  end
  if same and ((a.strategy == "token" and a.dynamic == true) or (a.strategy == "tensor" and a.dynamic == false)) then return nil end
  return ("fp8's consumers quantize activations by token, or by tensor with static scales, but the scheme says %s"):format(
    require("nibble.act").describe(a))
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s)
  if s.type ~= "float" or s.bits ~= 8 then return false, "fp8 holds 8-bit floats, not " .. scheme.describe(s) end
  if s.strategy ~= "block" and s.strategy ~= "tensor" then
    return false, ("fp8 has a scale for each block or for the tensor, not by %s"):format(s.strategy)
  end
  if s.strategy == "tensor" and s.scale_dtype == "e8m0" then return false, "fp8 has float scales, not e8m0 ones, by tensor" end
  local fault = activations_fault(s)
  if fault then return false, fault end
  return true
end

--- scale_dtype(scheme, model_dtype) -> f32, which consumers load; blocks' powers of two stay e8m0.
function M.scale_dtype(s) return s.scale_dtype == "e8m0" and "e8m0" or "f32" end

return M
