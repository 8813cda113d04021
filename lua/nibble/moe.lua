-- moe: what every mixture-of-experts layer shares, whatever its weights: the router, the
-- experts' activation functions, the loop over experts (also by batches), and the sizes
-- and alignment that kernels ask for (SYSTEMS 7, FWD).
local compute = require "nibble.compute"
local dispatch = require "nibble.dispatch"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local tokens_of = require "nibble.moe_tokens"
local words = require "nibble.text"
local ffi = require "ffi"
local C, must = nffi.C, nffi.must

local M = {}

local CHUNK = 1024 -- rows of one expert at a time
local widths = { f32 = true, f16 = true, bf16 = true }

local function text(t) return ("%s [%s]"):format(t:type(), table.concat(t:size(), "x")) end

local function fail(level, ...) error((...):format(select(2, ...)), level + 1) end

local function is_tensor(t) return ffi.istype(tensor.type, t) end

-- ---- the router ------------------------------------------------------------------

local scorings = { softmax = C.NB_ROUTE_SOFTMAX, sigmoid = C.NB_ROUTE_SIGMOID }

--- moe.route(logits, {top=, normalize=false, scoring="softmax", groups=0, top_groups=0, bias=nil, scale=1}) -> weights, ids
-- logits [T, E], f32, f16 or bf16 (scored in float32); weights f32 [T, top], ids i32 [T, top], 0-based, best first,
-- a tie to the lower expert. normalize: a token's weights sum to 1. groups: experts are chosen from the top_groups best
-- of them; bias f32 [E]: a correction of the scores for the choice alone (DeepSeek-V3); scale: of the weights, last.
function M.route(logits, o)
  if not tensor.is_any(logits) or logits.ndim ~= 2 or not widths[logits:type()] then
    fail(2, "moe.route: the logits must be an f32, f16 or bf16 tensor [tokens, experts], found %s",
      tensor.is_any(logits) and text(logits) or type(logits))
  end
  local top, scoring = o.top, scorings[o.scoring or "softmax"]
  if type(top) ~= "number" then fail(2, "moe.route: top must be how many experts a token gets, found %s", tostring(top)) end
  if not scoring then
    fail(2, "moe.route: unknown scoring %q; expected softmax or sigmoid%s", tostring(o.scoring),
      words.hint(o.scoring, { "softmax", "sigmoid" }))
  end
  local bias, tokens = o.bias, logits:size(1)
  local router = ffi.new("nb_moe_router", { scoring = scoring, normalize = o.normalize and 1 or 0, groups = o.groups or 0,
    top_groups = o.top_groups or 0, scale = o.scale or 1 })
  if dispatch.on_device(logits, bias) then return require("nibble.cuda.moe").route(logits, bias, router, top) end
  if logits:type() ~= "f32" then logits = compute.widen(logits) end
  if bias and bias:type() ~= "f32" then bias = compute.widen(bias) end
  local ids, weights = tensor.new("i32", { tokens, top }), tensor.new("f32", { tokens, top })
  must(C.nb_moe_route(ids, weights, logits, bias, router))
  return weights, ids
end

-- ---- activations -----------------------------------------------------------------

-- limited: takes a limit of the caller; constants are the function's own.
local functions = {
  silu = { kind = C.NB_MOE_SILU, gated = true, limited = true },
  gelu = { kind = C.NB_MOE_GELU, gated = true },
  gelu_tanh = { kind = C.NB_MOE_GELU_TANH, gated = true },
  swigluoai = { kind = C.NB_MOE_SWIGLUOAI, gated = true, limited = true, limit = 7, alpha = 1.702, beta = 1 },
  swigluoai_uninterleave = { kind = C.NB_MOE_SWIGLUOAI_UNINTERLEAVE, gated = true, limited = true, alpha = 1, beta = 0,
    needs_limit = true },
  swiglustep = { kind = C.NB_MOE_SWIGLUSTEP, gated = true, limited = true, limit = 7 },
  silu_no_mul = { kind = C.NB_MOE_SILU_NO_MUL }, gelu_no_mul = { kind = C.NB_MOE_GELU_NO_MUL },
  gelu_tanh_no_mul = { kind = C.NB_MOE_GELU_TANH_NO_MUL }, relu2_no_mul = { kind = C.NB_MOE_RELU2_NO_MUL },
}
local names = { "silu", "gelu", "gelu_tanh", "swigluoai", "swigluoai_uninterleave", "swiglustep", "silu_no_mul",
  "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul" }

--- moe.activations() -> the names that moe.activation knows, gated ones first. (FWD-06)
function M.activations() return { unpack(names) } end

local function function_of(name, level)
  local a = functions[name]
  if a then return a end
  fail(level + 1, "unknown activation %q; known: %s%s", tostring(name), table.concat(names, ", "), words.hint(name, names))
end

--- moe.gated(name) -> true where the activation takes gate and up, false where only one value. Unknown: an error.
function M.gated(name) return function_of(name, 2).gated == true end

-- The C description of activation `name` with the caller's o.limit, o.alpha, o.beta; rounding: a dtype.
local function act_of(name, o, rounding, level)
  local a = function_of(name, level + 1)
  if o.limit and not a.limited then fail(level + 1, "activation %s takes no limit, found %s", name, tostring(o.limit)) end
  if (o.alpha or o.beta) and not a.alpha then fail(level + 1, "activation %s takes no alpha and no beta", name) end
  if a.needs_limit and not o.limit then fail(level + 1, "activation %s needs a limit", name) end
  if o.limit and not (o.limit > 0) then fail(level + 1, "activation %s: the limit must be above 0, found %s", name, tostring(o.limit)) end
  return ffi.new("nb_moe_act", { kind = a.kind, dtype = tensor.dtype_id(rounding), limit = o.limit or a.limit or math.huge,
    alpha = o.alpha or a.alpha or 1, beta = o.beta or a.beta or 0 }), a.gated
end

--- moe.activation(name, h [, {limit=, alpha=, beta=, up=, out=, dtype="f32"}]) -> f32 [rows, I]
-- h f32 [rows, 2I], gate first and up second (swigluoai: in pairs); [rows, I] for the `_no_mul` kinds, or with up
-- [rows, I] apart, and then out may be h. limit: of silu (min(g, L), clamp(u, ±L)); of swigluoai (7), swiglustep (7);
-- swigluoai_uninterleave needs one; alpha and beta: swigluoai's 1.702 and 1, swigluoai_uninterleave's 1 and 0.
-- dtype: f16 or bf16 rounds the input and the output, as a kernel that stores them does. On a device h and with it the
-- result may be f16 or bf16 themselves. (FWD-06, FWD-07)
function M.activation(name, h, o)
  o = o or {}
  local there = dispatch.on_device(h, o.up, o.out)
  local act, gated = act_of(name, o, o.dtype or there and h:type() or "f32", 2)
  if h.ndim ~= 2 or gated and not o.up and h:size(2) % 2 ~= 0 then
    fail(2, "activation %s: expected an input [rows, %s], found %s", name, gated and "2I" or "I", text(h))
  end
  if there then return require("nibble.cuda.moe").activation(h, o.up, o.out, act) end
  local out = o.out or tensor.new("f32", { h:size(1), gated and not o.up and h:size(2) / 2 or h:size(2) })
  must(C.nb_moe_activation(out, h, o.up, act))
  return out
end

-- ---- the loop over experts -------------------------------------------------------

local function check_forward(x, o)
  local function refuse(...) fail(3, ...) end
  if not is_tensor(x) or x.ndim ~= 2 or not widths[x:type()] then
    refuse("moe.forward: x must be an f32, f16 or bf16 tensor [tokens, hidden], found %s", is_tensor(x) and text(x) or type(x))
  end
  local ids, weights = o.ids, o.weights
  if not is_tensor(ids) or ids.ndim ~= 2 or ids:type() ~= "i32" or ids:size(1) ~= x:size(1) then
    refuse("moe.forward: ids must be i32 [%d tokens, k], found %s", x:size(1), is_tensor(ids) and text(ids) or type(ids))
  end
  if not is_tensor(weights) or weights:type() ~= "f32" or weights.ndim ~= 2 or weights:size(1) ~= ids:size(1)
    or weights:size(2) ~= ids:size(2) then
    refuse("moe.forward: weights must be f32 [%d, %d] as ids, found %s", ids:size(1), ids:size(2),
      is_tensor(weights) and text(weights) or type(weights))
  end
  if type(o.experts) ~= "number" or o.experts < 1 then
    refuse("moe.forward: experts must be the number of experts here, found %s", tostring(o.experts))
  end
  local dtype = o.dtype or x:type()
  if not widths[dtype] then refuse("moe.forward: dtype must be f32, f16 or bf16, found %s", tostring(dtype)) end
  if o.router_weight_on_input and ids:size(2) ~= 1 and not o.any_top then
    refuse("moe.forward: the router weight goes on the input only where each token has 1 expert, found %d", ids:size(2))
  end
  if o.inplace and dtype ~= x:type() then
    refuse("moe.forward: an output in %s cannot be written over an x in %s", dtype, x:type())
  end
  local name = o.activation or "silu"
  if o.gated ~= nil and functions[name] and (functions[name].gated == true) ~= o.gated then
    refuse("moe.forward: activation %s is %sgated, and the experts are %s", name, functions[name].gated and "" or "not ",
      o.gated and "gated" or "not")
  end
  return dtype, name
end

-- Storage of the last pass, until the collector wants it: the next one finds its pages in place.
local spare = setmetatable({}, { __mode = "v" })

-- room(name, rows, columns) -> f32 [rows, columns] out of `kept`; what a name held before is lost.
local function storage(kept)
  return function(name, rows, columns)
    local t = kept[name]
    if not t or t:numel() < rows * columns then
      t = tensor.new("f32", { rows * columns })
      kept[name] = t
    end
    return t:as("f32", { rows, columns })
  end
end

local function product_of(w) return type(w) == "table" and require("nibble.gemm").marlin_experts(w) or w end

local function check_product(what, e, t, rows, columns)
  if not is_tensor(t) or t:type() ~= "f32" or t.ndim ~= 2 or t:size(1) ~= rows or columns and t:size(2) ~= columns then
    fail(4, "moe.forward: %s of expert %d gave %s, expected f32 [%d, %s]", what, e, is_tensor(t) and text(t) or type(t), rows,
      columns or "I or 2I")
  end
end

-- Runs rows x of local expert e through its two products: f32 [rows, hidden], before any weight.
local function expert_mlp(o, products, room, most, e, x, act, gated, after_w13, dtype)
  local rows, hidden = x:size(1), x:size(2)
  if o.quantize then x = o.quantize(x, "w13", e) end
  local h, up = products.w13(e, x, room)
  check_product("w13", e, h, rows)
  if up then check_product("w13's second part", e, up, rows, h:size(2)) end
  if after_w13 then
    compute.scale_rows(h, after_w13, dtype)
    if up then compute.scale_rows(up, after_w13, dtype) end
  end
  local halved = gated and not up
  if halved and h:size(2) % 2 ~= 0 then
    fail(3, "moe.forward: w13 of expert %d gave %s; a gated activation needs an even width", e, text(h))
  end
  local a = halved and room("activated", most, h:size(2) / 2):rows(1, rows) or h
  must(C.nb_moe_activation(a, h, up, act))
  if o.quantize then a = o.quantize(a, "w2", e) end
  local y = products.w2(e, a, room)
  check_product("w2", e, y, rows, hidden)
  return y
end

--- moe.forward(x, o) -> y [T, H]: y[t] = Σ_j weights[t,j] · w2(act(w13(x[t]))) over t's experts ids[t,j]
-- x [T, H] f32, f16 or bf16. o:
--   ids i32 [T,k], weights f32 [T,k]   global expert ids (0-based); experts: how many are here
--   expert_map i32 [E_global]          global id to one of them, -1: elsewhere (contributes nothing). Without a map ids
--                                      are local. Ids outside are skipped, with strict = true an error
--   w13(e, rows, room) -> h            e: 0-based, here; rows f32 [r,H]; h f32 [r, 2I] or [r, I] (ungated), bias inside;
--                                      or gate and up f32 [r, I] apart, which are then overwritten
--   w2(e, a, room) -> f32 [r, H]       a f32 [r, I]; bias inside, so that the weight multiplies it too
--                                      or both are the stacks of Marlin's experts, as gemm.marlin_experts takes them
--                                      room(name, rows, columns): an f32 matrix to write into, kept from expert to expert
--   begin(e), done(e)                  called around an expert that has rows
--   quantize(t, "w13" or "w2", e) -> t before each product: activations of 8 bits (moe.quantizer)
--   activation="silu", gated=nil, limit=, alpha=, beta=     as moe.activation
--   router_weight_on_input=false       true: rows are multiplied before w13 and not at the end, k = 1 only (or any_top);
--                                      "after_w13": w13's output is instead, as the Marlin kernel does
--   dtype=x's                          of y; f16 and bf16 also round what kernels store: w13's output, the activation's
--                                      and the weighted output of w2. The sum over experts is float32
--   inplace=false                      y is written over x and returned
--   chunk=1024, buffer(name, rows, columns)     rows of one expert at a time; storage to use instead of new tensors
-- x on a device (cuda.experts): f16 or bf16, ids, weights, expert_map and the stacks there too; one launch a stage, and nothing
-- waits. Then ids outside are always skipped, and quantize, buffer and chunk don't go with it.
-- Experts run in order, so a row's sum does not depend on threads. (FWD-01 to FWD-04, FWD-07, FWD-10, FWD-14)
function M.forward(x, o)
  if tensor.on_device(x) then return require("nibble.cuda.experts").forward(x, o) end
  local dtype, name = check_forward(x, o)
  local products = { w13 = product_of(o.w13), w2 = product_of(o.w2) }
  local act, gated = act_of(name, o, dtype, 2)
  local tokens, hidden = x:size(1), x:size(2)
  local rows, weights, offsets = M.group(o.ids, o.weights, o.experts, { map = o.expert_map, skip = not o.strict })
  local kept = spare.kept or {}
  spare.kept = nil
  local fresh, room = dtype == "f32" and not o.inplace, o.buffer or storage(kept)
  local sum = fresh and tensor.new("f32", { tokens, hidden }) or compute.zero(room("sum", tokens, hidden))
  local on_input, chunk, most = o.router_weight_on_input, o.chunk or CHUNK, 0
  for e = 1, o.experts do most = math.max(most, offsets:get(e + 1) - offsets:get(e)) end
  -- Storage for the fullest expert from the start: growing from expert to expert would touch new pages each time.
  most = math.min(most, chunk)
  for e = 0, o.experts - 1 do
    local first, last = offsets:get(e + 1) + 1, offsets:get(e + 2)
    if last >= first and o.begin then o.begin(e) end
    for at = first, last, chunk do
      nffi.stop_check()
      local to = math.min(at + chunk - 1, last)
      local part, w = rows:rows(at, to), weights:rows(at, to)
      local in_rows = compute.gather(room("rows", most, hidden):rows(1, to - at + 1), x, part)
      if on_input and on_input ~= "after_w13" then compute.scale_rows(in_rows, w, dtype) end
      local y = expert_mlp(o, products, room, most, e, in_rows, act, gated, on_input == "after_w13" and w or nil, dtype)
      compute.scatter_add(sum, y, part, not on_input and w or nil, dtype)
    end
    if last >= first and o.done then o.done(e) end
  end
  spare.kept = kept
  if fresh then return sum end
  local out = o.inplace and x or tensor.new(dtype, { tokens, hidden })
  must(C.nb_cast(out, sum, 0))
  return out
end

--- moe.quantizer(activations [, {w13 = {…}, w2 = {…}}]) -> quantize, for moe.forward
-- Rows become what 8-bit (or narrower) codes of them stand for, before each of the two products. activations: a scheme's.
-- Per product: scale =, global = as act.quantize_dequantize takes them; input_global = a number, or f32 [1] or [E]: the
-- factor that kernels with integer scales put on the token's scale. (FWD-10, MRL-45)
function M.quantizer(activations, products)
  local act = require "nibble.act"
  return function(t, which, e)
    local p = products and products[which] or {}
    local out, msg = act.quantize_dequantize(t, activations, { scale = p.scale, global = p.global, out = t })
    if not out then error(msg, 0) end
    local factor = p.input_global
    if is_tensor(factor) then factor = factor:get(factor:numel() == 1 and 1 or e + 1) end
    if factor then compute.scale_rows(out, tensor.new("f32", { out:size(1) }):fill(factor)) end
    return out
  end
end

--- moe.batched(x, o) -> y [E, Tmax, H]: each expert's own rows, x [E, Tmax, H]
-- o.counts i32 [E]: how many rows of an expert are valid; the others are not read and come out 0. Weights are all 1 and
-- the sum over a token's experts is the caller's (moe.combine). The rest of o as in moe.forward. (FWD-09)
function M.batched(x, o)
  if tensor.on_device(x) then return require("nibble.cuda.experts").batched(x, o) end
  if not is_tensor(x) or x.ndim ~= 3 or not widths[x:type()] then
    fail(2, "moe.batched: x must be an f32, f16 or bf16 tensor [experts, rows, hidden], found %s", is_tensor(x) and text(x) or type(x))
  end
  local experts, most, hidden = x:size(1), x:size(2), x:size(3)
  if experts ~= o.experts then
    fail(2, "moe.batched: x has %d experts in its first dimension, and the layer has %s", experts, tostring(o.experts))
  end
  local counts = o.counts
  if not is_tensor(counts) or counts:type() ~= "i32" or counts:numel() ~= experts then
    fail(2, "moe.batched: counts must be i32 [%d], found %s", experts, is_tensor(counts) and text(counts) or type(counts))
  end
  -- A batch is a forward pass whose tokens each have one expert, their own, with weight 1.
  local total = 0
  for e = 1, experts do
    local n = counts:get(e)
    if n < 0 or n > most then fail(2, "moe.batched: expert %d has %d valid rows, expected 0 to %d", e - 1, n, most) end
    total = total + n
  end
  local ids, weights = tensor.new("i32", { experts * most, 1 }), tensor.new("f32", { experts * most, 1 }):fill(1)
  local p = ids:ptr()
  for e = 0, experts - 1 do
    local n = counts:get(e + 1)
    for r = 0, most - 1 do p[e * most + r] = r < n and e or -1 end
  end
  local inner = setmetatable({ ids = ids, weights = weights, inplace = false, router_weight_on_input = false, strict = false },
    { __index = function(_, key) if key ~= "expert_map" then return o[key] end end })
  return M.forward(x:reshape { experts * most, hidden }, inner):reshape { experts, most, hidden }
end

--- moe.group, dispatch, combine, align, block_size, workspace: see nibble.moe_tokens.
for _, name in ipairs { "group", "dispatch", "combine", "align", "block_size", "workspace" } do M[name] = tokens_of[name] end

-- ---- which way a method is called ------------------------------------------------

--- moe.format(x) -> "standard" for [T, H], "batched" for [E, Tmax, H]; anything else is an error. (FWD-12)
function M.format(x)
  if x.ndim == 2 then return "standard" end
  if x.ndim == 3 then return "batched" end
  fail(2, "activations are [tokens, hidden] (standard) or [experts, rows, hidden] (batched), found %s", text(x))
end

--- moe.kind(method) -> "monolithic" (the router is inside: apply_monolithic(L, x, logits)) or "modular" (apply(L, x,
-- weights, ids)). (FWD-12)
function M.kind(method) return method.monolithic and "monolithic" or "modular" end

--- moe.expect(method, kind [, L]): an error at the caller's caller unless the method is of that kind. (FWD-12)
function M.expect(method, kind, L)
  if M.kind(method) == kind then return end
  local who = (L and ("layer %s: "):format(L.name) or "") .. method.name
    .. (method.backend and " with the backend " .. method.backend or "")
  if kind == "modular" then fail(3, "%s routes by itself; call apply_monolithic with the router's logits", who) end
  fail(3, "%s takes routed tokens; call apply with the router's weights and ids", who)
end

--- moe.check_marlin(x, w13, w2, weights, bits): what Marlin's experts ask of their operands. (FWD-04)
-- x f16 or bf16 [T, H]; w13 i32 [E, H/16, s*I*bits/2], w2 i32 [E, I/16, H*bits/2]; weights f32.
function M.check_marlin(x, w13, w2, weights, bits)
  local hidden = x:size(x.ndim)
  if x:type() ~= "f16" and x:type() ~= "bf16" then fail(2, "Marlin's experts take f16 or bf16 activations, found %s", x:type()) end
  if w13:size(2) * 16 ~= hidden then
    fail(2, "w13 has %d rows of 16, which is %d inputs, and the activations are %d wide", w13:size(2), w13:size(2) * 16, hidden)
  end
  if w2:size(3) / (bits / 2) ~= hidden then
    fail(2, "w2 has %d words a row, which is %g outputs of %d bits, and the activations are %d wide", w2:size(3),
      w2:size(3) / (bits / 2), bits, hidden)
  end
  if weights and weights:type() ~= "f32" then fail(2, "the router's weights must be f32, found %s", weights:type()) end
end

return M
