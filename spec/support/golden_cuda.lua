-- golden_cuda: the golden cases with layout.marlin's functions done on a device, the stand-in's: run by nibble in a process
-- of its own (spec/cuda_golden_spec.lua). Prints a line for each operation that reached the device, "OPERATION|cases|calls",
-- and for each case that failed "!OPERATION: what". Needs NB_CUDA_DRIVER.
package.path = "./?.lua;" .. package.path
local nb = require "nibble"
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local golden = require "spec.support.golden"

local calls = 0

local function there(x) return ffi.istype(tensor.type, x) and assert(x:to "cuda") or x end

local function here(x) return ffi.istype(tensor.device_type, x) and assert(x:to "cpu") or x end

-- The arguments of a call, and the fields of its options, lie on the device meanwhile.
local function on_device(f)
  return function(t, ...)
    local given, n = { ... }, select("#", ...)
    for i = 1, n do
      given[i] = there(given[i])
      if type(given[i]) == "table" then
        local options = {}
        for key, value in pairs(given[i]) do options[key] = there(value) end
        given[i] = options
      end
    end
    calls = calls + 1
    local results = { f(there(t), unpack(given, 1, n)) }
    for i, x in ipairs(results) do results[i] = here(x) end
    return unpack(results)
  end
end

for name in pairs(require "nibble.cuda.repack") do nb.layout.marlin[name] = on_device(nb.layout.marlin[name]) end

-- e4m3fnuz is not for NVIDIA's.
local fp8 = require "nibble.methods.fp8"
for _, name in ipairs { "requantize", "requantize_experts" } do
  local near, far = fp8[name], on_device(fp8[name])
  fp8[name] = function(weight, ...) return (weight:type() == "f8_e4m3" and far or near)(weight, ...) end
end

-- FP8 and FP4 weights made ready for 16-bit activations are multiplied there too, each expert's, and as the CPU does.
local float, gemm = require "nibble.methods.marlin_float", require "nibble.gemm"
local products = 0

local function product(p, m)
  local bits = m.kind:match "fp8$" and 8 or 4
  local w = { words = p.words, scales = p.scales, bias = p.bias, global = p.global and p.global:get(1), dtype = m.dtype,
    type = bits == 8 and "float8_e4m3fn" or "float4_e2m1f", k = p.words:size(1) * 16, n = p.words:size(2) * 2 / bits }
  local x = nb.tensor(m.dtype, { 3, w.k })
  for i = 1, x:numel() do x:set(i, math.sin(i * 12.9898)) end
  local want, moved = gemm.marlin(x, w), setmetatable({}, { __index = w })
  for _, part in ipairs { "words", "scales", "bias" } do moved[part] = w[part] and there(w[part]) end
  local y = here(assert(gemm.marlin(there(x), moved))):cast "f32"
  local most = nb.compare(want, nb.tensor("f32", want:size())).max_abs
  if not (nb.compare(want, y).max_abs <= most * (m.dtype == "f16" and 2 ^ -11 or 2 ^ -8)) then
    error(m.kind .. ": the product on the device is not the CPU's", 0)
  end
  products = products + 1
end

local prepare, prepare_moe = float.prepare, float.prepare_moe
function float.prepare(m)
  local out, msg, code = prepare(m)
  if out and not m.activations then product(out, m) end
  return out, msg, code
end
function float.prepare_moe(m)
  local out, msg, code = prepare_moe(m)
  for e = 1, out and not m.activations and out.words:size(1) or 0 do
    local one = { words = out.words[e], scales = out.scales[e], bias = out.bias and out.bias[e] }
    local globals = out.global and out.global:reshape { out.global:numel() }
    one.global = globals and globals:rows(math.min(e, globals:numel()), math.min(e, globals:numel()))
    product(one, m)
  end
  return out, msg, code
end

-- Integers made ready for 8-bit activations are multiplied there, too: a matrix, or all experts by one product.
local marlin, experts = require "nibble.methods.marlin", require "nibble.cuda.experts"
local narrow = 0

local function narrow_product(p, m)
  local moe, d = p.words.ndim == 3, p.words.ndim
  local w = { type = m.type, words = p.words, scales = p.scales, zeros = p.zeros, bias = p.bias, global = p.global,
    k = p.words:size(d - 1) * 16, n = p.words:size(d) * 2 / m.bits, dtype = p.scales:type(), activations = m.activations, moe = moe }
  local x, moved = nb.tensor(w.dtype, { 6, w.k }), setmetatable({}, { __index = w })
  local want, y
  for i = 1, x:numel() do x:set(i, math.sin(i * 12.9898)) end
  for _, part in ipairs { "words", "scales", "zeros", "bias" } do moved[part] = w[part] and there(w[part]) end
  if moe then
    local count = w.words:size(1)
    local ids = nb.tensor("i32", { 6, 1 })
    want = nb.tensor("f32", { 6, w.n })
    for e = 0, count - 1 do
      local of = gemm.marlin(x, gemm.marlin_expert(w, e))
      for r = e, 5, count do
        ids:set(r + 1, e)
        nb.compute.copy(want:rows(r + 1, r + 1), of:rows(r + 1, r + 1))
      end
    end
    y = assert(experts.gemm(there(x), moved, experts.align(there(ids), count)))
  else want, y = gemm.marlin(x, w), assert(gemm.marlin(there(x), moved)) end
  local most = want:stats().absmax
  if not (nb.compare(want, here(y):cast "f32").max_abs <= most * (w.dtype == "f16" and 2 ^ -11 or 2 ^ -8)) then
    error(m.activations .. " activations: the product on the device is not the CPU's", 0)
  end
  narrow = narrow + 1
end

local prepare_all = marlin.prepare_all
function marlin.prepare_all(ms, ...)
  local outs, msg, code = prepare_all(ms, ...)
  for i, m in ipairs(outs and ms or {}) do
    local type = (m.zeros and "uint%d" or "uint%db%d"):format(m.bits, 2 ^ (m.bits - 1))
    if m.activations and m.bits == 4 then narrow_product(outs[i], { type = type, bits = 4, activations = m.activations }) end
  end
  return outs, msg, code
end
local awq = require "nibble.methods.awq_marlin_moe"
local process = awq.process
function awq.process(self, L)
  local ok, msg, code = process(self, L)
  for _, w in ipairs(ok and self.activations and { "w13", "w2" } or {}) do
    narrow_product({ words = L:get(w .. "_qweight"), scales = L:get(w .. "_scales"), zeros = L:get(w .. "_qzeros"),
      global = L:get(w .. "_input_global_scale") }, { type = "uint4", bits = 4, activations = self.activations })
  end
  return ok, msg, code
end

local ops, by_op, order = golden.operations(), golden.cases()
for _, op in ipairs(order) do
  local before, cases = calls, 0
  for _, entry in ipairs(ops[op] and by_op[op] or {}) do
    local failure = golden.run(ops[op], entry)
    cases = cases + 1
    if failure then print(("!%s: %s: %s"):format(op, entry.id, failure)) end
  end
  if calls > before then print(("%s|%d|%d"):format(op, cases, calls - before)) end
end
print(("products of floats|%d|%d"):format(products, products))
print(("products of 8-bit activations|%d|%d"):format(narrow, narrow))
