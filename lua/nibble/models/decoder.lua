-- decoder: the forward pass that the known architectures share: a stack of
-- pre-norm blocks, attention then MLP or experts, on batches of sequences.
--
-- All sequences of a batch go through one weight after the other. Memory: the
-- batch's activations, m × (2 hidden + 2 q + 2 kv) floats, CHUNK × 2 intermediate
-- floats inside an MLP, and one dequantized weight (weights.lua keeps more of them
-- while they fit into cache_bytes).
--
-- Where its tensors lie makes no difference to what is written here (models.place): compute works where they do. On a
-- device the residual stream is f32; other activations are f16, whatever 16 bits the checkpoint has, since that is nearer to
-- float32: the losses of spec/models' tokens are off by 0.0006 (root of the mean square), in bf16 by 0.005 to 0.016, and
-- their mean over 126 tokens by 0.00003 against 0.001. A model whose values f16 can't hold begins again in bf16; one of f32
-- weights stays f32. There an MLP takes all rows at once, and nothing in a pass waits for the device but experts that
-- no method takes.
local act = require "nibble.act"
local compute = require "nibble.compute"
local nffi = require "nibble.ffi"
local moe = require "nibble.moe"
local places = require "nibble.models.place"
local rope = require "nibble.models.rope"
local tensor = require "nibble.tensor"
local weights = require "nibble.models.weights"
local fail = weights.fail

local M = {}

local CHUNK = 1024 -- rows of an MLP at a time
local MAX_EXPERTS = 4096
local CACHE_BYTES = 512 * 2 ^ 20

-- ---- the config ------------------------------------------------------------------

-- get(key) -> config.json's value, else the architecture's default, else nil; null counts as absent.
local function getter(config, defaults)
  local null = require("nibble.json").null
  return function(key)
    local v = config[key]
    if v == nil or v == null then return defaults[key] end
    return v
  end
end

local function whole(get, key, fallback)
  local v = get(key)
  if v == nil then v = fallback end
  if type(v) == "number" and v >= 1 and v <= 2 ^ 31 - 1 and v == math.floor(v) then return v end
  error({ msg = ("config.json: %s must be a whole number above 0, found %s"):format(key, tostring(v)), code = "eformat" }, 0)
end

local function read_config(arch, ck)
  local get = getter(ck.config, arch.defaults)
  local c = {
    get = get, config = ck.config, layers = whole(get, "num_hidden_layers"), hidden = whole(get, "hidden_size"),
    heads = whole(get, "num_attention_heads"), vocab = whole(get, "vocab_size"),
    intermediate = whole(get, "intermediate_size"), max_position = whole(get, "max_position_embeddings"),
    eps = get "rms_norm_eps",
  }
  c.kv_heads = whole(get, "num_key_value_heads", c.heads)
  -- Without head_dim the norm over a head's values tells, where there is one.
  local q_norm = ck:info "model.layers.0.self_attn.q_norm.weight"
  c.head_dim = whole(get, "head_dim", q_norm and q_norm.shape[1] or math.max(1, math.floor(c.hidden / c.heads)))
  local function refuse(msg, code) error({ msg = "config.json: " .. msg, code = code or "eformat" }, 0) end
  if c.heads % c.kv_heads ~= 0 then
    refuse(("num_key_value_heads %d does not divide num_attention_heads %d"):format(c.kv_heads, c.heads))
  end
  if c.head_dim % 2 ~= 0 then refuse(("head_dim %d is odd; rotary embedding needs pairs"):format(c.head_dim)) end
  if type(c.eps) ~= "number" or c.eps < 0 or c.eps ~= c.eps then refuse("rms_norm_eps must be a number, found " .. tostring(c.eps)) end
  local gate = get "hidden_act"
  if gate ~= "silu" and gate ~= "swish" then
    refuse(("hidden_act %s is not supported; expected silu"):format(tostring(gate)), "eunsupported")
  end
  local part = get "partial_rotary_factor"
  if part ~= nil and part ~= 1 then
    refuse(("partial_rotary_factor %s is not supported; expected 1"):format(tostring(part)), "eunsupported")
  end
  local msg, code
  c.rope, msg, code = rope.rule(get, arch.defaults.rope_theta)
  if not c.rope then error({ msg = msg, code = code }, 0) end
  if arch.check then arch.check(c, whole, refuse) end
  if c.experts and (c.experts.count > MAX_EXPERTS or c.experts.top > c.experts.count) then
    refuse(("the top %d of %d experts; expected at most all of them, and at most %d"):format(c.experts.top,
      c.experts.count, MAX_EXPERTS))
  end
  return c
end

--- config(arch, ck) -> the model's numbers | nil, msg, code: config.json against what the architecture needs.
-- layers, hidden, heads, kv_heads, head_dim, vocab, intermediate, experts; get(key): config.json's value or the default.
function M.config(arch, ck)
  local ok, c = pcall(read_config, arch, ck)
  if ok then return c end
  if type(c) ~= "table" then error(c, 0) end
  return nil, c.msg, c.code
end

-- ---- one forward pass ----------------------------------------------------------------

local Forward = {}
Forward.__index = Forward

-- A tensor [rows, columns] to write into, of the activations' dtype, from storage that is kept between passes.
function Forward:buffer(name, rows, columns, dtype) return self.place:buffer(name, rows, columns, dtype) end

-- Whether module `name` is run by a system's method, which does with its input what it does.
function Forward:by_method(name)
  local runner = self.model.runner
  return runner ~= nil and runner:takes(name)
end

-- y = module `name` of x by its method; y nil: a new tensor.
function Forward:through(y, x, name)
  local out, msg, code = self.model.runner:linear(name, x, y)
  if not out then fail(("%s: %s"):format(name, msg), code) end
  return y and y ~= out and compute.copy(y, out) or out
end

--- f:inputs(x, names [, span]) -> array of tensors, one a name: x as each of the modules sees it, quantized and
-- dequantized where its scheme has activations. Modules that do the same share one; what they get lives until the next
-- call. span: so many rows are a tensor, where a dynamic scale is a tensor's (a sequence; default: all rows).
-- model.observe(x, names) -> true | nil, msg, code, where it is set, sees x first.
function Forward:inputs(x, names, span)
  local out, seen = {}, {}
  if self.model.observe then
    local ok, msg, code = self.model.observe(x, names)
    if not ok then fail(("%s: %s"):format(names[1], msg), code) end
  end
  for i, name in ipairs(names) do
    local input = not self:by_method(name) and self.weights:input(name) or nil
    if not input then out[i] = x
    elseif seen[input.key] then out[i] = seen[input.key]
    else
      local msg, code
      out[i], msg, code = act.quantize_dequantize(x, input.activations, { scale = input.scale, global = input.global,
        zero_point = input.zero_point, span = span, out = self:buffer("input" .. i, x:size(1), x:size(2)) })
      if not out[i] then fail(("%s: %s"):format(name, msg), code) end
      seen[input.key] = out[i]
    end
  end
  return out
end

-- Whether one of the modules quantizes a whole tensor at a time: then chunks are whole sequences.
function Forward:by_tensor(names)
  for _, name in ipairs(names) do
    local input = self.weights:input(name)
    if input and input.activations.strategy == "tensor" and input.activations.dynamic then return true end
  end
  return false
end

-- y = x W^T + bias of module `name`, which is [n, k]; x is the module's own (f:inputs). y: a tensor, or the name of a buffer
-- (of dtype, else the activations'), which is made only when the weight has shown that the config's sizes are true.
function Forward:linear(y, x, name, n, k, bias_required, dtype)
  if self:by_method(name) then
    local runner = self.model.runner
    if runner:outputs(name) ~= n then
      fail(("%s has %d outputs, expected %d by config.json"):format(name, runner:outputs(name), n))
    end
    if type(y) == "string" then y = self.place.device and self:buffer(y, x:size(1), n, dtype) or nil end
    return self:through(y, x, name)
  end
  local w = self.weights:matrix(name, n, k)
  if type(y) == "string" then y = self:buffer(y, x:size(1), n, dtype) end
  compute.gemm(y, x, w, self.weights:bias(name, n, bias_required))
  self.weights:done(name, w)
  return y
end

--- f:norm(name): h = RMSNorm(x) with the weight of module `name`.
function Forward:norm(name)
  compute.rmsnorm(self.h, self.x, self.weights:vector(name .. ".weight", self.c.hidden), self.c.eps)
end

--- f:residual(): x += h, or what the experts summed.
function Forward:residual()
  compute.add(self.x, self.sum or self.h)
  self.sum = nil
end

--- f:attention(prefix, {qkv_bias=, o_bias=, qk_norm=, sliding=}): h = attention(h)
-- Modules q_proj, k_proj, v_proj, o_proj (and q_norm, k_norm, over each head) under
-- prefix. Biases are used where the checkpoint has them; qkv_bias, o_bias: it must.
function Forward:attention(prefix, o)
  local c = self.c
  local q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
  local name = { prefix .. ".q_proj", prefix .. ".k_proj", prefix .. ".v_proj", prefix .. ".o_proj" }
  local x = self:inputs(self.h, { name[1], name[2], name[3] }, self.length)
  local q = self:linear("q", x[1], name[1], q_size, c.hidden, o.qkv_bias)
  local k = self:linear("k", x[2], name[2], kv_size, c.hidden, o.qkv_bias)
  local v = self:linear("v", x[3], name[3], kv_size, c.hidden, o.qkv_bias)
  if o.qk_norm then
    compute.rmsnorm(q, q, self.weights:vector(prefix .. ".q_norm.weight", c.head_dim), c.eps)
    compute.rmsnorm(k, k, self.weights:vector(prefix .. ".k_norm.weight", c.head_dim), c.eps)
  end
  local cosines, sines = self.model:angles(self.length)
  compute.rope(q, cosines, sines, c.head_dim, self.length)
  compute.rope(k, cosines, sines, c.head_dim, self.length)
  local out = compute.attention(self:buffer("attention", self.m, q_size), q, k, v,
    { heads = c.heads, kv_heads = c.kv_heads, length = self.length, sliding = o.sliding })
  self:linear(self.h, self:inputs(out, { name[4] }, self.length)[1], name[4], c.hidden, q_size, o.o_bias)
end

-- The weights and biases of a gated MLP's modules `names` under prefix: gate, up, down; for several chunks of rows. On
-- a device, where there is one chunk, each comes when its product does.
function Forward:gated(prefix, names, intermediate, biased)
  local W, hidden, mlp = self.weights, self.c.hidden, { name = {}, bias = {}, n = {}, k = {}, biased = biased }
  for i = 1, 3 do
    mlp.name[i] = prefix .. "." .. names[i]
    mlp.n[i], mlp.k[i] = i == 3 and hidden or intermediate, i == 3 and intermediate or hidden
  end
  if self.place.device then return mlp end
  for i = 1, 3 do mlp[i] = not self:by_method(mlp.name[i]) and W:matrix(mlp.name[i], mlp.n[i], mlp.k[i]) end
  for i = 1, 3 do mlp.bias[i] = W:bias(mlp.name[i], mlp.n[i], biased) end
  return mlp
end

function Forward:release(mlp)
  for i = 1, 3 do
    if mlp[i] then self.weights:done(mlp.name[i], mlp[i]) end
  end
end

-- y = matrix i of the MLP times x.
function Forward:product(y, x, mlp, i)
  if not mlp[i] then return self:linear(y, x, mlp.name[i], mlp.n[i], mlp.k[i], mlp.biased) end
  return compute.gemm(y, x, mlp[i], mlp.bias[i])
end

-- gate x and up x, in buffers. span: as f:inputs takes it.
function Forward:gate_up(mlp, x, span)
  local rows, intermediate = x:size(1), mlp.n[1]
  local input = self:inputs(x, { mlp.name[1], mlp.name[2] }, span)
  local g = self:product(self:buffer("gate", rows, intermediate), input[1], mlp, 1)
  return g, self:product(self:buffer("up", rows, intermediate), input[2], mlp, 2)
end

-- y = down a.
function Forward:down(mlp, y, a, span)
  return self:product(y, self:inputs(a, { mlp.name[3] }, span)[1], mlp, 3)
end

--- f:mlp(prefix, {"gate_proj", "up_proj", "down_proj"}, intermediate, biased): h = down(silu(gate h)·up h)
-- In chunks of rows; on a device all at once.
function Forward:mlp(prefix, names, intermediate, biased)
  local mlp, rows, span = self:gated(prefix, names, intermediate, biased), self.h:size(1), self.length
  local chunk = self:by_tensor(mlp.name) and math.max(1, math.floor(CHUNK / span)) * span or CHUNK
  if self.place.device then chunk = rows end
  for first = 1, rows, chunk do
    local part = self.h:rows(first, math.min(first + chunk - 1, rows))
    local g, u = self:gate_up(mlp, part, span)
    self:down(mlp, part, compute.swiglu(g, u), span)
  end
  self:release(mlp)
end

--- f:experts(prefix, {names=, count=, top=, normalize=, intermediate=}): h = sum of the routed experts of h
-- The router is prefix.gate, the experts prefix.experts.E.NAME; the loop is moe.forward's.
function Forward:experts(prefix, o)
  local hidden = self.c.hidden
  local router = self:inputs(self.h, { prefix .. ".gate" }, self.length)[1]
  local logits = self:linear("router", router, prefix .. ".gate", o.count, hidden, nil, "f32")
  local runner, mlp = self.model.runner, nil
  local by_method = runner and runner:takes_experts(prefix, o, hidden)
  if self.place.device and not by_method then return self:experts_in_turn(prefix, o, logits) end
  local shares, ids = moe.route(logits, o)
  if by_method then
    local y, msg, code = runner:experts(prefix, o, self.h, logits, shares, ids)
    if not y then fail(("%s: %s"):format(prefix, msg), code) end
    self.sum = y
    return
  end
  moe.forward(self.h, {
    ids = ids, weights = shares, experts = o.count, inplace = true, chunk = CHUNK,
    buffer = function(name, rows, columns) return self:buffer(name, rows, columns) end,
    begin = function(e) mlp = self:gated(("%s.experts.%d"):format(prefix, e), o.names, o.intermediate) end,
    w13 = function(_, x) return self:gate_up(mlp, x) end,
    w2 = function(_, a) return self:down(mlp, self:buffer("down", a:size(1), hidden), a) end,
    done = function() self:release(mlp) end,
  })
end

-- Which rows each expert gets, here, and for the device, where each expert's begin on a multiple of 4 (16 bytes).
local function placed(rows, weights, offsets, experts)
  local first, at = {}, 0
  for e = 1, experts do
    first[e] = at
    at = at + math.ceil((offsets:get(e + 1) - offsets:get(e)) / 4) * 4
  end
  local r, w = tensor.new("i32", { math.max(at, 1) }), tensor.new("f32", { math.max(at, 1) })
  for e = 1, experts do
    local from = offsets:get(e)
    for i = 0, offsets:get(e + 1) - from - 1 do
      r:ptr()[first[e] + i], w:ptr()[first[e] + i] = rows:ptr()[from + i], weights:ptr()[from + i]
    end
  end
  return first, r, w
end

-- On a device, experts that no method takes: one after the other, as moe.forward runs them in the computer's memory. The
-- router's choice is made there, which waits for its logits.
function Forward:experts_in_turn(prefix, o, logits)
  local place, hidden, here = self.place, self.c.hidden, logits:to "cpu"
  if not here then fail(prefix .. ": the router's logits did not come from the device", "eio") end
  local shares, ids = moe.route(here, o)
  local rows, weights, offsets = moe.group(ids, shares, o.count)
  local first, r, w = placed(rows, weights, offsets, o.count)
  r, w = place:put(r), place:put(w)
  self.sum = compute.zero(self:buffer("sum", self.m, hidden, "f32"))
  for e = 0, o.count - 1 do
    local count = offsets:get(e + 2) - offsets:get(e + 1)
    if count > 0 then
      nffi.stop_check()
      local mlp = self:gated(("%s.experts.%d"):format(prefix, e), o.names, o.intermediate)
      local mine, shares_of = r:rows(first[e + 1] + 1, first[e + 1] + count), w:rows(first[e + 1] + 1, first[e + 1] + count)
      local g, u = self:gate_up(mlp, compute.gather(self:buffer("rows", count, hidden), self.h, mine))
      local y = self:down(mlp, self:buffer("down", count, hidden), compute.swiglu(g, u))
      compute.scatter_add(self.sum, y, mine, shares_of)
    end
  end
end

-- ---- the model -------------------------------------------------------------------------

local Model = {}
Model.__index = Model

--- new(arch, ck [, {cache_bytes=, activations=, place=, runner=}]) -> model | nil, msg, code
-- activations: "stored" (default): layers quantize their input as their schemes say; "none": they don't.
-- place: where tensors lie (models.place; default: the computer's memory). runner: runs the layers that it takes by the
-- systems' methods (methods.runner), in the same place.
function M.new(arch, ck, options)
  local c, msg, code = M.config(arch, ck)
  if not c then return nil, ("%s: %s"):format(ck.path, msg), code end
  local cache, place = options and options.cache_bytes or CACHE_BYTES, options and options.place or places.new()
  return setmetatable({ arch = arch, ck = ck, c = c, vocab = c.vocab, max_position = c.max_position, place = place,
    weights = weights.new(ck, cache, options and options.activations, place), runner = options and options.runner }, Model)
end

-- What a batch's memory depends on: bytes of the activations of a token.
function Model:bytes_per_token()
  local c, place = self.c, self.place
  local q, kv, sparse = c.heads * c.head_dim, c.kv_heads * c.head_dim, self.arch.router[1]
  if not place.device then
    -- x, h and an input as its module sees it; q and the attention's output; k and v; experts' rows and sums.
    return 4 * (3 * c.hidden + 2 * q + 2 * kv + (sparse and 2 * c.hidden or 0))
  end
  -- x and experts' sums are float32; the rows of the experts that a token chooses come and go beside their MLP's.
  local e = c.experts
  local wide = math.max(2 * c.intermediate, e and e.top * (2 * c.hidden + 3 * e.intermediate) or 0)
  return 4 * (sparse and 2 or 1) * c.hidden + place:element_bytes() * (2 * c.hidden + 3 * q + 2 * kv + 2 * wide)
end

--- model:batch_rows() -> how many rows a batch on its device should have at most.
function Model:batch_rows() return self.place:rows(self:bytes_per_token()) end

-- The tables of rotary embedding for sequences of that length.
function Model:angles(length)
  if self.angles_length ~= length then
    local cosines, sines = rope.tables(self.c.rope, self.c.head_dim, length)
    self.cosines, self.sines = self.place:put(cosines), self.place:put(sines)
    self.angles_length = length
  end
  return self.cosines, self.sines
end

-- Runs body; a weights.fail inside becomes nil, msg, code.
local function guarded(body, ...)
  local ok, result = pcall(body, ...)
  if ok then return result end
  if type(result) == "table" and result.msg then return nil, result.msg, result.code end
  if type(result) == "string" and result:find "out of memory" then
    return nil, result:match "cuda:%d+ is out of memory.*" or result:match "out of memory.*", "enomem"
  end
  error(result, 0)
end

local function check_finite(x, where)
  local bad = compute.nonfinite(x)
  if bad > 0 then
    fail(("%s: %d of its %d output values are infinite or NaN"):format(where, bad, x:numel()))
  end
end

-- The module whose weight makes the logits: lm_head, or the embedding where they share one.
local function output_name(model)
  local tied = model.c.get "tie_word_embeddings"
  if tied == nil then tied = not model.weights:has(model.arch.lm_head) end
  return tied and model.arch.embedding or model.arch.lm_head
end

-- careful: the layer after which values are no numbers is named. On a device each look waits for it, so there the first
-- is at the end: what is infinite or NaN in the residual stream stays so.
local function pass(model, ids, length, careful)
  local c, arch, place = model.c, model.arch, model.place
  local f = setmetatable({ model = model, c = c, weights = model.weights, place = place, m = ids:numel(), length = length },
    Forward)
  local embedding = f.weights:matrix(arch.embedding, c.vocab, c.hidden)
  f.x, f.h = f:buffer("x", f.m, c.hidden, "f32"), f:buffer("h", f.m, c.hidden)
  compute.gather(f.x, embedding, place:put(ids:reshape { f.m }))
  f.weights:done(arch.embedding, embedding)
  if careful then check_finite(f.x, arch.embedding) end
  for i = 0, c.layers - 1 do
    nffi.stop_check()
    arch.layer(f, i)
    if careful then check_finite(f.x, "model.layers." .. i) end
  end
  if not careful and compute.nonfinite(f.x) > 0 then return nil end
  f:norm(arch.final_norm)
  local head = output_name(model)
  return head == arch.embedding and f.h or f:inputs(f.h, { head }, length)[1]
end

local function forward(model, ids, length)
  local place = model.place
  if not place.device then return pass(model, ids, length, true) end
  local x = pass(model, ids, length, false)
  if not x and place.dtype == "f16" then
    place:forget "bf16"
    model.weights:forget()
    x = pass(model, ids, length, false)
  end
  return x or pass(model, ids, length, true)
end

--- model:hidden(ids, length) -> [m, hidden] | nil, msg, code
-- The last hidden states, after the final norm (and as lm_head sees them), of m/length independent sequences: f32, on a
-- device of its activations' dtype. ids: i32 [m], in the computer's memory. The tensor is overwritten by the next pass.
function Model:hidden(ids, length) return self.place:run(guarded, forward, self, ids, length) end

local function output_layer(model)
  if model.place.device then return model.weights:matrix(output_name(model), model.c.vocab, model.c.hidden) end
  model.output = model.output or model.weights:matrix(output_name(model), model.c.vocab, model.c.hidden)
  return model.output
end

-- f's results of the output layer and …; it is given back.
local function with_head(model, f, ...)
  local function back(...)
    if model.place.device then model.place:done(output_name(model)) end
    return ...
  end
  return back(f(output_layer(model), ...))
end

-- Tensors that lie elsewhere, in the computer's memory.
local function home(...)
  local out = { ... }
  for i, t in ipairs(out) do
    local msg, code
    out[i], msg, code = t:to "cpu"
    if not out[i] then fail(msg, code) end
  end
  return out
end

--- model:check_head() -> true | nil, msg, code: whether the output layer is there.
function Model:check_head() return self.place:run(guarded, with_head, self, function() return true end) end

--- model:score(x, targets) -> {nll f64 [m], top i32 [m]} | nil, msg, code: compute.score of model:hidden's x.
-- targets and the results lie in the computer's memory.
function Model:score(x, targets)
  return self.place:run(guarded, with_head, self, function(head)
    return home(compute.score(x, head, self.place:put(targets)))
  end)
end

--- model:compare(x, other, x_other, targets) -> {kl, nll, nll_other, top, top_other} | nil, msg, code: compute.compare of
-- this model's x with another's, which lies in the same place.
function Model:compare(x, other, x_other, targets)
  self.place:after(other.place)
  return self.place:run(guarded, with_head, self, function(head)
    return with_head(other, function(head_other)
      return home(compute.compare(x, head, x_other, head_other, self.place:put(targets)))
    end)
  end)
end

--- model:logits(ids) -> f32 [m, vocab], where the model lies | nil, msg, code
-- ids: i32 [m] (one sequence) or [sequences, length].
function Model:logits(ids)
  local m = ids:numel()
  local x, msg, code = self:hidden(ids, ids.ndim == 2 and ids:size(2) or m)
  if not x then return nil, msg, code end
  return self.place:run(guarded, with_head, self, function(head)
    return compute.gemm(self.place:new("f32", { m, self.vocab }), x, head)
  end)
end

return M
