-- Golden operations: what AutoAWQ, GPTQModel and AutoRound write for weights whose
-- scales and zero-points are given, and what they read back.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local layout = nb.layout
local C, must = nffi.C, nffi.must

-- Codes u8 [n,k], and float zero-points as u8.
local function codes_of(w, scales, zeros, g_idx, bits)
  local codes, z = nb.tensor("u8", w:size()), nb.tensor("u8", zeros:size())
  must(C.nb_grid_codes(codes, w, scales, zeros, g_idx, bits))
  -- a zero-point is the code of weight 0 on its own grid
  must(C.nb_grid_codes(z, nb.tensor("f32", zeros:size()), scales, zeros, nil, bits))
  return codes, z
end

local function dequantize_kn(codes, scales, z, g_idx, bits)
  local out = nb.tensor("f16", codes:size())
  must(C.nb_dequantize(out, codes, scales, z, g_idx, bits))
  return layout.transpose(out)
end

local function rounded(t, dtype)
  local out = nb.tensor(dtype, t:size())
  must(C.nb_scales_multiply(out, t, 1))
  return out
end

local ops = {}

function ops.autoawq_gemm_pack(case)
  local t = case.tensors
  local codes, z = codes_of(t["in.w_fake"], t["in.scales_nk"], t["in.zeros_nk"], nil, 4)
  local qweight, qzeros = layout.awq.pack(codes, 4), layout.awq.pack_zeros(z, 4)
  assert(layout.awq.unpack(qweight, 4, codes:size(2)):equal(codes))
  return {
    ["out.qweight"] = qweight, ["out.qzeros"] = qzeros, ["out.scales"] = layout.transpose(t["in.scales_nk"]),
    ["out.intweight"] = layout.transpose(codes), ["out.intzeros"] = layout.transpose(z),
    ["out.dequant"] = dequantize_kn(codes, t["in.scales_nk"], z, nil, 4),
    ["out.exllama_qweight"] = layout.awq_to_gptq(qweight, 4), ["out.exllama_qzeros"] = layout.gptq.pack_zeros(z, 4, true),
  }
end

function ops.autoawq_gemv_pack(case)
  local t = case.tensors
  local codes, z = codes_of(t["in.w_fake"], t["in.scales_nk"], t["in.zeros_nk"], nil, 4)
  local qweight = layout.awq_gemv.pack(codes, 4)
  local width = layout.awq_gemv.width(codes:size(2), case.params.group_size)
  local qzeros = layout.awq_gemv.pack_zeros(z, 4, nb.tensor("i32", { z:size(1), width }))
  local scales = layout.awq_gemv.pad_scales(t["in.scales_nk"], width)
  assert(layout.awq_gemv.unpack(qweight, 4, codes:size(2)):equal(codes))
  assert(layout.awq_gemv.unpack_zeros(qzeros, 4, z:size(2)):equal(z))
  assert(layout.awq_gemv.unpad_scales(scales, z:size(2)):equal(t["in.scales_nk"]))
  return { ["out.qweight"] = qweight, ["out.qzeros"] = qzeros, ["out.scales"] = scales }
end

function ops.autoawq_gemv_fast_pack(case)
  local t = case.tensors
  local codes, z = codes_of(t["in.w_fake"], t["in.scales_nk"], t["in.zeros_nk"], nil, 4)
  local qweight = layout.awq_gemv_fast.pack(codes, 4)
  local width = layout.awq_gemv.width(codes:size(2), case.params.group_size)
  local scales = layout.transpose(layout.awq_gemv.pad_scales(t["in.scales_nk"], width))
  local qzeros = layout.awq_gemv_fast.pack_zeros(z, scales, nb.tensor("f16", scales:size()))
  assert(layout.awq_gemv_fast.unpack(qweight, 4, codes:size(2)):equal(codes))
  assert(layout.awq_gemv_fast.unpack_zeros(qzeros, scales, z:size(2)):equal(z))
  return { ["out.qweight"] = qweight, ["out.qzeros"] = qzeros, ["out.scales"] = scales }
end

function ops.gptq_pack_dequant(case)
  local t, bits = case.tensors, case.params.bits
  local codes, z = codes_of(t["in.w"], t["in.scales_ng"], t["in.zeros_ng"], t["in.g_idx"], bits)
  local qweight, stored = layout.gptq.pack(codes, bits), rounded(t["in.scales_ng"], "f16")
  assert(layout.gptq.unpack(qweight, bits, codes:size(2)):equal(codes))
  local v1, v2 = layout.gptq.pack_zeros(z, bits, true), layout.gptq.pack_zeros(z, bits, false)
  assert(layout.gptq.unpack_zeros(v1, bits, true, z:size(1)):equal(z))
  return {
    ["out.qweight"] = qweight, ["out.qzeros_v1"] = v1, ["out.qzeros_v2"] = v2, ["out.scales"] = layout.transpose(stored),
    ["out.g_idx"] = t["in.g_idx"], ["out.dequant"] = dequantize_kn(codes, stored, z, t["in.g_idx"], bits),
  }
end

function ops.autoround_pack(case)
  local t, bits = case.tensors, case.params.bits
  local codes, z = codes_of(t["in.w_fake"], t["in.scales_ng"], t["in.zp"], nil, bits)
  local stored = rounded(t["in.scales_ng"], "f16")
  local scales, dequant = layout.transpose(stored), dequantize_kn(codes, stored, z, nil, bits)
  local out = {}
  for _, version in ipairs { "v1", "v2" } do
    out["out.gptq_" .. version .. "_qweight"] = layout.gptq.pack(codes, bits)
    out["out.gptq_" .. version .. "_qzeros"] = layout.gptq.pack_zeros(z, bits, version == "v1")
    out["out.gptq_" .. version .. "_scales"], out["out.gptq_" .. version .. "_dequant"] = scales, dequant
  end
  if bits == 4 then
    out["out.awq_qweight"], out["out.awq_qzeros"] = layout.awq.pack(codes, 4), layout.awq.pack_zeros(z, 4)
    out["out.awq_scales"], out["out.awq_dequant"] = scales, dequant
  end
  return out
end

return ops
