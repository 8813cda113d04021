-- methods.w4a8_moe: experts of 4-bit integers with activations of 8 bits on the CPU, from
-- compressed-tensors checkpoints (SYSTEMS 6.2, CTM-W4A8).
--
-- Both products quantize their input a token at a time, multiply int4 by int8 and sum in
-- int32 within a group (core/compute/w4a8.c). The peer's own kernel runs on Arm only; this
-- one runs everywhere.
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local compat = require "nibble.compat"
local moe = require "nibble.moe"
local common = require "nibble.methods.moe_common"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must

local M = {}
local Method = { name = "w4a8_moe", monolithic = true }
Method.__index = Method

-- ---- choosing ----------------------------------------------------------------------

local function activations_fault(a)
  if not a or a.strategy ~= "token" or not a.dynamic then
    return ("w4a8_moe needs activations quantized dynamically, a token at a time; found %s"):format(not a and "none"
      or ("%s, %s"):format(tostring(a.strategy), a.dynamic and "dynamic" or "static"))
  end
  if a.type ~= "int" or a.bits ~= 8 then
    return ("w4a8_moe takes int8 activations, found %s of %s bits"):format(tostring(a.type), tostring(a.bits))
  end
end

local function scheme_fault(s)
  local fault = activations_fault(s.activations)
  if fault then return fault end
  if s.bits ~= 4 or s.type ~= "int" then
    return ("w4a8_moe takes 4-bit integer weights only, found %s of %s bits"):format(tostring(s.type), tostring(s.bits))
  end
  if s.symmetric == false then return "w4a8_moe takes symmetric weights only, found asymmetric ones" end
  if s.strategy ~= "channel" and s.strategy ~= "group" then
    return ('w4a8_moe takes strategy = "channel" or "group", found "%s"'):format(tostring(s.strategy))
  end
end

--- probe{arch = "arm", library = "PyTorch 2.4.0", pack = bool, matmul = bool} -> true | false, reason
-- Whether the peer's two dynamic 4-bit primitives are there, which it cannot do without on Arm. nibble has its own on
-- every processor, so this concerns acceleration alone. (CTM-W4A8-02)
function M.probe(o)
  if o.arch ~= "arm" then return false, ("the 4-bit primitives are for Arm, found %s"):format(tostring(o.arch)) end
  if o.pack and o.matmul then return true end
  return false, ("%s has no dynamic 4-bit %s; install a newer build"):format(o.library or "the library",
    o.pack and "matmul" or o.matmul and "pack" or "pack and matmul")
end

--- new(scheme [, options]) -> method | nil, msg, code
-- scheme: 4-bit symmetric int weights by channel or group; activations int8, token, dynamic. options: device = "cpu" (the
-- only one), probe (as M.probe's; its reason is an error with acceleration = "required"), compat. (CTM-W4A8-01,
-- CTM-W4A8-02)
function M.new(scheme, options)
  options = options or {}
  local fault = scheme_fault(scheme)
  if fault then return nil, fault, "eunsupported" end
  if (options.device or "cpu") ~= "cpu" then
    return nil, ("w4a8_moe runs on the CPU only, found the device %s"):format(tostring(options.device)), "eunsupported"
  end
  local method = setmetatable({ options = options, switches = compat.read(options), scheme = scheme }, Method)
  if options.probe then
    local ok, reason = M.probe(options.probe)
    if not ok and options.acceleration == "required" then return nil, "w4a8_moe: " .. reason, "eunsupported" end
    method.accelerated, method.acceleration = ok, reason
  end
  method.group = scheme.strategy == "group" and scheme.group or -1
  -- One scale a row is float32, scales of groups are bfloat16 (SYSTEMS C-15).
  method.scale_dtype = method.group == -1 and "f32" or "bf16"
  return method
end

-- ---- the activation ------------------------------------------------------------------

local kinds = { swiglustep = 0, swigluoai = 1, silu = 2 }

--- kind(activation) -> 0 swiglustep, 1 swigluoai, 2 silu, as the peer's kernel numbers them; others are errors. (CTM-W4A8-10)
function M.kind(activation)
  local kind = kinds[activation]
  if not kind then
    error(("w4a8_moe takes the activations silu, swigluoai and swiglustep, found %s"):format(tostring(activation)), 2)
  end
  return kind
end

-- moe.forward's activation of a kind, on halves. The peer's kernel runs kind 0 without its clamp (SYSTEMS C-14).
local function activation_of(kind, switches)
  if kind == 1 then return { activation = "swigluoai_uninterleave", limit = 7, alpha = 1.702, beta = 1 } end
  return { activation = kind == 0 and not switches.w4a8_kernel_activations and "swiglustep" or "silu" }
end

-- What of the layer this method can't do; nil when nothing. (CTM-W4A8-05, CTM-W4A8-09)
local function layer_fault(L)
  local function says(text, ...) return ("layer %s: " .. text):format(L.name, ...) end
  if L.options.eplb then return says "w4a8_moe does not balance experts between ranks (EPLB); turn it off" end
  if not kinds[L.activation] then
    return says("w4a8_moe takes the activations silu, swigluoai and swiglustep, found %s", tostring(L.activation))
  end
  if L.expert_map then return says("w4a8_moe has no expert parallelism, found %d ranks; use tensor parallelism", L.ep) end
  if not L.gated then return says "w4a8_moe takes gated experts only (w1 and w3)" end
end

-- ---- parameters ------------------------------------------------------------------------

--- method:create(L) -> true | nil, msg, code: registers the parameters. (CTM-W4A8-03 to CTM-W4A8-05)
-- w13_weight i8 [E,2I,H], w2_weight i8 [E,H,I], values -8 to 7; scales [E,2I,H/g or 1], [E,H,I/g or 1], 1 until loaded;
-- with a biased MoE biases [E,2I], [E,H]; w13_weight_packed and w2_weight_packed, empty until process.
function Method:create(L)
  local fault = layer_fault(L)
  if fault then return nil, fault, "eunsupported" end
  L.w13_in, L.w13_out, L.w2_in, L.w2_out, L.group = L.h, 2 * L.i, L.i, L.h, self.group
  for _, w in ipairs { "w13", "w2" } do
    local n, k = L[w .. "_out"], L[w .. "_in"]
    if tonumber(C.nb_w4a8_bytes(n, k, self.group)) < 0 then
      return nil, ("layer %s: %s: %s"):format(L.name, w, ffi.string(C.nb_error())), "eunsupported"
    end
    L:register(w .. "_weight", { dtype = "i8", shape = { L.e, n, k } })
    L:register(w .. "_weight_scale", { dtype = self.scale_dtype, shape = { L.e, n, self.group == -1 and 1 or k / self.group },
      scale_method = self.group == -1 and "channel" or "group", fill = 1 })
    if L.bias then L:register(w .. "_bias", { dtype = L.dtype, shape = { L.e, n } }) end
    L:register(w .. "_weight_packed", { dtype = "u8", shape = { 0 } })
  end
  return true
end

-- ---- after loading ------------------------------------------------------------------------

--- nibbles(codes i8 [n,k]) -> u8 [n,k/2] | nil, msg, code: byte (o,c) holds code(o,2c)+8 low, code(o,2c+1)+8 high.
-- A code outside -8 to 7 is "eformat". (CTM-W4A8-06)
function M.nibbles(codes)
  local out = tensor.new("u8", { codes:size(1), math.floor(codes:size(2) / 2) })
  local rc, msg, code = nffi.check(C.nb_w4a8_nibbles(out, codes), true)
  if not rc then return nil, msg, code end
  return out
end

--- pack(codes, scales, bias, group) -> u8 [bytes] | nil, msg, code
-- One matrix as the product reads it: codes i8 [n,k]; scales [n,G] of any float dtype, kept as f32 (group -1) or bf16; bias
-- [n] or nil, kept as f32. k must be even and divisible by the group. (CTM-W4A8-06, CTM-W4A8-08)
function M.pack(codes, scales, bias, group)
  local size = tonumber(C.nb_w4a8_bytes(codes:size(1), codes:size(2), group))
  if size < 0 then error(ffi.string(C.nb_error()), 2) end
  local nibbles, msg, code = M.nibbles(codes)
  if not nibbles then return nil, msg, code end
  local kept = scales:cast(group == -1 and "f32" or "bf16")
  local s = kept:stats()
  if s.nan + s.inf > 0 then return nil, ("w4a8: %d scales are infinite or NaN"):format(s.nan + s.inf), "eformat" end
  local out = tensor.new("u8", { size })
  must(C.nb_w4a8_pack(out, nibbles, kept, bias and bias:cast "f32", group))
  nibbles:free()
  return out
end

--- unpack(packed, n, k, group) -> codes i8 [n,k], scales [n,G], bias f32 [n]: what pack was given. (CTM-W4A8-08)
function M.unpack(packed, n, k, group)
  local nibbles, codes = tensor.new("u8", { n, k / 2 }), tensor.new("i8", { n, k })
  local scales = tensor.new(group == -1 and "f32" or "bf16", { n, group == -1 and 1 or k / group })
  local bias = tensor.new("f32", { n })
  must(C.nb_w4a8_unpack(nibbles, scales, bias, packed, group))
  must(C.nb_w4a8_codes(codes, nibbles))
  return codes, scales, bias
end

local function pack_stack(method, L, w)
  local weight, scale, bias = L:get(w .. "_weight"), L:get(w .. "_weight_scale"), L:get(w .. "_bias")
  local out
  for e = 1, L.e do
    nffi.stop_check()
    local packed, msg, code = M.pack(weight[e], scale[e], bias and bias[e], method.group)
    if not packed then return nil, ("layer %s: %s of expert %d: %s"):format(L.name, w, e - 1, msg), code end
    out = out or tensor.new("u8", { L.e, packed:numel() })
    must(C.nb_tensor_copy(out:rows(e, e), packed:reshape { 1, packed:numel() }))
    packed:free()
  end
  return out
end

--- method:process(L) -> true | nil, msg, code
-- Packs both matrices of every expert into w13_weight_packed and w2_weight_packed u8 [E, bytes], then empties the weights,
-- scales and biases they came from. A code outside -8 to 7 and a scale that isn't finite are "eformat" and leave the layer
-- as it was. (CTM-W4A8-07)
function Method:process(L)
  if L.method then error(("layer %s: its weights are packed already"):format(L.name), 2) end
  local packed = {}
  for _, w in ipairs { "w13", "w2" } do
    local msg, code
    packed[w], msg, code = pack_stack(self, L, w)
    if not packed[w] then return nil, msg, code end
  end
  for _, w in ipairs { "w13", "w2" } do
    L:replace(w .. "_weight_packed", packed[w])
    for _, part in ipairs { "_weight", "_weight_scale", "_bias" } do
      local t = L:get(w .. part)
      if t then L:replace(w .. part, tensor.new(t:type(), { 0 })) end
    end
  end
  L.method = self
  return true
end

--- method:quant() -> nil: the kernel needs no description. (CTM-W4A8-09)
function Method.quant() return nil end

--- method:unpack(L, which, expert) -> codes i8, scales, bias f32 of "w13" or "w2" of an expert (0-based). (CTM-W4A8-08)
function Method:unpack(L, which, expert)
  local packed = L:get(which .. "_weight_packed")
  return M.unpack(packed[expert + 1], L[which .. "_out"], L[which .. "_in"], self.group)
end

-- ---- running --------------------------------------------------------------------------------

--- method:products(L) -> w13 and w2 for moe.forward, out of the packed experts; they quantize their rows.
function Method:products(L)
  local function product(w)
    local packed, n = L:get(w .. "_weight_packed"), L[w .. "_out"]
    return function(e, rows, room)
      local y = room(w, rows:size(1), n)
      must(C.nb_w4a8_gemm(y, rows, packed[e + 1], self.group))
      return y
    end
  end
  return { w13 = product "w13", w2 = product "w2" }
end

--- method:experts(L, x, weights, ids [, {router_weight_on_input = false}]) -> y [T,H] of x's dtype
-- The kernel behind the router. weights f32 [T,k], ids i32 or i64 [T,k]; an id outside 0..E-1 is an error. The weight goes
-- on the gathered rows instead of the result when it is meant for the input, for any k. (CTM-W4A8-11 to CTM-W4A8-14)
function Method:experts(L, x, weights, ids, o)
  if L.method ~= self then error(("layer %s: its weights are not packed yet; call process after loading"):format(L.name), 2) end
  local fault = layer_fault(L)
  if fault then error(fault, 2) end
  if ids:type() == "i64" then ids = ids:cast "i32" end
  local on_input = o and o.router_weight_on_input
  if on_input == nil then on_input = L.options.router_weight_on_input end
  local forward, parts = activation_of(M.kind(L.activation), self.switches), self:products(L)
  forward.ids, forward.weights, forward.experts, forward.strict = ids, weights, L.e, not tensor.on_device(x)
  forward.w13, forward.w2, forward.quantize = parts.w13, parts.w2, parts.quantize
  forward.router_weight_on_input, forward.any_top = on_input and true or false, true
  return moe.forward(x, forward)
end

--- method:apply_monolithic(L, x, logits [, o]) -> y [T,H] of x's dtype
-- x [T,H] f32, f16 or bf16; logits [T,E]. o: as moe_common.route takes it, and router_weight_on_input. (CTM-W4A8-12)
function Method:apply_monolithic(L, x, logits, o)
  local weights, ids = common.route(L, logits, o)
  return self:experts(L, x, weights, ids, o)
end

--- method:apply(L): an error: the router is inside, see apply_monolithic. (CTM-W4A8-09)
function Method:apply(L) moe.expect(self, "modular", L) end

return M
