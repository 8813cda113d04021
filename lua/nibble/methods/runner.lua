-- methods.runner: a checkpoint's layers run through the systems' methods: each layer is made,
-- loaded from the checkpoint's tensors, processed and applied as its method does it.
--
-- Layers are kept processed while all of them fit into cache_bytes (of each memory); otherwise they are made
-- again at each pass, one at a time.
local formats = require "nibble.formats"
local layer = require "nibble.methods.layer"
local methods = require "nibble.methods"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"

local M = {}
local Runner = {}
Runner.__index = Runner

-- How much of a device's memory processed layers may take: the rest is for products and other processes.
local DEVICE_SHARE = 0.8

--- new(ck, {through = "auto", device =, activations = true, cache_bytes =, options = {}}) -> runner | nil, msg, code
-- through: "auto" or a method's name (methods.names). device: "cuda", …: layers that its methods take run and stay
-- there. activations = false: weights only. options: given to every method's new().
function M.new(ck, o)
  local room = { here = o.cache_bytes or 2 ^ 30 }
  if o.through ~= "auto" then
    local ok, msg, code = methods.get(o.through)
    if not ok then return nil, msg, code end
  end
  if o.device and o.device ~= "cpu" then
    local free, msg, code = require("nibble.cuda").memory(o.device)
    if not free then return nil, msg, code end
    room.there = o.cache_bytes or DEVICE_SHARE * free
  end
  local there = setmetatable({ on = o.device }, { __index = o.options })
  return setmetatable({ ck = ck, through = o.through, device = o.device, activations = o.activations ~= false,
    room = room, options = there, here = o.options, plans = {}, ready = {}, counts = {} }, Runner)
end

-- ---- choosing a method -------------------------------------------------------------------

-- The first method that takes rec and whose create takes the layer: {name=, method=} or {reasons=}. What no method takes on
-- the device, one of the computer's may.
local function plan(self, kind, rec, describe)
  local reasons = {}
  local function first(device, options)
    for _, name in ipairs(methods.candidates(kind, self.through, device)) do
      local config, why = methods.config(name, rec, { activations = self.activations })
      local method
      if config then method, why = methods.make(name, config, options) end
      if method then
        local ok, msg = method:create(describe())
        if ok then return { name = name, method = method } end
        why = msg
      end
      reasons[#reasons + 1] = name .. ": " .. tostring(why)
    end
  end
  local found = self.device and first(self.device, self.options)
  return found or first(nil, self.here) or { reasons = reasons }
end

local function count(self, kind, found)
  local name = kind .. " " .. (found.name or "reference")
  self.counts[name] = (self.counts[name] or 0) + 1
end

-- A linear layer's options. Its dtype is that of the stored scales, so that none is rounded.
local function linear_layer(self, name, rec)
  return layer.new { name = name, kind = "linear", dtype = rec.dtype, k = rec.k, n = rec.n,
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

-- Keeps a processed layer where it fits: here, or on the device of its method.
local function keep(self, name, L)
  local bytes, where = bytes_of(L), self.plans[name].method.device and "there" or "here"
  if bytes <= self.room[where] then self.room[where], self.ready[name] = self.room[where] - bytes, L end
  return L
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
  return keep(self, name, L)
end

--- runner:linear(name, x) -> y f32 [m, n] | nil, msg, code: module `name` of x f32 [m, k], its bias added.
function Runner:linear(name, x)
  local L, msg, code = self.ready[name], nil, nil
  if not L then L, msg, code = linear(self, name) end
  if not L then return nil, msg, code end
  return self.plans[name].method:apply(L, x)
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

local function moe_layer(prefix, rec, o, hidden)
  return layer.new { name = prefix .. ".experts", kind = "moe", dtype = rec.dtype_of_layer or rec.dtype, experts = o.count,
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

local function experts(self, prefix, o, hidden)
  local found = self.plans[prefix]
  local L = moe_layer(prefix, found.rec, o, hidden)
  local ok, msg, code = found.method:create(L)
  if not ok then return nil, msg, code end
  for e = 0, o.count - 1 do
    for i, shard in ipairs(shards) do
      local name = module_name(prefix, e, o, i)
      local tensors
      tensors, msg, code = expert_tensors(self, L, name, assert(formats.record(self.ck, name)))
      if not tensors then return nil, msg, code end
      load_expert(L, found.method, e, shard, tensors)
    end
  end
  ok, msg, code = found.method:process(L)
  if not ok then return nil, msg, code end
  return keep(self, prefix, L)
end

--- runner:takes_experts(prefix, {names=, count=, top=, normalize=, intermediate=}, hidden) -> whether a method runs the
-- experts prefix.experts.E.NAME.
function Runner:takes_experts(prefix, o, hidden)
  local found = self.plans[prefix]
  if found == nil then
    local rec, why = common_record(self, prefix, o)
    found = rec and plan(self, "moe", rec, function() return moe_layer(prefix, rec, o, hidden) end) or { reasons = { why } }
    found.rec = rec
    count(self, "moe", found)
    self.plans[prefix] = found
  end
  return found.method ~= nil
end

--- runner:experts(prefix, o, x, logits, weights, ids) -> y f32 [T, hidden] | nil, msg, code
-- x f32 [T, hidden]; the router's logits [T, experts], and what moe.route made of them.
function Runner:experts(prefix, o, x, logits, weights, ids)
  local L, msg, code = self.ready[prefix], nil, nil
  if not L then L, msg, code = experts(self, prefix, o, x:size(2)) end
  if not L then return nil, msg, code end
  local method = self.plans[prefix].method
  if method.monolithic then return method:apply_monolithic(L, x, logits) end
  return method:apply(L, x, weights, ids)
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
