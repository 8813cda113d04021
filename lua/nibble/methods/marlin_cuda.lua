-- methods.marlin_cuda: dense layers of 4- and 8-bit integers on a CUDA device, out of AWQ's, GPTQ's and
-- compressed-tensors' parameters: repacked there after loading, multiplied there (SYSTEMS AWQ-22 to AWQ-26, MRL-20 to
-- MRL-34, CTM-WNA16-02). Which layers: what the oracle's table of nibble says, and nothing is padded.
local backends = require "nibble.backends"
local cuda = require "nibble.cuda"
local layout = require "nibble.layout"
local awq = require "nibble.methods.awq"
local linear = require "nibble.methods.linear"
local prepare_all = require("nibble.methods.marlin").prepare_all

local M = { name = "marlin_cuda", monolithic = false }
M.__index = M

--- new({format = "awq" | "gptq" | "gptq_v2" | "compressed-tensors", bits =, group =, zero_point =, actorder =},
-- {on = "cuda"}) -> method | nil, msg, code
-- on: the device. format: whose parameters a layer is loaded from; v1 of GPTQ stores zero-points minus one. Without a device its sentence.
function M.new(config, options)
  local device = options and options.on or "cuda"
  local devices, msg, code = cuda.devices()
  if not devices then return nil, msg, code end
  local number = cuda.number_of(device, 2)
  local found = devices[number]
  if not found or not found.usable then
    return nil, found and found.why or ("there is no %s; devices here: %d, from cuda:0 on"):format(device, #devices), "eunsupported"
  end
  return setmetatable({ config = config, device = found.name, sm = found.sm }, M)
end

-- ---- parameters, as each format stores them ---------------------------------------------

local function gptq_parameters(L, c, groups)
  local pf = 32 / c.bits
  L:register("qweight", { dtype = "i32", shape = { L.k / pf, L.n }, input_dim = 0, output_dim = 1, packed_dim = 0, pack_factor = pf })
  L:register("scales", { dtype = L.dtype, shape = { groups, L.n }, input_dim = 0, output_dim = 1 })
  if c.zero_point then
    L:register("qzeros", { dtype = "i32", shape = { groups, L.n / pf }, input_dim = 0, output_dim = 1, packed_dim = 1,
      pack_factor = pf })
  end
  if c.actorder then L:register("g_idx", { dtype = "i32", shape = { L.k }, input_dim = 0 }) end
  linear.register_bias(L)
end

local function ct_parameters(L, c, groups)
  local pf = 32 / c.bits
  L:register("weight_packed", { dtype = "i32", shape = { L.n, L.k / pf }, input_dim = 1, output_dim = 0, packed_dim = 1,
    pack_factor = pf })
  L:register("weight_scale", { dtype = L.dtype, shape = { L.n, groups }, input_dim = 1, output_dim = 0 })
  if c.zero_point then
    L:register("weight_zero_point", { dtype = "i32", shape = { L.n / pf, groups }, input_dim = 1, output_dim = 0, packed_dim = 0,
      pack_factor = pf })
  end
  if c.actorder then L:register("weight_g_idx", { dtype = "i32", shape = { L.k }, input_dim = 0 }) end
  linear.register_bias(L)
end

-- format -> the parameters that it stores, and what they are for methods.marlin: words and their order, scales [G,N],
-- zeros [G,N/pf] and whose order they are in, g_idx.
local forms = {
  awq = {
    register = function(L, c) awq.parameters(L, c) end,
    parts = function(L)
      return { words = L:get "qweight", order = "awq", scales = L:get "scales", zeros = L:get "qzeros" }
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
  local groups
  groups, msg, code = linear.groups(L, self.config.group)
  if not groups then return nil, msg, code end
  forms[self.config.format].register(L, self.config, groups)
  return true
end


-- Of the small parts of a layer, what stays on the device after its processing.
local kept = { "scales", "zeros", "bias", "perm", "sorted_g_idx" }

--- method:process(L) -> true | nil, msg, code
-- After loading: words, scales, zero-points and bias go to the device and are put into Marlin's order there. The
-- parameters that were loaded are given up; L keeps "words" and the rest on the device.
function M:process(L)
  local c = self.config
  local m = forms[c.format].parts(L, c)
  m.bits, m.group, m.bias = c.bits, c.group, L:get "bias"
  for _, name in ipairs { "words", "scales", "zeros", "bias" } do
    if m[name] then
      local t, msg, code = m[name]:to(self.device)
      if not t then return nil, msg, code end
      m[name] = t
    end
  end
  local outs, msg, code = prepare_all({ m }, { "act_order", "repack", "scales", "zeros", "bias" })
  if not outs then return nil, msg, code end
  for _, name in ipairs(L:names()) do L:replace(name, nil) end
  L:replace("words", outs[1].words)
  for _, name in ipairs(kept) do
    local t = outs[1][name]
    if t and t:where() == "cpu" then t, msg, code = t:to(self.device) end
    if outs[1][name] and not t then return nil, msg, code end
    if t then L:replace(name, t) end
  end
  L.order_of_words = "marlin"
  return true
end

--- method:quant() -> nil: linear layers hand no description to other kernels.
function M.quant() end

return M
