-- moe: what every mixture-of-experts layer shares, whatever its weights: the router, the
-- experts' activation functions, the loop over experts (also by batches), and the sizes
-- and alignment that kernels ask for (SYSTEMS 7, FWD).
local compute = require "nibble.compute"
local nffi = require "nibble.ffi"
local suggest = require "nibble.suggest"
local tensor = require "nibble.tensor"
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
  if not is_tensor(logits) or logits.ndim ~= 2 or not widths[logits:type()] then
    fail(2, "moe.route: the logits must be an f32, f16 or bf16 tensor [tokens, experts], found %s",
      is_tensor(logits) and text(logits) or type(logits))
  end
  local top, scoring = o.top, scorings[o.scoring or "softmax"]
  if type(top) ~= "number" then fail(2, "moe.route: top must be how many experts a token gets, found %s", tostring(top)) end
  if not scoring then
    fail(2, "moe.route: unknown scoring %q; expected softmax or sigmoid%s", tostring(o.scoring),
      suggest.hint(o.scoring, { "softmax", "sigmoid" }))
  end
  if logits:type() ~= "f32" then logits = compute.widen(logits) end
  local bias = o.bias
  if bias and bias:type() ~= "f32" then bias = compute.widen(bias) end
  local tokens = logits:size(1)
  local ids, weights = tensor.new("i32", { tokens, top }), tensor.new("f32", { tokens, top })
  local router = ffi.new("nb_moe_router", { scoring = scoring, normalize = o.normalize and 1 or 0, groups = o.groups or 0,
    top_groups = o.top_groups or 0, scale = o.scale or 1 })
  must(C.nb_moe_route(ids, weights, logits, bias, router))
  return weights, ids
end

-- ---- activations -----------------------------------------------------------------

-- limited: takes a limit of the caller; constants are the function's own.
local activations = {
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

--- moe.gated(name) -> true where the activation takes gate and up, false where only one value. Unknown: an error.
function M.gated(name)
  local a = activations[name]
  if not a then
    fail(2, "unknown activation %q; known: %s%s", tostring(name), table.concat(names, ", "), suggest.hint(name, names))
  end
  return a.gated == true
end

-- The C description of activation `name` with the caller's o.limit, o.alpha, o.beta; rounding: a dtype.
local function act_of(name, o, rounding, level)
  local a = activations[name]
  if not a then
    fail(level + 1, "unknown activation %q; known: %s%s", tostring(name), table.concat(names, ", "), suggest.hint(name, names))
  end
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
-- dtype: f16 or bf16 rounds the input and the output, as a kernel that stores them does. (FWD-06, FWD-07)
function M.activation(name, h, o)
  o = o or {}
  local act, gated = act_of(name, o, o.dtype or "f32", 2)
  if h.ndim ~= 2 or gated and not o.up and h:size(2) % 2 ~= 0 then
    fail(2, "activation %s: expected an input [rows, %s], found %s", name, gated and "2I" or "I", text(h))
  end
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
  if o.gated ~= nil and activations[name] and (activations[name].gated == true) ~= o.gated then
    refuse("moe.forward: activation %s is %sgated, and the experts are %s", name, activations[name].gated and "" or "not ",
      o.gated and "gated" or "not")
  end
  return dtype, name
end

-- A new f32 [rows, columns], or the caller's storage.
local function storage(o, name, rows, columns)
  if o.buffer then return o.buffer(name, rows, columns) end
  return tensor.new("f32", { rows, columns })
end

-- The first rows of a matrix that is kept between experts.
local function room(kept, o, name, rows, columns)
  if o.buffer then return o.buffer(name, rows, columns) end
  local t = kept[name]
  if not t or t:numel() < rows * columns then
    t = tensor.new("f32", { rows * columns })
    kept[name] = t
  end
  return t:as("f32", { rows, columns })
end

local function check_product(what, e, t, rows, columns)
  if not is_tensor(t) or t:type() ~= "f32" or t.ndim ~= 2 or t:size(1) ~= rows or columns and t:size(2) ~= columns then
    fail(4, "moe.forward: %s of expert %d gave %s, expected f32 [%d, %s]", what, e, is_tensor(t) and text(t) or type(t), rows,
      columns or "I or 2I")
  end
end

-- Runs rows x of local expert e through its two products: f32 [rows, hidden], before any weight.
local function expert_mlp(o, kept, e, x, act, gated, after_w13, dtype)
  local rows, hidden = x:size(1), x:size(2)
  if o.quantize then x = o.quantize(x, "w13", e) end
  local h, up = o.w13(e, x)
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
  local a = halved and room(kept, o, "activated", rows, h:size(2) / 2) or h
  must(C.nb_moe_activation(a, h, up, act))
  if o.quantize then a = o.quantize(a, "w2", e) end
  local y = o.w2(e, a)
  check_product("w2", e, y, rows, hidden)
  return y
end

--- moe.forward(x, o) -> y [T, H]: y[t] = Σ_j weights[t,j] · w2(act(w13(x[t]))) over t's experts ids[t,j]
-- x [T, H] f32, f16 or bf16. o:
--   ids i32 [T,k], weights f32 [T,k]   global expert ids (0-based); experts: how many are here
--   expert_map i32 [E_global]          global id to one of them, -1: elsewhere (contributes nothing). Without a map ids
--                                      are local. Ids outside are skipped, with strict = true an error
--   w13(e, rows) -> h                  e: 0-based, here; rows f32 [r,H]; h f32 [r, 2I] or [r, I] (ungated), bias inside;
--                                      or gate and up f32 [r, I] apart, which are then overwritten
--   w2(e, a) -> f32 [r, H]             a f32 [r, I]; bias inside, so that the weight multiplies it too
--   begin(e), done(e)                  called around an expert that has rows
--   quantize(t, "w13" or "w2", e) -> t before each product: activations of 8 bits (moe.quantizer)
--   activation="silu", gated=nil, limit=, alpha=, beta=     as moe.activation
--   router_weight_on_input=false       true: rows are multiplied before w13 and not at the end, k = 1 only (or any_top);
--                                      "after_w13": w13's output is instead, as the Marlin kernel does
--   dtype=x's                          of y; f16 and bf16 also round what kernels store: w13's output, the activation's
--                                      and the weighted output of w2. The sum over experts is float32
--   inplace=false                      y is written over x and returned
--   chunk=1024, buffer(name, rows, columns)     rows of one expert at a time; storage to use instead of new tensors
-- Experts run in order, so a row's sum does not depend on threads. (FWD-01 to FWD-04, FWD-07, FWD-10, FWD-14)
function M.forward(x, o)
  local dtype, name = check_forward(x, o)
  local act, gated = act_of(name, o, dtype, 2)
  local tokens, hidden = x:size(1), x:size(2)
  local rows, weights, offsets = M.group(o.ids, o.weights, o.experts, { map = o.expert_map, skip = not o.strict })
  local fresh = dtype == "f32" and not o.inplace
  local sum = fresh and tensor.new("f32", { tokens, hidden }) or compute.zero(storage(o, "sum", tokens, hidden))
  local kept, on_input, chunk = {}, o.router_weight_on_input, o.chunk or CHUNK
  for e = 0, o.experts - 1 do
    local first, last = offsets:get(e + 1) + 1, offsets:get(e + 2)
    if last >= first and o.begin then o.begin(e) end
    for at = first, last, chunk do
      nffi.stop_check()
      local to = math.min(at + chunk - 1, last)
      local part, w = rows:rows(at, to), weights:rows(at, to)
      local in_rows = compute.gather(room(kept, o, "rows", to - at + 1, hidden), x, part)
      if on_input and on_input ~= "after_w13" then compute.scale_rows(in_rows, w, dtype) end
      local y = expert_mlp(o, kept, e, in_rows, act, gated, on_input == "after_w13" and w or nil, dtype)
      compute.scatter_add(sum, y, part, not on_input and w or nil, dtype)
    end
    if last >= first and o.done then o.done(e) end
  end
  if fresh then return sum end
  local out = o.inplace and x or tensor.new(dtype, { tokens, hidden })
  must(C.nb_cast(out, sum, 0))
  return out
end

--- moe.batched(x, o) -> y [E, Tmax, H]: each expert's own rows, x [E, Tmax, H]
-- o.counts i32 [E]: how many rows of an expert are valid; the others are not read and come out 0. Weights are all 1 and
-- the sum over a token's experts is the caller's (moe.combine). The rest of o as in moe.forward. (FWD-09)
function M.batched(x, o)
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

-- ---- tokens and experts ----------------------------------------------------------

--- moe.group(ids, weights, experts [, {map=, skip=false}]) -> rows i32, row_weights f32, offsets i32 [experts+1]
-- Pairs by expert: those of expert e (0-based) are offsets[e] .. offsets[e+1]-1 (0-based), rows ascending. map: global id
-- to local, -1 = elsewhere; ids outside are left out with skip, otherwise an error. (FWD-03)
function M.group(ids, weights, experts, o)
  local n = ids:numel()
  local rows, row_weights = tensor.new("i32", { n }), tensor.new("f32", { n })
  local offsets = tensor.new("i32", { experts + 1 })
  must(C.nb_moe_group(rows, row_weights, offsets, ids, weights, o and o.map, o and o.skip and 1 or 0))
  return rows, row_weights, offsets
end

--- moe.dispatch(x, ids, experts [, {map=, rows=}]) -> f32 [experts, rows, H], counts i32 [experts], places i32 [T, k]
-- The rows of each expert, for moe.batched; rows: room per expert (default: what the fullest needs). places: flat row of
-- each pair in the batch, -1: none here.
function M.dispatch(x, ids, experts, o)
  local ones = tensor.new("f32", ids:size()):fill(1)
  local rows, _, offsets = M.group(ids, ones, experts, { map = o and o.map, skip = true })
  local most, counts = o and o.rows or 0, tensor.new("i32", { experts })
  for e = 1, experts do
    counts:set(e, offsets:get(e + 1) - offsets:get(e))
    if not (o and o.rows) then most = math.max(most, counts:get(e)) end
    if counts:get(e) > most then fail(2, "moe.dispatch: expert %d gets %d rows, and there is room for %d", e - 1, counts:get(e), most) end
  end
  local batch = tensor.new("f32", { experts, most, x:size(2) })
  for e = 1, experts do
    local first, last = offsets:get(e) + 1, offsets:get(e + 1)
    if last >= first then
      local slot = batch:rows(e, e):reshape({ most, x:size(2) }):rows(1, last - first + 1)
      compute.gather(slot, x, rows:rows(first, last))
    end
  end
  local places, filled, map = tensor.new("i32", ids:size()), {}, o and o.map
  for i = 1, ids:numel() do
    local e = ids:get(i)
    if map then e = e >= 0 and e < map:numel() and map:get(e + 1) or -1 end
    if e < 0 or e >= experts then
      places:set(i, -1)
    else
      filled[e] = (filled[e] or 0) + 1
      places:set(i, e * most + filled[e] - 1)
    end
  end
  return batch, counts, places
end

--- moe.combine(y, places, weights) -> f32 [T, H]: each token's rows of a batch, weighted and summed.
function M.combine(y, places, weights)
  local hidden, tokens, top = y:size(3), places:size(1), places:size(2)
  local flat = y:reshape { y:size(1) * y:size(2), hidden }
  local out = tensor.new("f32", { tokens, hidden })
  local from, to, w = tensor.new("i32", { tokens * top }), tensor.new("i32", { tokens * top }), tensor.new("f32", { tokens * top })
  local n = 0
  for t = 0, tokens - 1 do
    -- In order of expert, as moe.forward adds them.
    local mine = {}
    for j = 1, top do
      local i = t * top + j
      if places:get(i) >= 0 then mine[#mine + 1] = i end
    end
    table.sort(mine, function(a, b)
      local pa, pb = places:get(a), places:get(b)
      if pa ~= pb then return pa < pb end
      return a < b
    end)
    for _, i in ipairs(mine) do
      n = n + 1
      from:set(n, places:get(i))
      to:set(n, t)
      w:set(n, weights:get(i))
    end
  end
  if n == 0 then return out end
  local rows = compute.gather(tensor.new("f32", { n, hidden }), flat, from:rows(1, n))
  return compute.scatter_add(out, rows, to:rows(1, n), w:rows(1, n))
end

--- moe.align(ids, block, experts [, {map=, ignore=false}]) -> sorted i32, block_experts i32, total
-- Flat positions of ids by expert, each expert's run padded to a multiple of block with the value ids:numel();
-- block_experts: whose each block is, -1 past the end. Only the first `total` places are in use. experts: global count.
-- map i32 [experts]: blocks of experts that are elsewhere are marked -1; ignore: their pairs are left out, and the rest
-- is sorted by local id. (FWD-08)
function M.align(ids, block, experts, o)
  local n = ids:numel()
  local capacity = tonumber(C.nb_moe_align_capacity(n, experts, block))
  local sorted, owners = tensor.new("i32", { math.max(capacity, 0) }), tensor.new("i32", { math.max(math.ceil(capacity / block), 0) })
  local total = ffi.new "int64_t[1]"
  must(C.nb_moe_align(sorted, owners, total, ids, block, experts, o and o.map, o and o.ignore and 1 or 0))
  return sorted, owners, tonumber(total[0])
end

-- ---- sizes -----------------------------------------------------------------------

local blocks = { 8, 16, 32, 48, 64 }

--- moe.block_size{tokens=, top=, experts=, experts_global=nil, a8=false} or {batch=Tmax, a8=false} -> 8, 16, 32, 48 or 64
-- The least block that is at most 90 % full by the mean expert's rows (batch: by the fullest's); at least 16 with
-- 8-bit activations. experts_global: tokens are shared with experts elsewhere. (FWD-05)
function M.block_size(o)
  local rows = o.batch
  if not rows then
    local tokens = o.tokens
    if o.experts_global and o.experts_global > 0 then tokens = math.ceil(tokens * o.experts / o.experts_global) end
    rows = tokens * o.top / o.experts
  end
  local size = blocks[#blocks]
  for i = #blocks, 1, -1 do
    if rows / blocks[i] < 0.9 then size = blocks[i] end
  end
  return o.a8 and math.max(size, 16) or size
end

--- moe.workspace{tokens=, top=, hidden=, intermediate=} or {experts=, batch=Tmax, dispatchers=1, hidden=, intermediate=}
-- -> first, second, output: the shapes of a modular kernel's two workspaces and its output. (FWD-11)
function M.workspace(o)
  local H, I = o.hidden, o.intermediate
  if o.batch then
    local E, rows = o.experts, o.batch * (o.dispatchers or 1)
    return { E * rows, math.max(H, 2 * I) }, { E * rows, I }, { E, rows, H }
  end
  local pairs_ = o.tokens * o.top
  return { pairs_, math.max(I, H) }, { pairs_ * math.max(2 * I, H) }, { o.tokens, H }
end

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

--- moe.expect(method, kind): an error at the caller's caller unless the method is of that kind. (FWD-12)
function M.expect(method, kind)
  if M.kind(method) == kind then return end
  if kind == "modular" then
    fail(3, "%s is monolithic, it routes by itself: call apply_monolithic with the router's logits", method.name)
  end
  fail(3, "%s is modular: call apply with the router's weights and ids", method.name)
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
