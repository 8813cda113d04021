-- methods.fp8_kernels: FP8 experts in each kernel's form, and the products that read it:
--   plain     [w1; w3] as loaded (Triton, vLLM's CUTLASS, the CPU kernels, nibble's own)
--   swapped   [w3; w1], the intermediate size filled up (FlashInfer's CUTLASS)
--   shuffled  the same with FlashInfer TensorRT-LLM's order of rows where scales are per tensor
--   marlin    words and exponent-folded scales, for 16-bit activations (SYSTEMS 6.3, CTM-FP8-12, CTM-FP8-17)
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local common = require "nibble.methods.moe_common"
local marlin_float = require "nibble.methods.marlin_float"

local M = {}

--- forms: backend -> {form, weight_only, monolithic, blocks = "any" | sizes along K | nil (128 x 128 only), strategies}
M.forms = {
  TRITON = { "plain", blocks = "any" }, BATCHED_TRITON = { "plain", blocks = "any" },
  VLLM_CUTLASS = { "plain" }, BATCHED_VLLM_CUTLASS = { "plain" },
  CPU = { "plain", weight_only = true, blocks = "any" },
  FLASHINFER_CUTLASS = { "swapped", strategies = { tensor = true, block = true } },
  FLASHINFER_TRTLLM = { "shuffled", monolithic = true, strategies = { tensor = true, block = true } },
  MARLIN = { "marlin", weight_only = true, blocks = { 32, 64, 128 } },
  NONE = { "none" }, NIBBLE = { "plain", blocks = "any", float_input = true },
}

--- names: the backends above, in the reference's order of priority.
M.names = { "FLASHINFER_TRTLLM", "FLASHINFER_CUTLASS", "VLLM_CUTLASS", "TRITON", "MARLIN", "BATCHED_VLLM_CUTLASS",
  "BATCHED_TRITON", "CPU", "NONE", "NIBBLE" }

--- refuses(backend, scheme, switches) -> nil, or why the backend can't take these weights.
function M.refuses(backend, scheme, switches)
  local form = M.forms[backend]
  if not scheme.activations and not form.weight_only and not form.float_input then
    return ("%s takes FP8 activations, and these weights are to run with 16-bit ones; MARLIN and CPU do that"):format(
      backend)
  end
  if form.strategies and not form.strategies[scheme.strategy] then
    return ("%s takes FP8 scales by tensor or block, found %s"):format(backend, scheme.strategy)
  end
  if backend == "FLASHINFER_CUTLASS" and scheme.strategy == "tensor" and scheme.activations.dynamic then
    return "FLASHINFER_CUTLASS by tensor needs static activation scales, found dynamic ones"
  end
  local block = scheme.strategy == "block" and scheme.block
  if not block or (block[1] == 128 and block[2] == 128) or switches.block_key_128 then return end
  local takes = form.blocks == "any"
  for _, size in ipairs(type(form.blocks) == "table" and form.blocks or {}) do takes = takes or size == block[2] end
  if takes then return end
  return ("%s takes blocks of 128x128, found %dx%d; TRITON takes any"):format(backend, block[1], block[2])
end

-- ---- converting --------------------------------------------------------------------------------

-- FlashInfer's kernels without blocks need the intermediate size in multiples of 16, ungated 128.
local function filled(method, L, m)
  if method.block then return L.i end
  local unit = L.gated and 16 or 128
  local size = math.ceil(L.i / unit) * unit
  m.w13 = layout.experts.pad_rows(m.w13, L.s, size)
  m.w2 = layout.experts.pad(m.w2, L.h, size)
  return size
end

local convert = {}

function convert.plain(_, L) return L.i end
convert.none = convert.plain

function convert.swapped(method, L, m)
  local size = filled(method, L, m)
  if L.gated then
    m.w13 = layout.experts.swap_halves(m.w13)
    if method.block then m.w13_scale = layout.experts.swap_halves(m.w13_scale) end
  end
  return size
end

function convert.shuffled(method, L, m)
  if method.block then return convert.swapped(method, L, m) end
  local size = filled(method, L, m)
  if L.s * size % 32 ~= 0 or L.h % 32 ~= 0 then
    return nil, ("FLASHINFER_TRTLLM shuffles rows by 32: hidden size %d and %d rows of w13 must be multiples of it")
      :format(L.h, L.s * size), "eunsupported"
  end
  m.w13 = layout.experts.take_rows(m.w13, layout.experts.shuffled_rows(L.s * size, L.gated))
  m.w2 = layout.experts.take_rows(m.w2, layout.experts.shuffled_rows(L.h, false))
  return size
end

function convert.marlin(method, L, m)
  if method.options.fnuz then return nil, "Marlin reads e4m3fn, not e4m3fnuz", "eunsupported" end
  local size, msg, code = marlin_float.padded_moe(L.h, L.i)
  if not size then return nil, msg, code end
  method:say("warning", "FP8 experts on Marlin compute with 16-bit activations: the device lacks FP8 products, or they "
    .. "were not asked for")
  for _, w in ipairs { "w13", "w2" } do
    local out
    out, msg, code = marlin_float.prepare_moe { kind = "fp8", weight = m[w], scale = m[w .. "_scale"], dtype = L.dtype,
      halves = w == "w13" and L.s or 1, block = method.block, activations = method.options.activations,
      size = w == "w13" and { L.s * size, L.h } or { L.h, size } }
    if not out then return nil, msg, code end
    m[w], m[w .. "_scale"] = out.words, out.scales
  end
  return size
end

--- convert(method, L, m) -> the intermediate size in the kernel's form | nil, msg, code
-- m: {w13, w2, w13_scale, w2_scale}, replaced by what the kernel of method.backend reads.
function M.convert(method, L, m) return convert[M.forms[method.backend][1]](method, L, m) end

-- ---- running ------------------------------------------------------------------------------------

-- x times rows first+1 .. first+n of an expert's weight [N,k]; block: rows and columns that share a scale.
local function product(x, weight, scales, block, first, n)
  local k = weight:size(2)
  return common.product(x, n, k, block[1] < weight:size(1) and block[1] or 1, function(out, a, b)
    local from, to = math.floor((first + a - 1) / block[1]), math.ceil((first + b) / block[1])
    nffi.must(nffi.C.nb_dequantize_float(out, weight:rows(first + a, first + b), scales:rows(from + 1, to), nil,
      block[1], block[2]))
  end)
end

-- Expert e's weight and scales [r,c] with the rows and columns that share one.
local function matrix(method, L, w, e)
  local weight, scales = L:get(w .. "_weight")[e + 1], L:get(w .. "_weight_scale")
  local n, k = weight:size(1), weight:size(2)
  if method.strategy == "tensor" then return weight, scales:rows(e + 1, e + 1):reshape { 1, 1 }, { n, k } end
  return weight, scales[e + 1], method.strategy == "channel" and { 1, k } or method.block
end

local function unpadded(y, outputs)
  if y:size(2) == outputs then return y end
  local out = tensor.new("f32", { y:size(1), outputs })
  nffi.must(nffi.C.nb_tensor_copy_block(out, y, 1, 0, 0, outputs))
  return out
end

local products = {}

function products.plain(method, L)
  local function one(w, e, x)
    local weight, scales, block = matrix(method, L, w, e)
    return product(x, weight, scales, block, 0, weight:size(1))
  end
  return { w13 = function(e, x) return one("w13", e, x) end, w2 = function(e, x) return one("w2", e, x) end }
end

-- Activations as wide as w2's columns, which may be filled up.
local function widened(x, k) return layout.experts.pad(x, x:size(1), k) end

-- Gate is the second half, up the first.
function products.swapped(method, L)
  return {
    w13 = function(e, x)
      local weight, scales, block = matrix(method, L, "w13", e)
      if not L.gated then return unpadded(product(x, weight, scales, block, 0, weight:size(1)), L.i) end
      local half = weight:size(1) / 2
      return unpadded(product(x, weight, scales, block, half, half), L.i),
        unpadded(product(x, weight, scales, block, 0, half), L.i)
    end,
    w2 = function(e, x)
      local weight, scales, block = matrix(method, L, "w2", e)
      return product(widened(x, weight:size(2)), weight, scales, block, 0, L.h)
    end,
  }
end

function products.shuffled(method, L)
  if method.block then return products.swapped(method, L) end
  local from = {}
  for _, w in ipairs { "w13", "w2" } do
    local n = L:get(w .. "_weight"):size(2)
    from[w] = layout.experts.inverse_order(layout.experts.shuffled_rows(n, w == "w13" and L.gated))
  end
  local function ordered(w, e)
    local weight, scales, block = matrix(method, L, w, e)
    return layout.experts.take_rows(weight, from[w]), scales, block
  end
  return {
    w13 = function(e, x)
      local weight, scales, block = ordered("w13", e)
      local n = weight:size(1) / L.s
      return unpadded(product(x, weight, scales, block, 0, n), L.i),
        L.gated and unpadded(product(x, weight, scales, block, n, n), L.i) or nil
    end,
    w2 = function(e, x)
      local weight, scales, block = ordered("w2", e)
      return product(widened(x, weight:size(2)), weight, scales, block, 0, L.h)
    end,
  }
end

function products.marlin(method, L)
  local group = method.block and method.block[2] or -1
  local function one(w, k, n)
    return gemm.marlin_experts { type = "float8_e4m3fn", words = L:get(w .. "_weight"),
      scales = L:get(w .. "_weight_scale"), group = group, k = k, n = n, dtype = L.dtype }
  end
  return { after_w13 = true, w13 = one("w13", L.h, L.s * L.i_kernel), w2 = one("w2", L.i_kernel, L.h) }
end

-- Activations as the kernel sees them. e4m3fnuz' grid is e4m3's with half the scale.
local function quantizer(method, L)
  local a = method.run_activations
  if M.forms[method.backend].weight_only or not a then return nil end
  local scales = {}
  for _, w in ipairs { "w13", "w2" } do
    local s = L:get(w .. "_input_scale")
    scales[w] = s and s:get(1) / (method.options.fnuz and 2 or 1)
  end
  return function(t, w) return common.quantize(L, t, a, { scale = scales[w] }) end
end

--- products(method, L) -> w13, w2 and quantize for moe.forward, reading the processed form.
function M.products(method, L)
  local out = products[M.forms[method.backend][1]](method, L)
  out.quantize = quantizer(method, L)
  return out
end

return M
