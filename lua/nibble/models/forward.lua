-- forward: one forward pass through the blocks that the known architectures share: norms, attention, a gated MLP or
-- experts. An architecture's layer(f, i) calls these (models/llama.lua). What is said of memory and of devices is in
-- decoder.lua.
local act = require "nibble.act"
local compute = require "nibble.compute"
local nffi = require "nibble.ffi"
local moe = require "nibble.moe"
local tensor = require "nibble.tensor"
local fail = require("nibble.models.weights").fail

local CHUNK = 1024 -- rows of an MLP at a time

local Forward = {}
Forward.__index = Forward

--- new(model, m, length) -> f: a pass of m rows, sequences of so many.
function Forward.new(model, m, length)
  return setmetatable({ model = model, c = model.c, weights = model.weights, place = model.place, m = m, length = length }, Forward)
end

-- A tensor [rows, columns] to write into, of the activations' dtype, from storage that is kept between passes.
function Forward:buffer(name, rows, columns, dtype) return self.place:buffer(name, rows, columns, dtype) end

-- Whether module `name` is run by a system's method, which does with its input what it does.
function Forward:by_method(name)
  local runner = self.model.runner
  return runner ~= nil and runner:takes(name)
end

-- Whether b is a view of a's memory.
local function same_memory(a, b) return tensor.on_device(a) and tensor.on_device(b) and a.t.data == b.t.data end

-- y = module `name` of x by its method; y nil: a new tensor.
function Forward:through(y, x, name)
  local out, msg, code = self.model.runner:linear(name, x, y)
  if not out then fail(("%s: %s"):format(name, msg), code) end
  return y and not same_memory(y, out) and compute.copy(y, out) or out
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

return Forward
