-- methods.layer: a layer as a quantization method sees it: its sizes on this rank of
-- tensor parallelism, its parameters with what their loading needs to know, and the
-- loading of checkpoint tensors into them.
--
-- A linear layer, maybe of several fused outputs (q, k and v), or the experts of a
-- MoE block, held as two stacks:
--   w13  gate (w1) and, where the MLP is gated, up (w3) one after the other
--   w2   down
-- Tensor parallelism (tp ranks) cuts a column-parallel layer along its outputs, a
-- row-parallel one along its inputs, experts along the intermediate size; expert
-- parallelism (ep ranks) deals whole experts out.
--
-- A parameter is {name=, data=tensor, dtype=, shape=, input_dim=, output_dim=,
-- packed_dim=, pack_factor=, transposed=, flip=, scale_method=, whole=, shared=, tied=, load=, convert=}:
-- the attributes that `register` was given. Dimensions are counted from 0 in them, as
-- the systems' documents do.
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local text = require "nibble.text"

local M = {}
local Layer = {}
Layer.__index = Layer

local floats = { f32 = true, f16 = true, bf16 = true }
local kinds = { linear = true, lm_head = true, moe = true }

local function whole_number(o, key, default, least)
  local v = o[key]
  if v == nil then v = default end
  if type(v) ~= "number" or v ~= math.floor(v) or v < (least or 1) then
    error(("layer %s: %s must be a whole number of at least %d, found %s"):format(tostring(o.name), key, least or 1,
      tostring(v)), 4)
  end
  return v
end

local function divided(o, what, size, by, along)
  if size % by ~= 0 then
    error(("layer %s: %s = %d does not divide among %d %s ranks"):format(tostring(o.name), what, size, by,
      along or "tensor-parallel"), 4)
  end
  return size / by
end

local function linear(L, o)
  local outputs = o.outputs or { whole_number(o, "n") }
  L.k_full = whole_number(o, "k")
  L.k = o.parallel == "row" and divided(o, "k", L.k_full, L.tp) or L.k_full
  L.outputs, L.parts, L.n, L.n_full = outputs, {}, 0, 0
  for i, n in ipairs(outputs) do
    L.parts[i] = o.parallel == "column" and divided(o, "n", n, L.tp) or n
    L.n, L.n_full = L.n + L.parts[i], L.n_full + n
  end
end

local function moe(L, o)
  L.e_global, L.ep = whole_number(o, "experts"), whole_number(o, "ep", 1)
  L.ep_rank = whole_number(o, "ep_rank", 0, 0)
  L.e = divided(o, "experts", L.e_global, L.ep, "expert-parallel")
  L.h, L.i_full, L.top = whole_number(o, "hidden"), whole_number(o, "intermediate"), whole_number(o, "top", 1)
  L.i = divided(o, "intermediate", L.i_full, L.tp)
  L.gated = o.gated ~= false
  L.s = L.gated and 2 or 1
  L.activation = o.activation or "silu"
  if L.ep > 1 then
    L.expert_map = tensor.new("i32", { L.e_global })
    for e = 0, L.e_global - 1 do
      local at = e - L.ep_rank * L.e
      L.expert_map:set(e + 1, at >= 0 and at < L.e and at or -1)
    end
  end
end

--- new{name=, kind="linear"|"lm_head"|"moe", dtype="bf16", …} -> layer
-- dtype: of the activations and unquantized parameters. tp, rank (0-based): tensor parallelism; bias.
-- linear: k (in features), n or outputs = {n1, n2, …} of the fused matrices, shards = their names,
-- parallel = nil | "column" | "row". Gives L.k, L.n, L.k_full, L.n_full, L.parts (outputs on this rank).
-- moe: experts, hidden, intermediate (whole sizes), top, activation ("silu"), gated (true), ep, ep_rank.
-- Gives L.e (experts here), L.h, L.i, L.i_full, L.s (2 gated, 1 not), L.expert_map (i32, -1 elsewhere; with ep).
-- Every other option stays readable as L.options. Sizes that ranks don't divide are errors. (AWQ-22, AWQ-32)
function M.new(o)
  if not kinds[o.kind or "linear"] then
    error(("layer %s: kind must be linear, lm_head or moe, found %s"):format(tostring(o.name), tostring(o.kind)), 2)
  end
  if o.parallel and o.parallel ~= "column" and o.parallel ~= "row" then
    error(('layer %s: parallel must be "column" or "row", found %s'):format(tostring(o.name), tostring(o.parallel)), 2)
  end
  local L = setmetatable({ name = o.name or "layer", kind = o.kind or "linear", dtype = o.dtype or "bf16", params = {},
    order = {}, shards = o.shards, parallel = o.parallel, bias = o.bias == true, options = o }, Layer)
  L.tp, L.rank = whole_number(o, "tp", 1), whole_number(o, "rank", 0, 0)
  if L.rank >= L.tp then error(("layer %s: rank %d of %d"):format(L.name, L.rank, L.tp), 2) end
  if L.kind == "moe" then moe(L, o) else linear(L, o) end
  return L
end

-- ---- parameters -----------------------------------------------------------------------

--- L:register(name, {dtype=, shape=, …}) -> parameter
-- Makes a parameter, filled with `fill` (default 0). Registering a name twice is an error.
function Layer:register(name, attributes)
  if self.params[name] then error(("layer %s: the parameter %s is registered already"):format(self.name, name), 2) end
  local p = { name = name }
  for _, key in ipairs { "dtype", "shape", "input_dim", "output_dim", "packed_dim", "pack_factor", "transposed", "flip",
    "scale_method", "whole", "shared", "tied", "load", "convert" } do
    p[key] = attributes[key]
  end
  p.data = tensor.new(p.dtype, p.shape)
  if attributes.fill then p.data:fill(attributes.fill) end
  self.params[name] = p
  self.order[#self.order + 1] = name
  return p
end

--- L:param(name) -> the parameter's record | nil
function Layer:param(name) return self.params[name] end

--- L:get(name) -> its tensor | nil
function Layer:get(name)
  local p = self.params[name]
  return p and p.data
end

--- L:names() -> the names of the parameters that have a tensor, in the order of their registration.
function Layer:names()
  local out = {}
  for _, name in ipairs(self.order) do
    if self:get(name) then out[#out + 1] = name end
  end
  return out
end

local function same_form(a, b)
  if a.dtype ~= b.dtype or a.ndim ~= b.ndim or a.device ~= b.device then return false end
  for i = 1, a.ndim do
    if a:size(i) ~= b:size(i) then return false end
  end
  return true
end

--- L:replace(name, tensor | nil) -> parameter
-- New data for a parameter. Of the same shape, dtype and device it is copied into the storage that is there, whose
-- address stays; otherwise the parameter holds the new tensor. Its attributes stay. nil clears it; a name that isn't
-- there is registered. Tied parameters share storage with another layer and can't be replaced. (MRL-58)
function Layer:replace(name, t)
  local p = self.params[name]
  if not p then
    p = { name = name }
    self.params[name] = p
    self.order[#self.order + 1] = name
  end
  if p.tied then
    error(("layer %s: %s is tied to another layer's parameter and can't be replaced; untie it first"):format(self.name,
      name), 2)
  end
  if t and p.data and same_form(p.data, t) then
    nffi.must(nffi.C.nb_tensor_copy(p.data, t))
  else
    p.data = t
    if t then p.dtype, p.shape = t:type(), t:size() end
  end
  return p
end

--- L:rename(old, new): the parameter under another name; loading by the old one fails from then on.
function Layer:rename(old, new)
  local p = self.params[old]
  if not p then error(("layer %s has no parameter %s"):format(self.name, old), 2) end
  self.params[old], self.params[new], p.name = nil, p, new
  for i, name in ipairs(self.order) do
    if name == old then self.order[i] = new end
  end
  return p
end

-- ---- loading ----------------------------------------------------------------------------

--- block(out, out_at, src, src_at, size, dim) -> out
-- Copies `size` slices along dimension `dim` (0-based), from slice src_at of src to slice out_at of out (0-based).
-- Both have one dtype and the same other dimensions.
function M.block(out, out_at, src, src_at, size, dim)
  nffi.must(nffi.C.nb_tensor_copy_block(out, src, dim, out_at, src_at, size))
  return out
end

local function known(self, name)
  local p = self.params[name]
  if p and p.data then return p end
  error(("layer %s has no parameter %q%s"):format(self.name, name, text.did_you_mean(name, self:names())), 3)
end

-- t as the parameter stores it: converted by its own function, flipped where the file is the other way round, floats cast.
local function prepared(self, p, t)
  if p.convert then t = p.convert(t) end
  if p.flip and t.ndim == 2 then t = t:transpose() end
  local want = p.data:type()
  if t:type() == want then return t end
  if floats[want] and floats[t:type()] then return t:cast(want) end
  error(("layer %s: %s takes %s, the checkpoint's tensor is %s"):format(self.name, p.name, want, t:type()), 4)
end

local function mismatch(self, p, t, why)
  error(("layer %s: %s is %s on this rank, the checkpoint's tensor is %s%s"):format(self.name, p.name,
    text.shape(p.data:size()), text.shape(t:size()), why), 4)
end

-- Puts the part that belongs to this rank, `size` slices of dimension dim, at slice `at` of the parameter's data.
local function put_part(self, p, data, at, size, t, dim, cut)
  if t.ndim ~= data.ndim and t:numel() == data:numel() then t = t:reshape(data:size()) end
  if t.ndim ~= data.ndim then mismatch(self, p, t, "") end
  local have = t:size(dim + 1)
  local from = cut and self.rank * size or 0
  if have ~= (cut and size * self.tp or size) then
    mismatch(self, p, t, (": dimension %d must be %d%s"):format(dim, cut and size * self.tp or size,
      cut and self.tp > 1 and (" (%d ranks of %d)"):format(self.tp, size) or ""))
  end
  for i = 1, data.ndim do
    if i ~= dim + 1 and t:size(i) ~= data:size(i) then
      mismatch(self, p, t, (": dimension %d differs"):format(i - 1))
    end
  end
  M.block(data, at, t, from, size, dim)
end

local function shard_index(self, p, shard)
  if type(shard) == "number" then
    if shard >= 1 and shard <= #self.outputs then return shard end
  else
    for i, name in ipairs(self.shards or {}) do
      if name == shard then return i end
    end
  end
  error(("layer %s: %s has no shard %s: expected %s"):format(self.name, p.name, tostring(shard),
    self.shards and table.concat(self.shards, ", ") or "1 to " .. #self.outputs), 4)
end

--- L:load(name, tensor [, shard])
-- A linear layer's parameter from a checkpoint's tensor: all fused outputs at once, or one of them (its name among
-- the layer's shards, or its number from 1). This rank's part is taken: along output_dim of a column-parallel layer,
-- along input_dim of a row-parallel one. Sizes of a packed dimension are in words. A parameter marked `whole`, or
-- with a single row of scales (one group), is the same on every rank (MRL-59). Without output_dim the
-- parameter has one value a shard. Wrong shapes and dtypes are errors that name both.
-- A parameter with a `load` of its own, function(L, p, tensor, shard), is loaded by it; `convert`, function(tensor)
-- -> tensor, brings a file's tensor into the parameter's form first.
function Layer:load(name, t, shard)
  local p = known(self, name)
  if p.load then return p.load(self, p, t, shard) end
  t = prepared(self, p, t)
  local index = shard and shard_index(self, p, shard)
  local out, inp = p.output_dim, p.input_dim
  if not out and not inp then
    if index then
      if t:numel() ~= 1 then mismatch(self, p, t, ": expected one value a shard") end
      p.data:set(index, t:get(1))
    elseif t:numel() == p.data:numel() then nffi.must(nffi.C.nb_tensor_copy(p.data, t))
    else mismatch(self, p, t, "") end
  elseif out and (index or self.parallel == "column") then
    local per_word = p.packed_dim == out and p.pack_factor or 1
    local at, whole_at = 0, 0
    for i, part in ipairs(self.parts) do
      local size = part / per_word
      if size ~= math.floor(size) then
        error(("layer %s: %s packs %d outputs a word, which don't divide the %d of shard %d"):format(self.name, p.name,
          per_word, part, i), 2)
      end
      local cut = self.parallel == "column"
      if index == i then put_part(self, p, p.data, at, size, t, out, cut) end
      if not index then
        local full = self.outputs[i] / per_word
        if t:size(out + 1) ~= self.n_full / per_word then
          mismatch(self, p, t, (": dimension %d must be %d"):format(out, self.n_full / per_word))
        end
        M.block(p.data, at, t, whole_at + self.rank * size, size, out)
        whole_at = whole_at + full
      end
      at = at + size
    end
  elseif inp and self.parallel == "row" then
    local size = p.data:size(inp + 1)
    local single = size == 1 and t.ndim == p.data.ndim and t:size(inp + 1) == 1
    put_part(self, p, p.data, 0, size, t, inp, not p.whole and not single)
  else
    put_part(self, p, p.data, 0, p.data:size(1), t, 0, false)
  end
end

local shard_column = { w1 = 1, w3 = 2, w2 = 1 }
local methods = { tensor = true, channel = true, group = true, block = true }

-- One value an expert and shard: w1 in column 0, w3 in column 1. A shared one (static input scales) must be the same.
local function load_scalar(self, p, t, shard, e)
  if t:numel() ~= 1 then mismatch(self, p, t, ": expected one value") end
  local value, columns = t:get(1), p.data:numel() / p.data:size(1)
  local at = (e - 1) * columns + math.min(shard_column[shard], columns)
  if p.shared and shard ~= "w2" then
    p.loaded = p.loaded or {}
    local before = p.loaded[e]
    if before and math.abs(before - value) > 1e-5 then
      error(("layer %s: %s of expert %d: w1 and w3 must have one input scale, found %g and %g"):format(self.name, p.name,
        e - 1, before, value), 4)
    end
    p.loaded[e] = value
  end
  p.data:set(at, value)
end

--- L:load_expert(name, tensor, shard, expert) -> true, or false when the expert lives on another rank
-- One expert's tensor into a MoE parameter [E,…]. shard: "w1" (gate), "w3" (up), "w2" (down); expert: its global number
-- from 0. N-first tensors are cut along rows for w1 and w3 and along columns for w2; parameters marked `transposed`
-- the other way; `flip` turns the file's tensor first. A scale_method "tensor" puts one value at column 0 or
-- 1; w2's channel scales and parameters marked `whole` (act-order) are not cut. (FWD-13)
function Layer:load_expert(name, t, shard, expert)
  local p = known(self, name)
  if not shard_column[shard] then
    error(("layer %s: %s: the shard must be w1, w2 or w3, found %s"):format(self.name, name, tostring(shard)), 2)
  end
  if type(expert) ~= "number" or expert < 0 or expert >= self.e_global then
    error(("layer %s: %s: expert %s of %d"):format(self.name, name, tostring(expert), self.e_global), 2)
  end
  if p.scale_method and not methods[p.scale_method] then
    error(("layer %s: %s: unknown scale method %q: expected tensor, channel, group or block"):format(self.name, name,
      p.scale_method), 2)
  end
  local e = self.expert_map and self.expert_map:get(expert + 1) or expert
  if e < 0 then return false end
  t = prepared(self, p, t)
  if p.scale_method == "tensor" then
    load_scalar(self, p, t, shard, e + 1)
    return true
  end
  local shape = p.data:size()
  table.remove(shape, 1)
  local data = p.data:rows(e + 1, e + 1):reshape(shape)
  local dim = shard == "w2" and 1 or 0
  if p.transposed then dim = 1 - dim end
  if #shape == 1 then dim = 0 end
  if p.input_dim == 0 and #shape == 1 then -- g_idx: along K, which only w2 cuts
    put_part(self, p, data, 0, shape[1], t, 0, shard == "w2" and not p.whole)
  elseif shard == "w2" then
    put_part(self, p, data, 0, shape[dim + 1], t, dim, not (p.whole or p.scale_method == "channel" or #shape == 1))
  else
    local half = shape[dim + 1] / self.s
    put_part(self, p, data, shard == "w3" and half or 0, half, t, dim, not p.whole)
  end
  return true
end

return M
