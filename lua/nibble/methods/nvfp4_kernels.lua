-- methods.nvfp4_kernels: NVFP4 experts in each kernel's form, and the products that read it:
--   swizzled   block scales in the tensor cores' order (vLLM's CUTLASS, FlashInfer's batched CuteDSL)
--   swapped    the same with [w3; w1] instead of [w1; w3] (FlashInfer's CUTLASS and B12X)
--   shuffled   the same with FlashInfer TensorRT-LLM's order of rows
--   marlin     words, scales and global scales for 16-bit activations
--   plain      as loaded (emulation, nibble's own)
-- (SYSTEMS 6.1, CTM-NVFP4-12 to CTM-NVFP4-16)
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local compute = require "nibble.compute"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local common = require "nibble.methods.moe_common"
local marlin_float = require "nibble.methods.marlin_float"

local M = {}

local GROUP = 16

--- forms: backend -> {form, global = one input scale serves all experts, weight_only, monolithic}
M.forms = {
  FLASHINFER_TRTLLM = { "shuffled", global = true, monolithic = true },
  FLASHINFER_CUTLASS = { "swapped", global = true }, FLASHINFER_B12X = { "swapped", global = true },
  FLASHINFER_CUTEDSL_BATCHED = { "swizzled", global = true },
  VLLM_CUTLASS = { "swizzled" }, MARLIN = { "marlin", weight_only = true }, EMULATION = { "plain", emulated = true },
  NIBBLE = { "plain", float_input = true },
}

--- names: the backends above, in the reference's order of priority.
M.names = { "FLASHINFER_TRTLLM", "FLASHINFER_CUTEDSL_BATCHED", "FLASHINFER_CUTLASS", "VLLM_CUTLASS", "MARLIN",
  "EMULATION", "FLASHINFER_B12X", "NIBBLE" }

--- refuses(backend, scheme) -> nil, or why the backend can't take these weights.
function M.refuses(backend, scheme)
  local form = M.forms[backend]
  if scheme.activations or form.weight_only or form.float_input then return end
  return ("%s takes NVFP4 activations, and these weights are to run with 16-bit ones; MARLIN does that"):format(backend)
end

-- ---- input scales ------------------------------------------------------------------------------

-- The largest of [E,s] or [E] over the shards of each expert -> numbers.
local function largest(t)
  local out, shards = {}, t:numel() / t:size(1)
  for e = 1, t:size(1) do
    out[e] = -math.huge
    for s = 1, shards do out[e] = math.max(out[e], t:get((e - 1) * shards + s)) end
  end
  return out
end

--- input_scale(backend, scales [, reduction]) -> f32 [E]
-- scales: f32 [E,s] or [E], the kernels' small factors. Of each expert's shards the largest; a backend with a global
-- factor takes the largest of all experts for all ("max"), unless reduction is "per_expert". Emulation wants the
-- reciprocal. (CTM-NVFP4-12, SYSTEMS C-17)
function M.input_scale(backend, scales, reduction)
  local form, each = M.forms[backend], largest(scales)
  local one = (form.global or form.emulated) and reduction ~= "per_expert"
  local out, max = tensor.new("f32", { #each }), -math.huge
  for e = 1, #each do max = math.max(max, each[e]) end
  for e = 1, #each do
    local value = one and max or each[e]
    out:set(e, form.emulated and 1 / value or value)
  end
  return out
end

--- differs(scales) -> true when f32 [E] or [E,s] holds more than one value.
function M.differs(scales)
  for i = 2, scales:numel() do if scales:get(i) ~= scales:get(1) then return true end end
  return false
end

-- ---- converting --------------------------------------------------------------------------------

-- w13's rows must fill tiles of 128; an ungated MLP can be filled up with zeros.
local function filled(backend, L, m)
  local rows = L.s * L.i
  local want = math.ceil(rows / 128) * 128
  if want == rows then return L.i end
  if L.gated then
    return nil, ("%s: gate and up of %d rows together would have to be filled up to %d, which would tear them apart; "
      .. "use an intermediate size in multiples of 64, or MARLIN"):format(backend, rows, want), "eunsupported"
  end
  local pad = layout.experts.pad
  m.w13, m.w13_scale = pad(m.w13, want, L.h / 2), pad(m.w13_scale, want, L.h / GROUP)
  m.w2, m.w2_scale = pad(m.w2, L.h, want / 2), pad(m.w2_scale, L.h, want / GROUP)
  return want
end

local function swizzle(m)
  for _, w in ipairs { "w13", "w2" } do m[w .. "_scale"] = layout.marlin.swizzle_blockscale(m[w .. "_scale"]) end
end

local convert = {}

function convert.plain(_, L) return L.i end

function convert.swizzled(method, L, m)
  local size, msg, code = filled(method.backend, L, m)
  if not size then return nil, msg, code end
  swizzle(m)
  return size
end

function convert.swapped(method, L, m)
  if L.gated then
    m.w13, m.w13_scale = layout.experts.swap_halves(m.w13), layout.experts.swap_halves(m.w13_scale)
  end
  return convert.swizzled(method, L, m)
end

function convert.shuffled(method, L, m)
  local size, msg, code = filled(method.backend, L, m)
  if not size then return nil, msg, code end
  if L.h % 128 ~= 0 then
    return nil, ("%s: the hidden size %d is not a multiple of 128, its tiles of rows"):format(method.backend, L.h),
      "eunsupported"
  end
  for _, w in ipairs { "w13", "w2" } do
    local order = layout.experts.shuffled_rows(m[w]:size(2), w == "w13" and L.gated)
    m[w], m[w .. "_scale"] = layout.experts.take_rows(m[w], order), layout.experts.take_rows(m[w .. "_scale"], order)
  end
  swizzle(m)
  return size
end

function convert.marlin(method, L, m)
  local size, msg, code = marlin_float.padded_moe(L.h, L.i)
  if not size then return nil, msg, code end
  method:say("warning", "NVFP4 experts on Marlin compute with 16-bit activations: the device lacks FP4 products, or "
    .. "they were not asked for")
  for _, w in ipairs { "w13", "w2" } do
    local negative = m[w .. "_scale"]:stats().min < 0
    if negative then
      method:say("warning", ("layer %s: %s has negative block scales, which Marlin's form can't hold"):format(L.name,
        w))
    end
    local out
    out, msg, code = marlin_float.prepare_moe { kind = "nvfp4", weight = m[w], scale = m[w .. "_scale"],
      global = m[w .. "_scale_2"], bias = m[w .. "_bias"], dtype = L.dtype, activations = method.options.activations,
      halves = w == "w13" and L.s or 1, size = w == "w13" and { L.s * size, L.h } or { L.h, size } }
    if not out then return nil, msg, code end
    m[w], m[w .. "_scale"], m[w .. "_bias"] = out.words, out.scales, out.bias
    m[w .. "_scale_2"], m[w .. "_input_scale"] = out.global, nil
  end
  return size
end

--- convert(method, L, m) -> the intermediate size in the kernel's form | nil, msg, code
-- m: {w13, w2, w13_scale, …_scale_2 f32 [E], …_input_scale f32 [E] or nil, …_bias or nil}, replaced by what the
-- kernel of method.backend reads.
function M.convert(method, L, m) return convert[M.forms[method.backend][1]](method, L, m) end

-- ---- running ------------------------------------------------------------------------------------

-- One expert's matrix: bytes [N,K/2], scales [N,K/16] in plain order, and the divisor that is its global scale.
local function matrix(L, w, e, swizzled, order)
  local weight, scales = L:get(w .. "_weight")[e + 1], L:get(w .. "_weight_scale")[e + 1]
  if swizzled then scales = layout.marlin.unswizzle_blockscale(scales, weight:size(1), weight:size(2) * 2 / GROUP) end
  if order then weight, scales = layout.experts.take_rows(weight, order), layout.experts.take_rows(scales, order) end
  return weight, scales, tensor.new("f32", { 1 }, { 1 / L:get(w .. "_weight_scale_2"):get(e + 1) })
end

-- x times rows first+1 .. first+n, plus a bias f32 [n] or nil. x may have fewer columns than the filled-up weight.
local function product(x, first, n, bias, weight, scales, divisor)
  local k = weight:size(2) * 2
  x = layout.experts.pad(x, x:size(1), k)
  return common.product(x, n, k, 1, function(out, a, b)
    local bytes = weight:rows(first + a, first + b)
    local codes = layout.ct.unpack(bytes:as("i32", { b - a + 1, k / 8 }), 4, k)
    nffi.must(nffi.C.nb_dequantize_float(out, codes, scales:rows(first + a, first + b), divisor, 1, GROUP))
  end, bias)
end

local function bias_of(L, w, e)
  local bias = L:get(w .. "_bias")
  return bias and compute.widen(bias[e + 1])
end

-- gate: which row the gate begins at, in parts of I. The bias stays gate first.
local function products_of(L, swizzled, gate, orders)
  orders = orders or {}
  return {
    w13 = function(e, x)
      local bias = bias_of(L, "w13", e)
      local function part(i, half)
        return product(x, i * L.i, L.i, bias and bias:rows(half * L.i + 1, (half + 1) * L.i),
          matrix(L, "w13", e, swizzled, orders.w13))
      end
      if not L.gated then return part(0, 0) end
      return part(gate, 0), part(1 - gate, 1)
    end,
    w2 = function(e, x) return product(x, 0, L.h, bias_of(L, "w2", e), matrix(L, "w2", e, swizzled, orders.w2)) end,
  }
end

local products = {}

function products.plain(L) return products_of(L, false, 0) end
function products.swizzled(L) return products_of(L, true, 0) end
function products.swapped(L) return products_of(L, true, 1) end

function products.shuffled(L)
  local orders = {}
  for _, w in ipairs { "w13", "w2" } do
    local n = L:get(w .. "_weight"):size(2)
    orders[w] = layout.experts.inverse_order(layout.experts.shuffled_rows(n, w == "w13" and L.gated))
  end
  return products_of(L, true, 0, orders)
end

function products.marlin(L)
  local function one(w, k, n)
    return gemm.marlin_experts { type = "float4_e2m1f", words = L:get(w .. "_weight"),
      scales = L:get(w .. "_weight_scale"), global = L:get(w .. "_weight_scale_2"), bias = L:get(w .. "_bias"),
      group = GROUP, k = k, n = n, dtype = L.dtype }
  end
  return { after_w13 = true, w13 = one("w13", L.h, L.s * L.i_kernel), w2 = one("w2", L.i_kernel, L.h) }
end

-- The activations' global factor is the reciprocal of the input scale; emulation holds it already. (CTM-NVFP4-13)
local function quantizer(method, L)
  local a, form = method.scheme.activations, M.forms[method.backend]
  if form.weight_only or not a then return nil end
  return function(t, w, e)
    local s = L:get(w .. "_input_scale"):get(e + 1)
    return common.quantize(L, t, a, { global = form.emulated and s or 1 / s })
  end
end

--- products(method, L) -> w13, w2 and quantize for moe.forward, reading the processed form.
function M.products(method, L)
  local out = products[M.forms[method.backend][1]](L)
  out.quantize = quantizer(method, L)
  return out
end

return M
