-- cuda.experts: mixtures of experts on a device, from Marlin's stacks: the product of all experts at once, and moe.forward
-- and moe.batched where x lies there. One launch a stage, and nothing waits for the device.
local ffi = require "ffi"
local dispatch = require "nibble.dispatch"
local gemm = require "nibble.gemm"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local tensors = require "nibble.cuda.tensors"
local C, must = nffi.C, nffi.must
local device_tensor = tensor.device_type

local M = {}

local function there(t) return ffi.istype(device_tensor, t) end
local function describe(t)
  if there(t) or ffi.istype(tensor.type, t) then return ("%s [%s] on %s"):format(t:type(), table.concat(t:size(), "x"), t:where()) end
  return "a " .. type(t)
end
local function refuse(level, ...) error("moe.forward: " .. (...):format(select(2, ...)), level + 1) end

-- Addresses in a struct keep nothing from the collector: what they are of stays in the arguments until C is done.
local function blocks_struct(b, weights, globals)
  local s = ffi.new("nb_moe_blocks", { block = b.block, top = b.top })
  for name, t in pairs { sorted = b.sorted, block_experts = b.block_experts, total = b.total, weights = weights, globals = globals } do
    s[name] = there(t) and t.t or t or nil
  end
  return s
end

-- Numbers g of the experts, on the device, or nil where one serves all; those in the computer's memory go there once for a
-- weight m. | false, msg, code
local copied = setmetatable({}, { __mode = "k" })
local function numbers_there(m, g, device)
  if there(g) then return g end
  if g == nil or type(g) == "number" or ffi.istype(tensor.type, g) and g:numel() == 1 then return nil end
  local kept = copied[m]
  if kept and kept.of == g and kept.device == device then return kept.there end
  local t, msg, code = (type(g) == "table" and tensor.new("f32", { #g }, g) or g):to(device)
  if not t then return false, msg, code end
  copied[m] = { of = g, device = device, there = t }
  return t
end

--- experts.gemm(x, m, blocks [, {out =, row_scale =}]) -> y [pairs, n] on the device | nil, msg, code
-- Row p is p's row of x, p / top, times the weight of p's expert, plus its bias. x f16 or bf16 [pairs/top, k]; m: stacks
-- [experts, ...] as gemm.marlin_experts takes them, on the device; global, or else scale_factor: a number, or one an expert: f32
-- [experts] there, or here, or an array, which then are copied once, by the first call with m. blocks: {sorted =,
-- block_experts =, total =, block =, top =, weights = nil}: what moe.align makes, there; weights f32 [T, top] multiply the
-- rows. Rows of pairs that are in no block of an expert's here are left as they are. row_scale f32 [pairs/top, 1].
-- With 8-bit activations (m.activations) x becomes codes there, a scale a token; or x is codes, and row_scale their scales, and
-- y has m.dtype.
function M.gemm(x, m, blocks, o)
  local name = m.global == nil and "scale_factor" or "global" -- the one or the other
  local globals, msg, code = numbers_there(m, m[name], x:where())
  if globals == false then return nil, msg, code end
  local scale, w = o and o.row_scale, setmetatable({ moe = true, [name] = globals and 1 or m[name] }, { __index = m })
  local form, dtype = gemm.marlin_form(w, scale ~= nil), x.t.dtype
  if m.activations and m.activations ~= "none" then
    if scale then dtype = m.dtype and tensor.dtype_id(m.dtype) or dtype
    else
      x, scale, code = gemm.codes(x, w)
      if not x then return nil, scale, code end
    end
  end
  local function multiply(out)
    return C.nb_device_marlin_moe_gemm(out, x.t, form(), blocks_struct(blocks, blocks.weights, globals), there(scale) and scale.t or scale)
  end
  if o and o.out then return nffi.check(multiply(o.out.t), o.out) end
  return tensors.make(x.t.device, function(out)
    out.dtype = dtype -- of y, which codes don't tell
    return multiply(out)
  end)
end
jit.off(M.gemm, true)

-- A new tensor on x's device that f(out) fills or makes.
local function made(x, f, ...)
  local more, n = { ... }, select("#", ...)
  return assert(tensors.make(x.t.device, function(out) return dispatch.there(f, out, unpack(more, 1, n)) end))
end

-- Checks that C doesn't make, or only in other words.
local function check(x, o)
  if x.ndim ~= 2 or (x:type() ~= "f16" and x:type() ~= "bf16") then
    refuse(4, "on a device x must be an f16 or bf16 tensor [tokens, hidden], found %s", describe(x))
  end
  for _, name in ipairs { "ids", "weights" } do
    local t, dtype = o[name], name == "ids" and "i32" or "f32"
    local fits = there(t) and t.ndim == 2 and t:type() == dtype and t:size(1) == x:size(1) and t:size(2) == o.ids:size(2)
    if not fits and not (t == false and o.counts) then
      refuse(4, "%s must be %s [%d tokens, k] on %s, found %s", name, dtype, x:size(1), x:where(), describe(t))
    end
  end
  local stacks = { "w13", "w2", o.w3 and "w3" or nil }
  for _, name in ipairs(stacks) do
    if type(o[name]) ~= "table" then
      refuse(4, "on a device %s must be the stacks of Marlin's experts (gemm.marlin_experts), found a %s", name, type(o[name]))
    end
  end
  if type(o.experts) ~= "number" or o.experts < 1 then
    refuse(4, "experts must be the number of experts here, found %s", tostring(o.experts))
  end
  for _, name in ipairs(stacks) do
    local words = o[name].words
    if words:size(1) ~= o.experts then refuse(4, "%s has words of %d experts, and the layer has %d", name, words:size(1), o.experts) end
  end
  if o.strict then refuse(4, "strict: ids on a device are not looked at; those outside contribute nothing") end
  if o.expert_map and not there(o.expert_map) then
    refuse(4, "expert_map must be i32 [experts everywhere] on %s, found %s", x:where(), describe(o.expert_map))
  end
  local dtype = o.dtype or x:type()
  if dtype ~= "f32" and dtype ~= x:type() then refuse(4, "on a device y is f32 or as x, which is %s, found %s", x:type(), dtype) end
  if o.inplace and dtype ~= x:type() then refuse(4, "an output in %s cannot be written over an x in %s", dtype, x:type()) end
  if o.router_weight_on_input and o.ids:size(2) ~= 1 and not o.any_top then
    refuse(4, "the router weight goes on the input only where each token has 1 expert, found %d", o.ids:size(2))
  end
  return dtype
end

--- experts.align(ids, experts [, {map =, block =}]) -> blocks, for experts.gemm
-- ids i32 [T, top] on the device, of `experts` here, or of the map's; of pairs that are elsewhere nothing is listed. block:
-- default moe.block_size's rule.
function M.align(ids, experts, o)
  local map = o and o.map
  local everywhere, top = map and map:numel() or experts, ids:size(2)
  local block = o and o.block or require("nibble.moe").block_size { tokens = math.max(ids:size(1), 1), top = top, experts = experts,
    experts_global = map and everywhere or nil }
  local sorted, owners, total = require("nibble.cuda.moe").align(ids, block, everywhere, map, true)
  return { sorted = sorted, block_experts = owners, total = total, block = block, top = top }
end

local function with(blocks, changes) return setmetatable(changes, { __index = blocks }) end

-- The product of stack o[w] with t, quantized before where o says so: into a row a pair, maybe.
local function product(o, t, w, blocks)
  if not o.quantize then return assert(M.gemm(t, o[w], blocks)) end
  local q, scales = o.quantize(t, w, o)
  return assert(M.gemm(q, o[w], q:size(1) ~= t:size(1) and with(blocks, { top = 1 }) or blocks, scales and { row_scale = scales }))
end

--- experts.forward(x, o) -> y [T, H]: moe.forward where x lies on a device
-- x f16 or bf16; ids, weights and expert_map there too; w13 and w2: the stacks that gemm.marlin_experts takes, on the device.
-- y in x's dtype, or with dtype = "f32" in that. Ids outside contribute nothing. What w13 gives, the activation and w2's
-- weighted output are x's dtype; the sum is float32, in the order of experts. w3: up apart from w13, which then is the gate alone.
-- quantize(t, "w13", "w2" or "w3", o) -> t there: of all experts' rows at once, or, where experts differ, a row for each pair; or its
-- codes and their scales f32 [rows,1], for stacks with 8-bit activations.
function M.forward(x, o)
  local dtype, moe = check(x, o), require "nibble.moe"
  local tokens, hidden = x:size(1), x:size(2)
  local out = o.inplace and x or assert(tensors.new(x:where(), dtype, { tokens, hidden }))
  if tokens == 0 then return out end
  local blocks, on_input, from = M.align(o.ids, o.experts, { map = o.expert_map }), o.router_weight_on_input, x
  local first = with(blocks, { weights = on_input == "after_w13" and o.weights or nil })
  if on_input and on_input ~= "after_w13" then
    from, first.top = made(x, C.nb_device_moe_weigh, x, o.weights), 1
  end
  local h, up = product(o, from, "w13", first), o.w3 and product(o, from, "w3", first) or nil
  local a = moe.activation(o.activation or "silu", h, { up = up, limit = o.limit, alpha = o.alpha, beta = o.beta, dtype = x:type() })
  local y = product(o, a, "w2", with(blocks, { top = 1, weights = not on_input and o.weights or nil }))
  must(dispatch.there(C.nb_device_moe_sum, out, y, o.ids, nil, o.expert_map, o.experts))
  return out
end

--- experts.batched(x, o) -> y [E, Tmax, H]: moe.batched where x lies on a device, and counts i32 [E]
function M.batched(x, o)
  local experts, most, hidden = x:size(1), x:size(2), x:size(3)
  local ids = made(x, C.nb_device_moe_batch_ids, o.counts, most)
  local inner = setmetatable({ ids = ids, weights = false, inplace = false, router_weight_on_input = false, strict = false },
    { __index = function(_, key) if key ~= "expert_map" then return o[key] end end })
  return M.forward(x:reshape(experts * most, hidden), inner):reshape(experts, most, hidden)
end

return M
