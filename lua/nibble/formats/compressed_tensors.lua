-- formats.compressed_tensors: the entry to compressed-tensors' formats (FORMATS 4): which of them a module has,
-- and one reader and writer for all. ct_config: the config; ct_packed and ct_bytes: the weights; ct_scales.
--
-- Read and written: pack-, int-, float-, naive-, nvfp4-pack-, mxfp4-pack- and mxfp8-quantized, one for all or one a
-- config group (mixed-precision). The sparse and Marlin formats are recognized and refused by name.
local common = require "nibble.formats.common"
local config = require "nibble.formats.ct_config"
local packed = require "nibble.formats.ct_packed"
local bytes = require "nibble.formats.ct_bytes"
local expect = common.expect

local M = { name = "compressed-tensors", title = "compressed-tensors" }

M.settings, M.config, M.from_args, M.storage = config.settings, config.config, config.from_args, config.storage

--- detect(ck) -> true when the quantization config's quant_method is compressed-tensors.
function M.detect(ck)
  return ck.quantization ~= nil and ck.quantization.config.quant_method == "compressed-tensors"
end

-- Every tensor that says something of the weight.
local telling = { "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale",
  "input_scale", "input_zero_point", "input_global_scale", "bias" }

-- The tensors' dtypes and shapes as a string: modules that have it in common have one record but for the name.
local function signature(tensors)
  local out = {}
  for i, suffix in ipairs(telling) do
    local info = tensors[suffix]
    out[i] = info and info.dtype .. table.concat(info.shape, "x") or "-"
  end
  return table.concat(out, " ")
end

local function record(module, tensors, like, storage)
  return { name = module, kind = "linear", format = M.name, tensors = tensors, n = like.n, k = like.k,
    dtype = like.dtype, scheme = like.scheme, bias = tensors.bias ~= nil, note = like.note,
    variant = like.variant or (storage ~= config.storage(like.scheme) and storage or nil), storage = storage,
    bytes = 0, params = 0, bits_per_weight = 0 } -- formats.measure fills these: room for them
end

-- Which format a module's tensors are in: by the group's word, or by the tensors where none names it.
local function storage_of(tensors, g, st)
  local info = tensors.weight_packed
  if g then return g.format end
  if info and info.dtype == "i32" then return config.PACKED end
  if st.format and st.format ~= "mixed-precision" then return st.format end
  return info and "nvfp4-pack-quantized" or tensors.weight and tensors.weight.dtype == "i8" and "int-quantized" or "naive-quantized"
end

-- A weight in bytes whose scales may be missing counts, too: as it stands it is no weight.
local function is_quantized(tensors)
  local info = tensors.weight
  return tensors.weight_packed ~= nil or tensors.weight_scale ~= nil
    or info ~= nil and #info.shape == 2 and (info.dtype == "f8_e4m3" or info.dtype == "i8")
end

--- probe(ck, module, tensors, settings) -> rec | nil (not quantized) | nil, msg, code
-- From headers where shapes say n and k; read() compares weight_shape with them.
function M.probe(ck, module, tensors, st)
  if not is_quantized(tensors) then return nil end
  local g = config.named_group(st, module)
  local storage = storage_of(tensors, g, st)
  local format = packed.names[storage] and packed or bytes.names[storage] and bytes
  if not format then return common.unreadable(module, tensors, storage) end
  if g and g.unreadable then return common.unreadable(module, tensors, g.unreadable) end
  if format == packed then
    local ok, msg, code = expect(module, tensors, "weight_packed", "i32")
    if not ok then return nil, msg, code end
  end
  local like, msg, code = format.probe(ck, module, tensors, st, g, signature(tensors))
  if not like then return nil, msg, code end
  return record(module, tensors, like, storage)
end

-- The code of a record's weight format: as it was read, or as it will be written.
local function part(rec)
  return packed.names[rec.storage or config.storage(rec.scheme)] and packed or bytes
end

--- row_step(rec) -> tiles begin at a multiple of this many rows (after row 1) and end there or at n.
function M.row_step(rec) return part(rec).row_step(rec) end

local function same_rows(a, b) return a, b end

--- layout(rec) -> ordered list of {suffix, dtype, shape, rows=function(a,b)|nil}.
function M.layout(rec)
  local out = part(rec).layout(rec)
  if rec.bias then
    out[#out + 1] = { suffix = "bias", dtype = rec.bias_dtype or rec.dtype, shape = { rec.n }, rows = same_rows }
  end
  return out
end

--- read(src, rec, a, b, q) -> true | nil, msg, code
-- Rows a..b (1-based, inclusive) of the module into q, a tile of b-a+1 rows; src: suffix -> tensor.
function M.read(src, rec, a, b, q)
  common.rows_ok(rec, a, b, q)
  local ok, msg, code = part(rec).read(src, rec, a, b, q)
  if not ok then return nil, msg, code end
  return common.finish(rec, src, a, b, q)
end

--- write(dst, rec, a, b, q [, base]) -> true | nil, msg, code
-- Rows a..b from q; dst: suffix -> whole tensor, or (base given) the rows from row `base` on of those
-- whose layout entry has `rows`.
function M.write(dst, rec, a, b, q, base)
  common.rows_ok(rec, a, b, q)
  base = base or 1
  local ok, msg, code = part(rec).write(dst, rec, a, b, q, base)
  if not ok then return nil, msg, code end
  return common.put_bias(dst, rec, q, a - base + 1)
end

--- can(scheme, n, k) -> true | false, reason
function M.can(s, n, k)
  return (packed.names[config.storage(s)] and packed or bytes).can(s, n, k)
end

--- scale_dtype(scheme, model_dtype) -> the weight's own where it has one, else the model's. Powers of two that
-- aren't in groups become float32, which holds them.
function M.scale_dtype(s, model_dtype)
  if s.scale_dtype == "e8m0" and s.strategy ~= "group" then return "f32" end
  return s.scale_dtype or model_dtype
end

return M
