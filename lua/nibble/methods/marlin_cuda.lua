-- methods.marlin_cuda: dense layers of 4- and 8-bit integers on a CUDA device, out of AWQ's, GPTQ's and
-- compressed-tensors' parameters: repacked there after loading, multiplied there (SYSTEMS AWQ-22 to AWQ-26, MRL-20 to
-- MRL-34, CTM-WNA16-02). Which layers: what the oracle's table of nibble says, and nothing is padded.
local backends = require "nibble.backends"
local cuda = require "nibble.cuda"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local awq = require "nibble.methods.awq"
local linear = require "nibble.methods.linear"
local prepare_all = require("nibble.methods.marlin").prepare_all

local M = { name = "marlin_cuda", monolithic = false }
M.__index = M

--- new({format = "awq" | "gptq" | "gptq_v2" | "compressed-tensors", bits =, group =, zero_point =, actorder =},
-- {on = "cuda"}) -> method | nil, msg, code
-- on: the device. format: whose parameters a layer is loaded from; GPTQ's first stores zero-points minus one.
function M.new(config, options)
  local device, msg, code = cuda.device(options and options.on or "cuda")
  if not device then return nil, msg, code end
  return setmetatable({ config = config, device = device.name, sm = device.sm }, M)
end

-- ---- parameters, as each format stores them ---------------------------------------------

local function gptq_parameters(L, c, groups)
  local pf = 32 / c.bits
  L:register("qweight", { dtype = "i32", shape = { L.k / pf, L.n }, input_dim = 0, output_dim = 1, packed_dim = 0, pack_factor = pf })
  L:register("scales", { dtype = L.dtype, shape = { groups, L.n }, input_dim = 0, output_dim = 1, whole = c.actorder })
  if c.zero_point then
    L:register("qzeros", { dtype = "i32", shape = { groups, L.n / pf }, input_dim = 0, output_dim = 1, packed_dim = 1,
      pack_factor = pf, whole = c.actorder })
  end
  if c.actorder then L:register("g_idx", { dtype = "i32", shape = { L.k }, input_dim = 0 }) end
  linear.register_bias(L)
end

local function ct_parameters(L, c, groups)
  local pf = 32 / c.bits
  L:register("weight_packed", { dtype = "i32", shape = { L.n, L.k / pf }, input_dim = 1, output_dim = 0, packed_dim = 1,
    pack_factor = pf })
  L:register("weight_scale", { dtype = L.dtype, shape = { L.n, groups }, input_dim = 1, output_dim = 0, whole = c.actorder })
  if c.zero_point then
    L:register("weight_zero_point", { dtype = "i32", shape = { L.n / pf, groups }, input_dim = 1, output_dim = 0, packed_dim = 0,
      pack_factor = pf, whole = c.actorder })
  end
  if c.actorder then L:register("weight_g_idx", { dtype = "i32", shape = { L.k }, input_dim = 0 }) end
  linear.register_bias(L)
end

-- format -> the parameters that it stores, and what they are for methods.marlin: words and their order, scales [G,N],
-- zeros [G,N/pf] and whose order they are in, g_idx.
local forms = {
  awq = {
    register = function(L, c) awq.parameters(L, c) end,
    parts = function(L, c)
      return { words = L:get "qweight", order = "awq", scales = L:get "scales", zeros = c.zero_point and L:get "qzeros" or nil }
    end,
  },
  gptq = {
    register = gptq_parameters,
    parts = function(L, c)
      local zeros = L:get "qzeros"
      if zeros and c.format == "gptq" then
        zeros = layout.gptq.pack_zeros(layout.gptq.unpack_zeros(zeros, c.bits, true, L.n), c.bits, false)
      end
      return { words = L:get "qweight", order = "gptq", scales = L:get "scales", zeros = zeros, zeros_order = "plain",
        g_idx = L:get "g_idx" }
    end,
  },
  ["compressed-tensors"] = {
    register = ct_parameters,
    parts = function(L)
      local zeros = L:get "weight_zero_point"
      return { words = layout.ct_to_gptq(L:get "weight_packed"), order = "gptq", scales = layout.transpose(L:get "weight_scale"),
        zeros = zeros and layout.transpose(zeros), zeros_order = "plain", g_idx = L:get "weight_g_idx" }
    end,
  },
}
forms.gptq_v2 = forms.gptq

-- ---- the layer's life --------------------------------------------------------------------

-- The oracle's question about a layer.
local function query(self, L)
  local c = self.config
  return { consumer = "nibble", kind = "linear", device = "sm_" .. self.sm, backend = M.name, name = L.name,
    weight = { type = "int", bits = c.bits, zero_points = c.zero_point, group = c.group, actorder = c.actorder, format = c.format,
      strategy = c.group > 0 and "group" or "channel" },
    dtype = L.dtype, k = L.k, n = L.n, k_full = L.k_full, n_full = L.n_full, parallel = L.parallel, tp = L.tp, bias = L.bias }
end

--- method:create(L) -> true | nil, msg, code
-- Registers the parameters that the format stores; what the device's product doesn't take is refused as the oracle says.
function M:create(L)
  local ok, msg, code = backends.select(query(self, L), { change = false })
  if not ok then return nil, ("layer %s: %s"):format(L.name, msg), code end
  local c, groups = self.config, L.k_full / self.config.group -- in act-order any of them may be this rank's
  if not c.actorder then groups, msg, code = linear.groups(L, c.group) end
  if not groups then return nil, msg, code end
  forms[c.format].register(L, c, groups)
  return true
end

--- method:process(L) -> true | nil, msg, code
-- After loading: the words go to the device and are put into Marlin's order there; scales, zero-points and bias, a
-- hundredth of them, are put into theirs before they go. The parameters that were loaded are given up: L keeps "words",
-- "scales", "zeros", "bias", "perm" and "sorted_g_idx" on the device, those that there are.
function M:process(L)
  if L.order_of_words then error(("layer %s was processed: load it again"):format(L.name), 2) end
  local c = self.config
  local m = forms[c.format].parts(L, c)
  local words, msg, code = m.words:to(self.device)
  if not words then return nil, msg, code end
  m.words, m.bits, m.group, m.bias = words, c.bits, c.group, L:get "bias"
  local outs
  outs, msg, code = prepare_all({ m }, { "act_order", "repack", "scales", "zeros", "bias" })
  if not outs then
    words:free()
    return nil, msg, code
  end
  for _, name in ipairs(L:names()) do L:replace(name, nil) end
  for name, t in pairs(outs[1]) do
    t, msg, code = t:to(self.device)
    if not t then return nil, msg, code end
    L:replace(name, t).permuted = name == "bias"
  end
  words:free() -- last: it waits for the products that go on meanwhile
  L.order_of_words = "marlin"
  return true
end

--- method:quant() -> nil: linear layers hand no description to other kernels.
function M.quant() end

--- method:matrix(L) -> the layer's weight as gemm.marlin takes it
function M:matrix(L)
  local c = self.config
  return { type = (c.zero_point and "uint%d" or "uint%db%d"):format(c.bits, 2 ^ (c.bits - 1)), words = L:get "words",
    scales = L:get "scales", zeros = L:get "zeros", perm = L:get "perm", sorted_g_idx = L:get "sorted_g_idx", k = L.k, n = L.n,
    group = c.group, dtype = L.dtype, k_full = L.k == L.k_full }
end

--- method:apply(L, x [, bias [, out]]) -> y [.., n] | nil, msg, code
-- y = x · Ŵ + bias, as awq_marlin's, in the layer's dtype: x is rounded to it and goes to the device, y comes back in x's
-- dtype. x on the device: of the layer's dtype, and y stays there (out: a tensor [m, n] to fill). bias: in Marlin's order, on
-- the device. (AWQ-26)
function M:apply(L, x, bias, out)
  if L.order_of_words ~= "marlin" then error(("layer %s is not processed yet: call process after loading"):format(L.name), 2) end
  local flat, shape = linear.rows(L, x)
  local here, m = x:where() == "cpu", self:matrix(L)
  if here then
    local msg, code
    flat, msg, code = linear.rounded(flat, L.dtype):to(self.device)
    if not flat then return nil, msg, code end
  end
  m.bias, m.out = linear.bias(L, bias, true), not here and out or nil
  local y, msg, code = gemm.marlin(flat, m)
  if not y then return nil, msg, code end
  if here then
    y, msg, code = y:to "cpu"
    if not y then return nil, msg, code end
  end
  return linear.shaped(y, x, shape, L.n)
end

return M
