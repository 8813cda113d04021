-- methods.ct_nvfp4_moe: NVFP4 experts of compressed-tensors: 4-bit floats in groups of 16 with e4m3 scales
-- under a global one, activations likewise (W4A4) or in 16 bits (W4A16) (SYSTEMS 6.1, CTM-NVFP4).
local tensor = require "nibble.tensor"
local nffi = require "nibble.ffi"
local layout = require "nibble.layout"
local common = require "nibble.methods.moe_common"
local kernels = require "nibble.methods.nvfp4_kernels"

local M = {}
local Method = common.class("ct_nvfp4_moe", kernels, "NVFP4 experts")

local GROUP = 16

local function describe(a)
  return ("%s %s bits by %s, group %s"):format(tostring(a.type), tostring(a.bits), tostring(a.strategy),
    tostring(a.group))
end

local function is_nvfp4(a)
  return a.type == "float" and a.bits == 4 and a.strategy == "tensor_group" and a.group == GROUP
    and a.symmetric ~= false
end

--- recognizes(scheme) -> true | false, why: symmetric 4-bit floats by tensor_group of 16, activations the same or none.
-- (CTM-NVFP4-02)
function M.recognizes(s)
  if not is_nvfp4(s) then return false, "ct_nvfp4_moe takes NVFP4 weights, found " .. describe(s) end
  if s.activations and not is_nvfp4(s.activations) then
    return false, "NVFP4 weights go with NVFP4 activations or none, found " .. describe(s.activations)
  end
  return true
end

local reductions, mismatches = { max = true, per_expert = true }, { gate = true, rescale = true }

local function one_of(set, value, what, names)
  if not set[value] then error(("ct_nvfp4_moe: %s must be %s, found %s"):format(what, names, tostring(value)), 3) end
  return value
end

function Method:set_backend(name)
  self.global_scale_factor = kernels.forms[name].global or false
  return common.Base.set_backend(self, name)
end

--- new(scheme [, options]) -> method | nil, msg, code
-- scheme: NVFP4, activations NVFP4 (W4A4) or nil (W4A16). options: backend = one of nvfp4_kernels.names, or nil: the
-- oracle is asked when the layer is created (device, consumer, choice, packages), and where none of them is given it
-- is NIBBLE; input_reduction = "max" | "per_expert" (SYSTEMS C-17); mismatch = "gate" | "rescale": what becomes of an
-- up projection whose global scale isn't the gate's; activations: Marlin's, refused; compat; log; say(step).
-- (CTM-NVFP4-01, CTM-NVFP4-02, CTM-NVFP4-11)
function M.new(scheme, options)
  local ok, why = M.recognizes(scheme)
  if not ok then return nil, why, "eunsupported" end
  local method = common.start(Method, options)
  local o = method.options
  method.scheme, method.group = scheme, GROUP
  method.weight_key, method.activation_key = "nvfp4 static", scheme.activations and "nvfp4 dynamic" or "none"
  method.reduction = one_of(reductions, o.input_reduction or "max", "input_reduction", "max or per_expert")
  method.mismatch = one_of(mismatches, o.mismatch or "gate", "mismatch", "gate or rescale")
  if o.backend and o.backend ~= "auto" then
    local set, msg, code = method:set_backend(common.backend_of(kernels.names, o.backend, "ct_nvfp4_moe"))
    if not set then return nil, msg, code end
  end
  return method
end

-- ---- parameters ------------------------------------------------------------------------------

-- Whether the kernel reads activations in 16 bits.
local function weight_only(method)
  return kernels.forms[method.backend].weight_only or not method.scheme.activations
end

--- method:create(L) -> true | nil, msg, code: chooses the backend where none was named, registers the parameters.
-- (CTM-NVFP4-03 to CTM-NVFP4-06)
function Method:create(L)
  for _, size in ipairs { { "hidden", L.h }, { "intermediate", L.i } } do
    if size[2] % GROUP ~= 0 then
      return nil, ("layer %s: the %s size %d is not a multiple of the group of 16"):format(L.name, size[1], size[2]),
        "eunsupported"
    end
  end
  local ok, msg, code = self:choose(L)
  if not ok then return nil, msg, code end
  local function register(name, dtype, shape, method)
    common.register(L, name, { dtype = dtype, shape = shape, scale_method = method })
  end
  register("w13_weight_packed", "u8", { L.e, L.s * L.i, L.h / 2 })
  register("w2_weight_packed", "u8", { L.e, L.h, L.i / 2 })
  register("w13_weight_scale", "f8_e4m3", { L.e, L.s * L.i, L.h / GROUP }, "group")
  register("w2_weight_scale", "f8_e4m3", { L.e, L.h, L.i / GROUP }, "group")
  for _, what in ipairs { "weight", "input" } do
    register("w13_" .. what .. "_global_scale", "f32", { L.e, L.s }, "tensor")
    register("w2_" .. what .. "_global_scale", "f32", { L.e }, "tensor")
  end
  if L.bias then
    register("w13_bias", L.dtype, { L.e, L.s * L.i })
    register("w2_bias", L.dtype, { L.e, L.h })
  end
  L.num_experts, L.params_dtype, L.state = L.e, L.dtype, "created"
  return true
end

-- ---- after loading ----------------------------------------------------------------------------

-- 1/x of every value of a loaded scale | nil, msg: a zero, which is also what was never loaded, has none.
-- (CTM-NVFP4-07)
local function inverted(L, name)
  local t = L:get(name)
  local out = tensor.new("f32", t:size())
  for i = 1, t:numel() do
    local v = t:get(i)
    if v == 0 or v ~= v or math.abs(v) == math.huge then
      return nil, ("layer %s: %s of expert %d is %g, expected a finite number other than 0; is it in the checkpoint?")
        :format(L.name, name, math.floor((i - 1) / (t:numel() / t:size(1))), v), "eformat"
    end
    out:set(i, 1 / v)
  end
  return out
end

local function close(a, b) return math.abs(a - b) <= 1e-8 + 1e-5 * math.abs(b) end

local steps = {}

-- Every global scale that is needed, before anything changes.
function steps.check(method, L, m)
  for _, w in ipairs { "w13", "w2" } do
    for _, what in ipairs(weight_only(method) and { "weight" } or { "weight", "input" }) do
      local name = w .. "_" .. what .. "_global_scale"
      local all, msg, code = inverted(L, name)
      if not all then return nil, msg, code end
      m[name] = all
    end
  end
  return true
end

-- (1) packed weights go by another name from here on.
function steps.rename(_, L, m)
  for _, w in ipairs { "w13", "w2" } do
    m[w], m[w .. "_scale"] = L:get(w .. "_weight_packed"), L:get(w .. "_weight_scale")
    m[w .. "_packed"], m[w .. "_bias"] = m[w], L:get(w .. "_bias")
    L:replace(w .. "_weight_packed", nil)
  end
  return true
end

-- The up half's block scales times what its global scale differs by, for one expert.
local function rescale(method, L, scales, e, ratio)
  local half = scales[e]:rows(L.i + 1, 2 * L.i)
  local wide = layout.marlin.multiply_scales(half:cast "f32", ratio)
  if wide:stats().absmax > 448 then
    method:say("warning", ("layer %s: block scales of expert %d's up projection pass 448 when rescaled, and are cut "
      .. "there"):format(L.name, e - 1))
  end
  nffi.must(nffi.C.nb_tensor_copy(half, wide:cast("f8_e4m3", { saturate = true })))
end

-- (2) gate and up whose global scales differ. (CTM-NVFP4-08, CTM-NVFP4-09, SYSTEMS C-18)
function steps.compare(method, L, m)
  if not L.gated then return true end
  local globals = L:get "w13_weight_global_scale"
  for e = 1, L.e do
    local gate, up = globals:get { e, 1 }, globals:get { e, 2 }
    if not close(gate, up) then
      if method.mismatch == "gate" then
        method:say("warning", "the global scales of w1 and w3 differ, and w1's serves both: accuracy may suffer; "
          .. "mismatch = \"rescale\" keeps both")
        return true
      end
      if not m.rescaled then m.w13_scale, m.rescaled = m.w13_scale:clone(), true end
      rescale(method, L, m.w13_scale, e, gate / up)
    end
  end
  return true
end

-- (3), (4) the gate's global scale for w13; all of them inverted.
function steps.invert(_, L, m)
  for _, w in ipairs { "w13", "w2" } do
    local all, first = m[w .. "_weight_global_scale"], tensor.new("f32", { L.e })
    for e = 1, L.e do first:set(e, all:get((e - 1) * (all:numel() / L.e) + 1)) end
    m[w .. "_scale_2"] = first
  end
  return true
end

-- Input scales, where the backend's activations are quantized.
function steps.inputs(method, L, m)
  local form = kernels.forms[method.backend]
  for _, w in ipairs(weight_only(method) and {} or { "w13", "w2" }) do
    local all = m[w .. "_input_global_scale"]
    if form.emulated and method.reduction == "max" and kernels.differs(all) then
      method:say("warning", ("layer %s: the experts' input global scales differ, and emulation takes the largest "
        .. "factor for all, which may clip the others; input_reduction = \"per_expert\" keeps each"):format(L.name))
    end
    m[w .. "_input_scale"] = kernels.input_scale(method.backend, all, method.reduction)
  end
  return true
end

-- A bias that the kernel's global scale multiplies too (SYSTEMS C-27): for comparison only.
function steps.bias(method, L, m)
  if not (method.switches.global_scales_bias and m.w2_bias) then return true end
  m.w2_bias = m.w2_bias:clone()
  for e = 1, L.e do
    nffi.must(nffi.C.nb_tensor_copy(m.w2_bias[e], layout.marlin.multiply_scales(m.w2_bias[e], m.w2_scale_2:get(e))))
  end
  return true
end

steps.convert = Method.to_kernel -- (5)

-- (6), (7)
function steps.publish(_, L, m)
  for _, w in ipairs { "w13", "w2" } do
    common.put(L, w .. "_weight", m[w])
    common.put(L, w .. "_weight_scale", m[w .. "_scale"])
    common.put(L, w .. "_weight_scale_2", m[w .. "_scale_2"])
    if m[w .. "_bias"] then common.put(L, w .. "_bias", m[w .. "_bias"]) end
    if m[w .. "_input_scale"] then common.put(L, w .. "_input_scale", m[w .. "_input_scale"]) end
  end
  return true
end

--- method:process(L) -> true | nil, msg, code: in the order of CTM-NVFP4-08; once, or after reload. The layer's
-- *_weight_packed become *_weight, and *_weight_scale_2 and *_input_scale appear.
function Method:process(L)
  self:unprocessed(L)
  local m = {}
  local ok, msg, code = self:run_steps(steps, { "check", "rename", "compare", "invert", "inputs", "bias", "convert",
    "publish" }, L, m)
  if not ok then
    for _, w in ipairs { "w13", "w2" } do -- as it was
      if m[w .. "_packed"] then L:replace(w .. "_weight_packed", m[w .. "_packed"]) end
    end
    return nil, msg, code
  end
  L.quant = self:quant(L)
  L.state, L.method = "ready", self
  return true
end

local function each(a, b, fn)
  local out = tensor.new("f32", a:size())
  for i = 1, a:numel() do out:set(i, fn(a:get(i), b and b:get(i))) end
  return out
end

--- method:quant(L) -> {w1_scale, w2_scale, g1_alphas, g2_alphas [, a1_gscale, a2_gscale, scale_swizzled]}
-- Weight-only: alphas are the weights' global scales. W4A4: α = scale_2 * input_scale, and the quantizer's factor
-- 1 / input_scale; emulation holds that one as its input scale. (CTM-NVFP4-13, CTM-NVFP4-17)
function Method:quant(L)
  local form = kernels.forms[self.backend]
  local out = { w1_scale = L:get "w13_weight_scale", w2_scale = L:get "w2_weight_scale",
    g1_alphas = L:get "w13_weight_scale_2", g2_alphas = L:get "w2_weight_scale_2" }
  if weight_only(self) then return out end
  local a1, a2 = L:get "w13_input_scale", L:get "w2_input_scale"
  if form.emulated then
    out.a1_gscale, out.a2_gscale = a1, a2
    return out
  end
  local function product(x, y) return x * y end
  local function inverse(x) return 1 / x end
  out.g1_alphas, out.g2_alphas = each(out.g1_alphas, a1, product), each(out.g2_alphas, a2, product)
  out.a1_gscale, out.a2_gscale = each(a1, nil, inverse), each(a2, nil, inverse)
  out.scale_swizzled = self.backend ~= "FLASHINFER_TRTLLM"
  return out
end

-- apply and apply_monolithic are moe_common's. (CTM-NVFP4-18)

return M
