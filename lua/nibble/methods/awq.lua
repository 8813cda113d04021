-- methods.awq: linear layers of AWQ checkpoints without Marlin, computed from AWQ's own
-- words: what shapes get that Marlin doesn't take (SYSTEMS AWQ-15, AWQ-39); and the
-- parameters of every method that loads AWQ checkpoints (AWQ-22, MRL-55).
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local linear = require "nibble.methods.linear"

local M = { name = "awq", monolithic = false }
M.__index = M

--- parameters(L, {bits =, group =}) -> groups | nil, msg, code
-- Registers qweight i32 [K, N/pf], qzeros i32 [G, N/pf] and scales [G, N] of the layer's dtype: input_dim 0,
-- output_dim 1, packed along N. G = K/g, one where g is -1. (AWQ-22)
function M.parameters(L, o)
  local pf = 32 / o.bits
  local groups, msg, code = linear.groups(L, o.group)
  if not groups then return nil, msg, code end
  for i, part in ipairs(L.parts) do
    if part % pf ~= 0 then
      return nil, ("layer %s: output %d has %d columns on this rank, words of %d bits hold %d"):format(L.name, i, part,
        o.bits, pf), "eunsupported"
    end
  end
  local packed = { dtype = "i32", input_dim = 0, output_dim = 1, packed_dim = 1, pack_factor = pf }
  local function words(rows) return setmetatable({ shape = { rows, L.n / pf } }, { __index = packed }) end
  L:register("qweight", words(L.k))
  L:register("qzeros", words(groups))
  L:register("scales", { dtype = L.dtype, shape = { groups, L.n }, input_dim = 0, output_dim = 1 })
  linear.register_bias(L)
  return groups
end

--- new{bits = 4 | 8, group =, zero_point = true} -> method
function M.new(config) return setmetatable({ config = config }, M) end

--- method:create(L) -> true | nil, msg, code: the parameters of AWQ-22.
function M:create(L)
  local groups, msg, code = M.parameters(L, self.config)
  if not groups then return nil, msg, code end
  return true
end

--- method:process(L) -> true: nothing is to be done.
function M.process() return true end

--- method:quant() -> nil: linear layers hand no description to other kernels.
function M.quant() end

--- method:apply(L, x [, bias]) -> y [.., n] in x's dtype: x · Ŵ + bias, Ŵ = (q - z) * s (AWQ-26, AWQ-39)
function M:apply(L, x, bias)
  local flat, shape = linear.rows(L, x)
  local y = gemm.packed(flat, {
    n = L.n, k = L.k, bits = self.config.bits, scales = L:get "scales", zeros = L:get "qzeros",
    read = function(codes, row) layout.awq.unpack(L:get "qweight", self.config.bits, codes, row) end,
    bias = linear.bias(L, bias, false),
  })
  return linear.shaped(y, x, shape, L.n)
end

return M
