-- methods.runner: a checkpoint's layers run through the systems' methods: each layer is made,
-- loaded from the checkpoint's tensors, processed and applied as its method does it.
--
-- Layers are kept processed while all of them fit into cache_bytes; otherwise they are made again at each pass, one at
-- a time. On a device nibble.place keeps or streams them, and only methods that run there are taken.
local formats = require "nibble.formats"
local layer = require "nibble.methods.layer"
local methods = require "nibble.methods"
local nffi = require "nibble.ffi"
local places = require "nibble.place"
local tensor = require "nibble.tensor"

local M = {}
local Runner = {}
Runner.__index = Runner

--- new(ck, {through = "auto", device =, place =, activations = true, cache_bytes =, options = {}}) -> runner | nil, msg, code
-- through: "auto" or a method's name (methods.names). device: "cuda", …: layers that its methods take run and stay there;
-- place: the one of the model whose layers they are. activations = false: weights only. options: given to every method's new().
function M.new(ck, o)
  if o.through ~= "auto" then
    local ok, msg, code = methods.get(o.through)
    if not ok then return nil, msg, code end
  end
  local place, msg, code = o.place, nil, nil
  if not place then place, msg, code = places.new { device = o.device, dtype = "f16", cache_bytes = o.cache_bytes } end
  if not place then return nil, msg, code end
  local options = setmetatable({ on = place.device }, { __index = o.options })
  return setmetatable({ ck = ck, through = o.through, place = place, activations = o.activations ~= false,
    room = o.cache_bytes or 2 ^ 30, options = options, plans = {}, ready = {}, counts = {} }, Runner)
end

-- ---- choosing a method -------------------------------------------------------------------

-- The first method that takes rec and whose create takes the layer: {name=, method=} or {reasons=}.
local function plan(self, kind, rec, describe)
  local reasons = {}
  local exact = self.place.device and self.place.dtype == "f32" and self.activations and rec.scheme.activations
  for _, name in ipairs(methods.candidates(kind, self.through, self.place.device)) do
    local config, why = methods.config(name, rec, { activations = self.activations })
    local method
    if config then method, why = methods.make(name, config, self.options) end
    if method and exact and not method.keeps_f32 then
      method, why = nil, "it rounds to 16 bits, and f32 inputs are to be quantized as they are"
    end
    if method then
      local ok, msg = method:create(describe())
      if ok then return { name = name, method = method } end
      why = msg
    end
    reasons[#reasons + 1] = name .. ": " .. tostring(why)
  end
  return { reasons = reasons }
end

local function count(self, kind, found)
  local name = kind .. " " .. (found.name or "reference")
  self.counts[name] = (self.counts[name] or 0) + 1
end

-- A layer's dtype is that of the stored scales, so that none is rounded; on a device that of the model's activations
-- where it has 16 bits.
local function dtype_of(self, dtype)
  if not self.place.device then return dtype end
  return self.place.dtype ~= "f32" and self.place.dtype or dtype == "bf16" and dtype or "f16"
end

local function linear_layer(self, name, rec)
  return layer.new { name = name, kind = "linear", dtype = dtype_of(self, rec.dtype), k = rec.k, n = rec.n,
    bias = self.ck:info(name .. ".bias") ~= nil }
end

--- runner:takes(name) -> whether a method runs the linear module `name`.
function Runner:takes(name)
  local found = self.plans[name]
  if found == nil then
    local rec = formats.record(self.ck, name)
    found = {}
    if rec and rec.scheme then
      found = plan(self, "linear", rec, function() return linear_layer(self, name, rec) end)
      count(self, "linear", found)
    end
    self.plans[name] = found
  end
  return found.method ~= nil
end

-- ---- linear layers --------------------------------------------------------------------------

local function bytes_of(L)
  local total = 0
  for _, name in ipairs(L:names()) do total = total + L:get(name):bytes() end
  return total
end

-- The processed layer `name` that make(self, name, …) makes, or that is kept | nil, msg, code
local function processed(self, name, make, ...)
  local L = self.ready[name]
  if L then return L end
  if not self.place.device then
    local msg, code
    L, msg, code = make(self, name, ...)
    if not L then return nil, msg, code end
    local bytes = bytes_of(L)
    if bytes <= self.room then self.room, self.ready[name] = self.room - bytes, L end
    return L
  end
  local rest, n = { ... }, select("#", ...)
  return self.place:get(name, function()
    local made, msg, code = make(self, name, unpack(rest, 1, n))
    if not made then error({ msg = msg, code = code }, 0) end
    return made, bytes_of(made), function()
      for _, parameter in ipairs(made:names()) do made:get(parameter):free() end
    end
  end)
end

local function linear(self, name)
  local rec, method = assert(formats.record(self.ck, name)), self.plans[name].method
  local L = linear_layer(self, name, rec)
  local ok, msg, code = method:create(L)
  if not ok then return nil, msg, code end
  for _, parameter in ipairs(L:names()) do
    local info = rec.tensors[parameter]
    if info then
      local t
      t, msg, code = self.ck:tensor(info.name)
      if not t then return nil, msg, code end
      L:load(parameter, t)
      t:drop()
    end
  end
  if method.read then ok, msg, code = method:read(L, self.ck) end
  if not ok then return nil, msg, code end
  ok, msg, code = method:process(L)
  if not ok then return nil, msg, code end
  return L
end

-- f's result for x as layer L takes it: on a device in L's dtype, but where its method keeps f32, and what
-- comes out in x's own again.
local function in_dtype(self, name, method, L, x, f)
  if not tensor.on_device(x) then return f(x) end
  local given = x:type()
  local y, msg, code
  if given ~= L.dtype and not method.keeps_f32 then x, msg, code = x:cast(L.dtype) end
  if x then y, msg, code = f(x) end
  self.place:done(name)
  if not x or not y then return nil, msg, code end
  if y:type() == given then return y end
  return y:cast(given)
end

--- runner:outputs(name) -> the outputs of the linear module `name`, which a method runs.
function Runner:outputs(name) return assert(formats.record(self.ck, name)).n end

--- runner:linear(name, x [, out]) -> y [m, n] of x's dtype, where x lies | nil, msg, code
-- Module `name` of x [m, k], its bias added. out: storage that a method may return instead of a new tensor.
function Runner:linear(name, x, out)
  local L, msg, code = processed(self, name, linear)
  if not L then return nil, msg, code end
  local method = self.plans[name].method
  local room = out and out:type() == L.dtype and out or nil
  return in_dtype(self, name, method, L, x, function(input) return method:apply(L, input, nil, room) end)
end

-- ---- experts -----------------------------------------------------------------------------------

local shards = { "w1", "w3", "w2" } -- in the order of an architecture's names: gate, up, down

local function module_name(prefix, e, o, i) return ("%s.experts.%d.%s"):format(prefix, e, o.names[i]) end

-- The record that all projections of all experts have in common | nil, reason.
local function common_record(self, prefix, o)
  local first
  for e = 0, o.count - 1 do
    for i = 1, 3 do
      local rec, msg = formats.record(self.ck, module_name(prefix, e, o, i))
      if not rec then return nil, msg end
      if not rec.scheme then return nil, rec.name .. " is not quantized" end
      first = first or rec
      if rec.format ~= first.format or not require("nibble.scheme").same(rec.scheme, first.scheme) then
        return nil, ("%s and %s are quantized differently"):format(first.name, rec.name)
      end
    end
  end
  return first
end

local function moe_layer(self, prefix, rec, o, hidden)
  return layer.new { name = prefix .. ".experts", kind = "moe", dtype = dtype_of(self, rec.dtype_of_layer or rec.dtype), experts = o.count,
    hidden = hidden, intermediate = o.intermediate, top = o.top, activation = "silu", disable_inplace = true,
    router = { routing = o.normalize and "renormalize" or "default" } }
end

-- Codes as signed bytes, for methods that load them unpacked from a checkpoint that packs them.
local function signed_codes(ck, name)
  local q, msg, code = formats.quantized(ck, name)
  if not q then return nil, msg, code end
  local out, half = tensor.new("i8", q.codes:size()), 2 ^ (q.scheme.bits - 1)
  local from, to = q.codes:ptr(), out:ptr()
  for i = 0, q.codes:numel() - 1 do to[i] = from[i] - half end
  return { weight = out, weight_scale = q.scales }
end

local function expert_tensors(self, L, name, rec)
  if rec.tensors.weight_packed and L:get "w13_weight" and L:get("w13_weight"):type() == "i8" then
    return signed_codes(self.ck, name)
  end
  return formats.source(self.ck, rec)
end

local function load_expert(L, method, e, shard, tensors)
  if method.load then
    method:load(L, e, shard, tensors)
    return
  end
  local w = shard == "w2" and "w2_" or "w13_"
  for suffix, t in pairs(tensors) do
    if L:get(w .. suffix) then L:load_expert(w .. suffix, t, shard, e) end
  end
end
nffi.interpreted(load_expert)

-- All experts' tensors into L, by the method's own way where it has one.
local function read_experts(self, method, L, prefix, o)
  if method.read then
    local number = { w1 = 1, w3 = 2, w2 = 3 }
    return method:read(L, self.ck, function(e, shard) return module_name(prefix, e, o, number[shard]) end)
  end
  for e = 0, o.count - 1 do
    for i, shard in ipairs(shards) do
      local name = module_name(prefix, e, o, i)
      local tensors, msg, code = expert_tensors(self, L, name, assert(formats.record(self.ck, name)))
      if not tensors then return nil, msg, code end
      load_expert(L, method, e, shard, tensors)
    end
  end
  return true
end

local function experts(self, prefix, o, hidden)
  local found = self.plans[prefix]
  local L = moe_layer(self, prefix, found.rec, o, hidden)
  local ok, msg, code = found.method:create(L)
  if ok then ok, msg, code = read_experts(self, found.method, L, prefix, o) end
  if ok then ok, msg, code = found.method:process(L) end
  if not ok then return nil, msg, code end
  return L
end

--- runner:takes_experts(prefix, {names=, count=, top=, normalize=, intermediate=}, hidden) -> whether a method runs the
-- experts prefix.experts.E.NAME.
function Runner:takes_experts(prefix, o, hidden)
  local found = self.plans[prefix]
  if found == nil then
    local rec, why = common_record(self, prefix, o)
    found = rec and plan(self, "moe", rec, function() return moe_layer(self, prefix, rec, o, hidden) end) or { reasons = { why } }
    found.rec = rec
    count(self, "moe", found)
    self.plans[prefix] = found
  end
  return found.method ~= nil
end

--- runner:experts(prefix, o, x, logits, weights, ids) -> y [T, hidden] of x's dtype, where x lies | nil, msg, code
-- x [T, hidden]; the router's logits [T, experts], and what moe.route made of them.
function Runner:experts(prefix, o, x, logits, weights, ids)
  local L, msg, code = processed(self, prefix, experts, o, x:size(2))
  if not L then return nil, msg, code end
  local method = self.plans[prefix].method
  return in_dtype(self, prefix, method, L, x, function(input)
    if method.monolithic then return method:apply_monolithic(L, input, logits) end
    return method:apply(L, input, weights, ids)
  end)
end

-- ---- what ran --------------------------------------------------------------------------------------

--- runner:summary() -> sorted array of "awq_marlin 28 linear", "reference 3 moe", …
function Runner:summary()
  local out = {}
  for name, n in pairs(self.counts) do
    local kind, method = name:match "^(%S+) (.*)$"
    out[#out + 1] = ("%s %d %s"):format(method, n, kind)
  end
  table.sort(out)
  return out
end
nffi.interpreted(Runner.summary)

--- runner:reasons() -> {name -> array of reasons} of the layers that no method took.
function Runner:reasons()
  local out = {}
  for name, found in pairs(self.plans) do
    if found.reasons and #found.reasons > 0 then out[name] = found.reasons end
  end
  return out
end
nffi.interpreted(Runner.reasons)

return M
