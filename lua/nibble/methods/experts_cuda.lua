-- methods.experts_cuda: what experts on a CUDA device whose weights come from any format have in common (marlin_float_moe_cuda,
-- marlin_a8_moe_cuda): read one by one into a stack of each projection, gate and up joined where their numbers are the same,
-- filled up to Marlin's tiles, and multiplied by one launch a stage (methods.on_device).
local act = require "nibble.act"
local common = require "nibble.methods.moe_common"
local cuda = require "nibble.cuda"
local formats = require "nibble.formats"
local marlin_float = require "nibble.methods.marlin_float"
local nffi = require "nibble.ffi"
local on_device = require "nibble.methods.on_device"
local tensor = require "nibble.tensor"

local M = {}
local Method = {}

-- ---- the layer's life, as methods.on_device calls it -------------------------------------------

function Method:create(L)
  local fault = self.scheme.activations and act.fault(self.scheme.activations)
  if fault then return nil, ("layer %s: %s"):format(L.name, fault), "eunsupported" end
  L.state, L.raw = "created", {}
  return true
end

local shards = { "w1", "w3", "w2" }

-- t as that of expert e (from 1) in the stack out[name] of so many.
local function put(out, name, t, experts, e)
  local shape = t:size()
  table.insert(shape, 1, experts)
  out[name] = out[name] or tensor.new(t:type(), shape)
  nffi.must(nffi.C.nb_tensor_copy(out[name][e], t))
end

-- This rank's part of an expert's weight: rows of w1 and w3, columns of w2.
local function part_of(L, q, shard)
  local a, b = L.rank * L.i + 1, (L.rank + 1) * L.i
  if shard == "w2" then return q:columns(a, b) end
  return q:rows(a, b)
end

-- One expert's projection into the stack s of its shard | nil, msg, code
local function read_one(self, L, ck, name, shard, s, e)
  local q, msg, code = formats.quantized(ck, name)
  if not q then return nil, msg, code end
  local n, k = shard == "w2" and L.h or L.i_full, shard == "w2" and L.i_full or L.h
  if q.n ~= n or q.k ~= k then return nil, ("%s is [%dx%d], expected [%dx%d]"):format(name, q.n, q.k, n, k), "eformat" end
  local m
  m, msg, code = self.of_quantized(part_of(L, q, shard))
  if not m then return nil, ("%s: %s"):format(name, msg), code end
  for key, value in pairs(m) do
    if type(value) == "cdata" then put(s, key, value, L.e, e) else s[key] = value end
  end
  local bias = (shard ~= "w2" or L.rank == 0) and ck:info(name .. ".bias")
  if bias then
    bias, msg, code = ck:tensor(name .. ".bias")
    if not bias then return nil, msg, code end
    bias = bias:cast(L.dtype)
    put(s, "bias", shard == "w2" and bias or bias:rows(L.rank * L.i + 1, (L.rank + 1) * L.i), L.e, e)
  end
  local a = self.scheme.activations
  local needs = a and act.needs(a)
  if not needs then return true end
  local input
  input, msg, code = formats.input(ck, name)
  if not input then return nil, msg, code end
  if not input[needs] then
    return nil, ("%s: its activations are %s, but the number of its input that they are scaled with is missing"):format(name,
      act.describe(a)), "eformat"
  end
  s.inputs[e] = { [needs] = input[needs], zero_point = input.zero_point }
  return true
end

--- method:read(L, ck, name_of) -> true | nil, msg, code
-- The layer's experts, those of this rank; name_of(e, shard): the module of expert e (from 0 among all) and shard "w1" (gate),
-- "w3" (up) or "w2" (down).
function Method:read(L, ck, name_of)
  self:unprocessed(L)
  L.stacks = {}
  for _, shard in ipairs(shards) do
    if shard ~= "w3" or L.gated then L.stacks[shard] = { inputs = {} } end
  end
  for expert = 0, L.e_global - 1 do
    local e = L.expert_map and L.expert_map:get(expert + 1) or expert
    nffi.stop_check()
    for shard, s in pairs(e >= 0 and L.stacks or {}) do
      local ok, msg, code = read_one(self, L, ck, name_of(expert, shard), shard, s, e + 1)
      if not ok then return nil, ("layer %s: %s"):format(L.name, msg), code end
    end
  end
  return true
end
nffi.interpreted(Method.read)

function Method:process(L)
  if not L.stacks then
    error(("layer %s: its weights are not there; create and read them first"):format(L.name), 3)
  end
  L.state, L.method = "ready", self
  return true
end

--- method:products(L) -> {}: on_device has the stacks.
function Method.products() return {} end

-- ---- the device's form --------------------------------------------------------------------------

local function same_inputs(a, b)
  for e, numbers in ipairs(a.inputs) do
    for key, value in pairs(numbers) do if b.inputs[e][key] ~= value then return false end end
  end
  return true
end

-- Gate and up as one stack, or nil where numbers of the whole differ.
local function joined(gate, up)
  if gate.global and not gate.global:equal(up.global) or not same_inputs(gate, up) then return nil end
  if (gate.bias == nil) ~= (up.bias == nil) then return nil end
  local out = setmetatable({}, { __index = gate })
  for part, t in pairs(gate) do
    if type(t) == "cdata" and part ~= "global" then
      local shape, rows = t:size(), t:size(2)
      shape[2] = 2 * rows
      out[part] = tensor.new(t:type(), shape)
      nffi.must(nffi.C.nb_tensor_copy_block(out[part], t, 1, 0, 0, rows))
      nffi.must(nffi.C.nb_tensor_copy_block(out[part], up[part], 1, rows, 0, rows))
    end
  end
  return out
end

-- All of them, or one where they are all the same.
local function inputs_of(s)
  for _, numbers in ipairs(s.inputs) do
    for key, value in pairs(numbers) do if s.inputs[1][key] ~= value then return s.inputs end end
  end
  return { s.inputs[1] }
end

local function form(method, L, device)
  local s, both = L.stacks, nil
  L.stacks = nil
  if L.gated then both = joined(s.w1, s.w3) end
  local stacks = { w13 = both or s.w1, w3 = L.gated and not both and s.w3 or nil, w2 = s.w2 }
  local out, i = { matrices = {}, scales = {}, activations = method.scheme.activations }, marlin_float.filled(L.i, s.w2.group)
  for w, m in pairs(stacks) do out.scales[w] = inputs_of(m) end
  if method.plan then method.plan(out) end
  for w, m in pairs(stacks) do
    local msg, code
    m.dtype, m.on, m.halves = L.dtype, device, w == "w13" and both and 2 or 1
    out.matrices[w], msg, code = method.stack(m, w == "w2" and L.h or m.halves * i, w == "w2" and i or L.h, out)
    if not out.matrices[w] then return nil, msg, code end
  end
  return out
end

local function query(method, L)
  return common.query(L, setmetatable({ format = method.format }, { __index = method.scheme }), method.scheme.activations)
end

local entry = { query = query, form = form }

--- class(name, {of_quantized =, stack =, plan = nil}) -> new, as a method's module has it: new({scheme =, format =}, {on = "cuda"})
-- -> method | nil, msg, code; its life is as methods.on_device says, and read() takes the place of load().
-- of_quantized(q) -> tensors of one expert's projection, by name, and what all experts have in common | nil, msg, code, of
-- q (nibble.quantized), whose rows are the tensors' first dimension; `global` is the whole's; group: along K, -1: one.
-- stack(m, n, k, form) -> experts as gemm.marlin_experts takes them | nil, msg, code, of those tensors with a leading [E], with
-- dtype, on and halves besides; [n,k]: of the matrix that is filled up to whole tiles. plan(form): what may change in the form
-- (methods.device_forms), whose activations and scales are there, before.
function M.class(name, parts)
  local class = common.class(name)
  for key, f in pairs(Method) do class[key] = f end
  for key, f in pairs(parts) do class[key] = f end
  return function(config, options)
    local device, msg, code = cuda.device(options and options.on or "cuda")
    if not device then return nil, msg, code end
    local base = common.start(class, options)
    base.scheme, base.format = config.scheme, config.format
    return on_device.around(base, name, entry, device)
  end
end

return M
