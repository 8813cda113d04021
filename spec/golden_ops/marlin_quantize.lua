-- Golden operations: a float weight quantized by vLLM's test helpers, or packed by
-- the first Marlin, in Marlin's layout.
local nb = require "nibble"
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local method = require "nibble.methods.marlin"
local layout = nb.layout
local C, must = nffi.C, nffi.must

local activations = { int8 = "int8", float8_e4m3fn = "fp8" }

-- w [K,N] -> codes u8 [n,k], scales [n,G]: each sign of a group by its own bound, in the weight's arithmetic.
local function symmetric_codes(w, bits, group)
  local n, k = w:size(2), w:size(1)
  local codes, scales = nb.tensor("u8", { n, k }), nb.tensor(w:type(), { n, group > 0 and k / group or 1 })
  must(C.nb_rtn_quantize(codes, scales, nil, layout.transpose(w), ffi.new("nb_rtn_options",
    { bits = bits, symmetric = 1, group = group, range = C.NB_RANGE_TIGHT, arithmetic = C.NB_ARITHMETIC_DTYPE })))
  return codes, scales
end

local ops = {}

function ops.marlin_quantize(case)
  local p, w = case.params, case.tensors["in.w"]
  local bits = p.quant_type == "uint8b128" and 8 or 4
  local codes, scales = symmetric_codes(w, bits, p.group_size)
  local ref = nb.tensor(w:type(), codes:size())
  must(C.nb_dequantize(ref, codes, scales, nil, nil, bits))
  local act = activations[p.input_dtype]
  local out = method.prepare { words = layout.gptq.pack(codes, bits), order = "gptq", bits = bits, group = p.group_size,
                               scales = layout.transpose(scales), activations = act }
  if act == "int8" then -- the helper leaves the scales as floats
    out.scales = layout.marlin.permute_scales(layout.transpose(scales), w:size(1), p.group_size, true)
  end
  return { ["out.w_ref"] = layout.transpose(ref), ["out.marlin_qweight"] = out.words, ["out.marlin_scales"] = out.scales }
end

function ops.ist_marlin_pack(case)
  local w, scales = case.tensors["in.weight"], case.tensors["in.scales"]
  local codes = nb.tensor("u8", w:size())
  must(C.nb_grid_codes(codes, w, scales, nil, nil, 4))
  local out = method.prepare { words = layout.gptq.pack(codes, 4), order = "gptq", bits = 4,
                               group = case.params.group_size, scales = layout.transpose(scales) }
  return { ["out.B"] = out.words, ["out.s"] = out.scales }
end

return ops
