-- decoder: the forward pass that the known architectures share: a stack of
-- pre-norm blocks, attention then MLP or experts, on batches of sequences.
--
-- All sequences of a batch go through one weight after the other. Memory: the
-- batch's activations, m × (2 hidden + 2 q + 2 kv) floats, 1024 × 2 intermediate
-- floats inside an MLP, and one dequantized weight (weights.lua keeps more of them
-- while they fit into cache_bytes).
--
-- Where its tensors lie makes no difference to what is written here (nibble.place): compute works where they do. On a
-- device the residual stream is f32; other activations are f16, whatever 16 bits the checkpoint has, since that is nearer to
-- float32: the losses of spec/models' tokens are off by 0.0006 (root of the mean square), in bf16 by 0.005 to 0.016, and
-- their mean over 126 tokens by 0.00003 against 0.001 (where inputs are quantized by far more: eval.run says how, and dtype
-- f32 why). A model whose values f16 can't hold begins again in bf16; one of f32 weights stays f32. There an MLP takes all rows at
-- once, and nothing in a pass waits for the device but experts that no method takes: those of 16-bit floats, for
-- which there is no product of all at once, cuBLASLt's one after the other.
local compute = require "nibble.compute"
local forward = require "nibble.models.forward"
local nffi = require "nibble.ffi"
local places = require "nibble.place"
local rope = require "nibble.models.rope"
local weights = require "nibble.models.weights"
local fail = weights.fail

local M = {}

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

-- ---- the model -------------------------------------------------------------------------

local Model = {}
Model.__index = Model

--- new(arch, ck [, {cache_bytes=, activations=, place=, runner=}]) -> model | nil, msg, code
-- activations: "stored" (default): layers quantize their input as their schemes say; "none": they don't.
-- place: where tensors lie (nibble.place; default: the computer's memory). runner: runs the layers that it takes by the
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

-- Runs body; a weights.fail inside becomes nil, msg, code, and so does what a device can't do any more.
local function guarded(body, ...)
  local ok, result = pcall(body, ...)
  if ok then return result end
  local msg, code = places.problem(result)
  if msg then return nil, msg, code end
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
  local c, arch = model.c, model.arch
  local f = forward.new(model, ids:numel(), length)
  local embedding = f.weights:matrix(arch.embedding, c.vocab, c.hidden)
  f.x, f.h = f:buffer("x", f.m, c.hidden, "f32"), f:buffer("h", f.m, c.hidden)
  compute.gather(f.x, embedding, f.place:put(ids:reshape { f.m }))
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

local function last_hidden(model, ids, length)
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
function Model:hidden(ids, length) return self.place:run(guarded, last_hidden, self, ids, length) end

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

--- model:head() -> f32|bf16|f16 [vocab, hidden] | nil, msg, code: the output layer of a model in the computer's memory.
function Model:head() return guarded(output_layer, self) end

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
