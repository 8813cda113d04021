-- Golden operations: packings of codes and zero-points.
local nb = require "nibble"
local layout = nb.layout

-- Codes kept one to an element of a wider dtype, as u8; offset is added.
local function codes(t, offset)
  local out = nb.tensor("u8", t:size())
  local from, to = t:ptr(), out:ptr()
  for i = 0, t:numel() - 1 do to[i] = from[i] + (offset or 0) end
  return out
end

local ops = {}

ops["pack_cols/pack_rows/awq_pack"] = function(case)
  local q, bits = codes(case.tensors["in.q"]), case.params.num_bits
  local rows, cols = layout.pack.rows(q, bits), layout.pack.cols(q, bits)
  assert(layout.pack.unpack_rows(rows, bits, q:size(1), q:size(2)):equal(q))
  assert(layout.pack.unpack_cols(cols, bits, q:size(1), q:size(2)):equal(q))
  return {
    ["out.pack_rows"] = rows, ["out.pack_cols"] = cols,
    ["out.awq_pack"] = layout.awq.pack(layout.transpose(q), bits),
    ["out.pack_int32_dim0"] = layout.pack.dense(q, bits, 1), ["out.pack_int32_dim1"] = layout.pack.dense(q, bits, 2),
  }
end

function ops.ct_pack_to_int32(case)
  local bits, value = case.params.num_bits, case.tensors["in.value"]
  local u = codes(value, 2 ^ (bits - 1))
  local k = u:size(u.ndim)
  local flat = u:reshape { u:numel() / k, k }
  local packed = layout.ct.pack(flat, bits)
  assert(layout.ct.unpack(packed, bits, k):equal(flat))
  local shape = u:size()
  shape[#shape] = packed:size(2)
  local out = { ["out.packed"] = packed:reshape(shape) }
  if case.entry.tensors["out.packed_dim0"] then out["out.packed_dim0"] = layout.pack.dense(flat, bits, 1) end
  return out
end

function ops.ct_pack_to_int32_legacy(case)
  local bits, value = case.params.num_bits, case.tensors["in.value"]
  local u = codes(value, 2 ^ (bits - 1))
  local words = nb.tensor("i32", { u:size(1), math.ceil(u:size(2) / math.floor(32 / bits)) })
  layout.ct.pack(u, bits, words)
  assert(layout.ct.unpack(words, bits, u:size(2)):equal(u))
  return { ["out.packed"] = words }
end

function ops.convert_awq_to_standard_format(case)
  local q, z = case.tensors["in.qweight"], case.tensors["in.qzeros"]
  local zeros = layout.awq.unpack_zeros(z, 4, z:size(1))
  return { ["out.qweight"] = layout.awq_to_gptq(q, 4), ["out.qzeros"] = layout.ct.pack_zeros(zeros, 4) }
end

function ops.inc_xpu_convert_awq_qweight_to_gptq(case)
  local words = layout.awq_to_gptq(case.tensors["in.qweight"], 4)
  return { ["out.qweight"] = words, ["out.qweight_nt"] = layout.transpose(words) }
end

return ops
