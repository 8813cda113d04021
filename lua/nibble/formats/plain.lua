-- formats.plain: weights as they were trained: f32, f16 or bf16, [n,k] under `.weight`.
local nffi = require "nibble.ffi"
local text = require "nibble.text"
local common = require "nibble.formats.common"
local C = nffi.C

local M = { name = "plain", title = "float weights" }

local floats = { f32 = true, f16 = true, bf16 = true }

--- detect(ck) -> true when the checkpoint names no quantization.
function M.detect(ck) return ck.quantization == nil end

function M.settings() return {} end

local embeddings = { wte = true, wpe = true, word_embeddings = true, tok_embeddings = true }

local function is_embedding(leaf) return leaf:find("embed", 1, true) ~= nil or embeddings[leaf] or false end

local function is_norm(leaf) return leaf:find("norm", 1, true) ~= nil or leaf:match "^ln" ~= nil end

local function kind_of(module, info)
  if not info then return "other" end
  local leaf = text.leaf(module)
  if #info.shape == 1 then return is_norm(leaf) and "norm" or "other" end
  if #info.shape ~= 2 then return "other" end
  if is_embedding(leaf) then return "embedding" end
  return floats[info.dtype] and "linear" or "other"
end

--- probe(ck, module, tensors) -> rec: any module; a linear layer when its weight is a float matrix.
function M.probe(_, module, tensors)
  local info = tensors.weight
  local kind = kind_of(module, info)
  local matrix = kind == "linear" or kind == "embedding"
  return { name = module, kind = kind, tensors = tensors, dtype = info and info.dtype, bias = tensors.bias ~= nil,
    n = matrix and info.shape[1] or nil, k = matrix and info.shape[2] or nil,
    format = M.name, bytes = 0, params = 0, bits_per_weight = 0 } -- formats.measure fills these: room for them
end

function M.row_step() return 1 end

local function same_rows(a, b) return a, b end

--- layout(rec) -> {weight, bias}
function M.layout(rec)
  local out = { { suffix = "weight", dtype = rec.dtype, shape = { rec.n, rec.k }, rows = same_rows } }
  if rec.bias then
    out[2] = { suffix = "bias", dtype = rec.bias_dtype or rec.dtype, shape = { rec.n }, rows = same_rows }
  end
  return out
end

--- read(src, rec, a, b, out) -> true: rows a..b as out's dtype; out: a float tensor [b-a+1, k].
function M.read(src, _, a, b, out)
  local rows = src.weight:rows(a, b)
  nffi.must(rows.dtype == out.dtype and C.nb_tensor_copy(out, rows) or C.nb_cast(out, rows, 0))
  return true
end

--- write(dst, rec, a, b, q [, base]) -> true: q dequantized into dst.weight; one rounding to its dtype.
function M.write(dst, rec, a, b, q, base)
  base = base or 1
  common.rows_ok(rec, a, b, q)
  q:dequantize(nil, dst.weight:rows(a - base + 1, b - base + 1))
  return common.put_bias(dst, rec, q, a - base + 1)
end

--- config() -> nil: a plain checkpoint has no quantization_config.
function M.config() return nil end

--- can(scheme, n, k) -> true: floats hold any dequantized weight (but not its codes).
function M.can() return true end

return M
