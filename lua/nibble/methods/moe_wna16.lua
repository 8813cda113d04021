-- methods.moe_wna16: experts of 4 or 8 bits in the generic kernels' layout, byte packed
-- and N-first, made from AWQ or GPTQ checkpoints while they are loaded: what experts get
-- that Marlin doesn't take (SYSTEMS AWQ-16, AWQ-39, AWQ-40).
--
--   qweight  u8 [E, N, K/p]   code (n, k) in bits (k % p)*b of byte k/p, p = 8/b
--   scales      [E, N, K/g]
--   qzeros   u8 [E, N/p, K/g] zero (n, g) in bits (n % p)*b of byte n/p; only with zero-points
local ffi = require "ffi"
local gemm = require "nibble.gemm"
local layout = require "nibble.layout"
local moe = require "nibble.moe"
local tensor = require "nibble.tensor"

local M = { name = "moe_wna16", monolithic = false }
M.__index = M

local MIN_GROUP = 32

--- new({method = "awq" | "gptq", bits = 4 | 8, group =, zero_point = bool}, options) -> method | nil, msg, code
-- options: capability (default 90): AWQ needs 75. (AWQ-40)
function M.new(config, options)
  local capability = options and options.capability or 90
  local kind = config.method or "awq"
  if kind ~= "awq" and kind ~= "gptq" then
    return nil, ("moe_wna16 takes awq and gptq checkpoints, found %s"):format(tostring(kind)), "eunsupported"
  end
  if config.bits ~= 4 and config.bits ~= 8 then
    return nil, ("moe_wna16 takes 4 or 8 bits, found %s"):format(tostring(config.bits)), "eunsupported"
  end
  if kind == "awq" and capability < 75 then
    return nil, ("moe_wna16: AWQ needs a device of SM 75 or above, found SM %d"):format(capability), "eunsupported"
  end
  return setmetatable({ config = config, kind = kind, options = options or {} }, M)
end

-- ---- from checkpoints' words to bytes --------------------------------------------

local function bytes(words) return words:as("u8", { words:size(1), 4 * words:size(2) }) end

-- Zero-points u8 [N,G], one a byte, as bytes of p of them along N.
local function pack_zeros(zeros, bits)
  if bits == 8 then return zeros end
  local n, groups = zeros:size(1), zeros:size(2)
  local out = tensor.new("u8", { n / 2, groups })
  local from, to = zeros:ptr(), out:ptr()
  for r = 0, n / 2 - 1 do
    for g = 0, groups - 1 do
      to[r * groups + g] = from[2 * r * groups + g] + 16 * from[(2 * r + 1) * groups + g]
    end
  end
  return out
end

--- unpack_zeros(packed u8 [N/p, G], bits) -> zero-points u8 [N,G], one a byte.
function M.unpack_zeros(packed, bits)
  if bits == 8 then return packed end
  local rows, groups = packed:size(1), packed:size(2)
  local out = tensor.new("u8", { 2 * rows, groups })
  local from, to = packed:ptr(), out:ptr()
  for r = 0, rows - 1 do
    for g = 0, groups - 1 do
      local b = from[r * groups + g]
      to[2 * r * groups + g], to[(2 * r + 1) * groups + g] = b % 16, math.floor(b / 16)
    end
  end
  return out
end

--- weights(words, method, bits) -> u8 [N, K/p] from AWQ words [K, N/pf] or GPTQ words [K/pf, N]; lossless.
function M.weights(words, method, bits)
  if method == "gptq" then return bytes(layout.gptq_to_ct(words)) end
  if bits == 4 then return bytes(layout.awq_to_ct(words)) end
  return layout.awq.unpack(words, 8, words:size(1))
end

--- zeros(words, method, bits) -> u8 [N/p, G] from words [G, N/pf]; GPTQ's files hold zero - 1.
function M.zeros(words, method, bits)
  local z = method == "awq" and layout.awq.unpack_zeros(words, bits, words:size(1))
    or layout.gptq.unpack_zeros(words, bits, true, words:size(2) * 32 / bits)
  return pack_zeros(z, bits)
end

-- Scales [G,N] as [N, G*times], each column so often.
local function repeated(t, times)
  if times == 1 then return t end
  local widths = {}
  for i = 1, t:size(2) do widths[i] = times end
  return layout.experts.repeat_columns(t, widths, t:size(2) * times)
end

-- ---- parameters ------------------------------------------------------------------

-- A group that divides both sizes on this rank: halved as often as it takes.
local function fitting_group(L, group)
  local times = 1
  while L.h % group ~= 0 or L.i % group ~= 0 do
    group, times = group / 2, times * 2
    if group < MIN_GROUP or group % 1 ~= 0 then
      return nil, ("layer %s: no group of at least %d divides both the hidden size %d and the intermediate size %d"):format(
        L.name, MIN_GROUP, L.h, L.i), "eunsupported"
    end
  end
  return group, times
end

--- method:create(L) -> true | nil, msg, code
-- w13_qweight u8 [E, sI, H/p], w2_qweight u8 [E, H, I/p]; w13_scales [E, sI, H/g], w2_scales [E, H, I/g]; w13_qzeros
-- u8 [E, sI/p, H/g], w2_qzeros u8 [E, H/p, I/g]. A checkpoint's tensors are converted as they are loaded. A group that
-- doesn't divide I on this rank is halved until it does, and its scales are repeated; -1: one group. (AWQ-40)
function M:create(L)
  local bits, kind, per = self.config.bits, self.kind, 8 / self.config.bits
  local group, times, code = self.config.group, 1
  if group ~= -1 then
    group, times, code = fitting_group(L, group)
    if not group then return nil, times, code end
  end
  if L.h % 8 ~= 0 or L.i % 8 ~= 0 then
    return nil, ("layer %s: the sizes %d and %d don't fill words of 32 bits"):format(L.name, L.h, L.i), "eunsupported"
  end
  L.group = group
  local g13, g2, n13 = group == -1 and 1 or L.h / group, group == -1 and 1 or L.i / group, L.s * L.i
  local function register(name, dtype, n, cols, convert, whole)
    L:register(name, { dtype = dtype, shape = { L.e, n, cols }, scale_method = "group", convert = convert, whole = whole })
  end
  local function weights(t) return M.weights(t, kind, bits) end
  local function scales(t) return repeated(layout.transpose(t), times) end
  local function zeros(t) return repeated(M.zeros(t, kind, bits), times) end
  register("w13_qweight", "u8", n13, L.h / per, weights)
  register("w2_qweight", "u8", L.h, L.i / per, weights)
  register("w13_scales", L.dtype, n13, g13, scales)
  register("w2_scales", L.dtype, L.h, g2, scales, group == -1)
  if self.config.zero_point then
    register("w13_qzeros", "u8", n13 / per, g13, zeros)
    register("w2_qzeros", "u8", L.h / per, g2, zeros, group == -1)
  end
  if L.options.bias then
    L:register("w13_bias", { dtype = L.dtype, shape = { L.e, n13 } })
    L:register("w2_bias", { dtype = L.dtype, shape = { L.e, L.h } })
  end
  return true
end

--- method:process(L) -> true: the layout is made while loading.
function M.process() return true end

--- method:quant(L) -> {bits=, group=, w1_scale=, w2_scale=, w1_zp=, w2_zp=, block_shape = {0, g}, w1_bias=, w2_bias=}
function M:quant(L)
  return { bits = self.config.bits, group = L.group, block_shape = { 0, L.group }, w1_scale = L:get "w13_scales",
           w2_scale = L:get "w2_scales", w1_zp = L:get "w13_qzeros", w2_zp = L:get "w2_qzeros",
           w1_bias = L:get "w13_bias", w2_bias = L:get "w2_bias" }
end

-- ---- forward ---------------------------------------------------------------------

-- function(e, rows) -> rows times expert e's matrix [N,K].
local function product(self, L, w, n, k, bias)
  local bits = self.config.bits
  return function(e, rows)
    local codes = L:get(w .. "_qweight")[e + 1]
    local words = bits == 4 and codes:as("i32", { n, k / 8 })
    return gemm.packed(rows, {
      n = n, k = k, bits = bits, scales_nk = L:get(w .. "_scales")[e + 1],
      zeros_nk = L:get(w .. "_qzeros") and M.unpack_zeros(L:get(w .. "_qzeros")[e + 1], bits) or nil,
      bias = bias and L:get(w .. "_bias") and L:get(w .. "_bias")[e + 1] or nil,
      read = function(tile, row)
        if words then layout.ct.unpack(words, bits, tile, row)
        else ffi.copy(tile.data, codes:rows(row, row + tile:size(1) - 1).data, tile:bytes()) end
      end,
    })
  end
end

--- method:products(L) -> w13 and w2 for moe.forward. Ranks sum their outputs, so that only rank 0 has w2's bias.
function M:products(L)
  return { w13 = product(self, L, "w13", L.s * L.i, L.h, true), w2 = product(self, L, "w2", L.h, L.i, L.rank == 0) }
end

--- method:apply(L, x, weights, ids [, options]) -> y [T,H] in x's dtype: as awq_marlin_moe's, from bytes. (AWQ-39)
function M:apply(L, x, weights, ids, options)
  local parts = self:products(L)
  return moe.forward(x, setmetatable({
    ids = ids, weights = weights, experts = L.e, expert_map = L.expert_map, gated = L.gated, activation = L.activation,
    router_weight_on_input = L.options.router_weight_on_input or false,
    w13 = parts.w13, w2 = parts.w2,
  }, { __index = options or {} }))
end

return M
