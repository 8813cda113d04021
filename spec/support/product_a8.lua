-- product_a8: weights in Marlin's order for 8-bit activations with codes of x, what their product is, and the kernels of
-- product_a8.cu run on the emulator with a grid of the spec's choosing.
local ffi = require "ffi"
local nb = require "nibble"
local tensor = require "nibble.tensor"
local awq = require "spec.support.awq"
local emulator = require "spec.support.emulator"
local nffi = require "nibble.ffi"
local C, layout = nffi.C, nb.layout

local M = {}

-- As cuda/kernels/product.h has them.
local COLUMNS, STAGES, THREADS = 128, 4, 128

-- Kinds of weight: bits, the dtype of x, gemm.marlin's type and activations, and what product_a8.c's table says.
M.kinds = {
  int4 = { bits = 4, x = "i8", code = "NB_MARLIN_INT", unit = 1 },
  int8 = { bits = 8, x = "i8", code = "NB_MARLIN_INT", unit = 1 },
  folded4 = { bits = 4, x = "f8_e4m3", code = "NB_MARLIN_FOLDED", unit = 512 },
  e4m3 = { bits = 8, x = "f8_e4m3", code = "NB_MARLIN_E4M3", unit = 1 },
  e2m1 = { bits = 4, x = "f8_e4m3", code = "NB_MARLIN_E2M1", unit = 64, group = 32 },
}

-- codes u8 [n,k] without NaN of e4m3.
local function codes_of(kind, n, k)
  local t = awq.codes(n, k, kind.bits)
  if kind.code == "NB_MARLIN_E4M3" then
    for i = 0, n * k - 1 do
      if t:ptr()[i] % 128 == 127 then t:ptr()[i] = t:ptr()[i] - 1 end
    end
  end
  return t
end

local function e8m0(shape, from, to)
  local t = nb.tensor("u8", shape)
  for i = 0, t:numel() - 1 do t:ptr()[i] = math.random(from, to) end
  return t
end

--- case{kind =, dtype = "f16", m =, k =, n =, group =, zeros = false, bias = false, exact = true, int16 = false, outputs =} ->
-- the same table with x (codes), row_scale f32 [m,1], p (the weight's tensors in Marlin's order) and weight(t), its
-- nb_marlin_weight of the tensors in t; type and activations as gemm.marlin takes them.
-- exact: small codes and powers of two, so that every sum is exact and there is one right answer.
function M.case(o)
  local kind = M.kinds[o.kind]
  o.dtype, o.bits, o.group = o.dtype or "f16", kind.bits, kind.group or o.group
  local n, k, exact = o.n, o.k, o.exact ~= false
  local g = o.group == -1 and k or o.group
  local groups = k / g
  local values = exact and awq.whole({ o.m, k }) or awq.floats("f32", { o.m, k }, kind.x == "i8" and -127 or -448, kind.x == "i8" and 127 or 448)
  if kind.x == "i8" then awq.each(values, function(i) return math.floor(values:get(i)) end) end
  o.x = values:cast(kind.x)
  o.row_scale = o.row_scale ~= false and (exact and awq.powers("f32", { o.m, 1 }) or awq.floats("f32", { o.m, 1 }, 0.5, 2)) or nil
  local bias = o.bias and (exact and awq.whole({ n }, o.dtype) or awq.floats(o.dtype, { n }, -1, 1)) or nil
  local codes = codes_of(kind, n, k)
  if exact and kind.code == "NB_MARLIN_E4M3" then -- whole numbers up to 8
    codes = awq.each(nb.tensor("f32", { n, k }), function() return math.random(-8, 8) end):cast("f8_e4m3"):as("u8", { n, k })
  end
  local zeros = o.zeros and awq.codes(n, groups, 4) or nil
  local words = layout.gptq.pack(codes, kind.bits)
  if kind.code == "NB_MARLIN_FOLDED" then -- as AWQ words, which the zero-points' slots belong to
    local packed = layout.awq.pack(codes, 4)
    words = layout.awq_to_gptq(layout.marlin.fp8_preprocess(packed, zeros and layout.awq.pack_zeros(zeros, 4) or nil), 4)
  end
  local scales, scale
  if kind.group then
    scales, scale = layout.marlin.permute_scales(e8m0({ groups, n }, exact and 124 or 110, exact and 128 or 118), k, g, true), "NB_MARLIN_E8M0"
  else
    local plain = layout.transpose((exact and awq.powers or awq.floats)(o.dtype, { n, groups }, 1e-3, 1e-2))
    scales, scale = layout.marlin.permute_scales(plain, k, g, true), "NB_MARLIN_FLOAT"
    if o.int16 then scales, scale = layout.marlin.int8_scales(scales), "NB_MARLIN_INT16" end
  end
  o.p = { words = layout.marlin.repack(words, kind.bits, true), scales = scales,
          zeros = zeros and layout.marlin.awq_zero_points(layout.awq.pack_zeros(zeros, 4), 4, true) or nil,
          bias = bias and layout.marlin.permute_bias(bias) or nil }
  function o.weight(t)
    local w = ffi.new("nb_marlin_weight", { k = k, n = n, scale_factor = 1 / kind.unit, global = o.global or 1, bits = kind.bits, a8 = 1,
      code = C[kind.code], scale = C[scale], k_full = 1 })
    for name in pairs(o.p) do w[name] = ffi.istype(tensor.type, t[name]) and t[name] or t[name].t end
    return w
  end
  return o
end

--- reference(c) -> y f32 [m, outputs or n] as nb_marlin_gemm computes it
function M.reference(c)
  local y = nb.tensor("f32", { c.m, c.outputs or c.n })
  nffi.must(C.nb_marlin_gemm(y, c.x:cast "f32", c.weight(c.p), c.row_scale))
  return y
end

--- check(c, y): y against the CPU's. Allowed: half a unit of y's last place, and as many roundings of f32 of each of the
-- two as a sum has terms, of the size of y's largest.
function M.check(c, y)
  local half = c.dtype == "f16" and 2 ^ -11 or 2 ^ -8
  local want, got, largest = M.reference(c), y:cast "f32", 0
  for i = 1, want:numel() do largest = math.max(largest, math.abs(want:get(i))) end
  for i = 1, want:numel() do
    local off, allowed = math.abs(got:get(i) - want:get(i)), half * math.abs(want:get(i)) + (c.k + 2) * 2 ^ -23 * largest + 2 ^ -25
    if not (off <= allowed) then
      error(("y[%d] is %.9g, expected %.9g within %.3g"):format(i - 1, got:get(i), want:get(i), allowed), 2)
    end
  end
end

local function blocks_of(m) return m <= 16 and 1 or m <= 32 and 2 or 4 end

--- stage_bytes(c, blocks) -> bytes of a stage, as product_a8.h has them
function M.stage_bytes(c, blocks)
  local kind, stage_k, g = M.kinds[c.kind], blocks <= 2 and 128 or 64, c.group == -1 and c.k or c.group
  return 16 * blocks * stage_k * (blocks == 2 and 2 or 1) + stage_k * COLUMNS * c.bits / 8
    + math.max(1, math.floor(stage_k / g)) * COLUMNS * ((kind.group and 1 or 2) + (c.zeros and c.bits / 8 or 0))
end

--- tiles(c) -> how many (tile, stage) pairs there are
function M.tiles(c) return math.ceil(c.n / COLUMNS) * math.ceil(c.k / (blocks_of(c.m) <= 2 and 128 or 64)) end

--- run(c, grid) -> y, counts | nil, what the emulator says is wrong
-- Memory that a kernel may write holds rubbish before; its counts of blocks that arrived must be zero again.
function M.run(c, grid)
  local blocks, p, g = blocks_of(c.m), c.p, c.group == -1 and c.k or c.group
  local across = math.ceil(c.m / (16 * blocks))
  local y = nb.tensor(c.dtype, { c.m, c.outputs or c.n })
  local memory = {}
  local function there(t)
    if not t then return false end
    memory[#memory + 1] = emulator.memory(t)
    return memory[#memory]
  end
  local d_y, all = there(y), grid * across
  local parts, arrived = there(all * 2 * 16 * blocks * COLUMNS * 4), there(nb.tensor("i32", { all }))
  ffi.fill(d_y, y:bytes(), 0xa5)
  local wrong, counts = emulator.run(("nb_product_a8_%s_%s_m%d"):format(c.dtype, c.kind, blocks * 16),
    { grid = grid, across = across, block = THREADS, shared = STAGES * M.stage_bytes(c, blocks) },
    there(c.x), there(p.words), there(p.scales), there(p.zeros), there(p.bias), there(c.row_scale), d_y, parts, arrived, c.m, c.n, c.k,
    g, c.outputs or c.n, c.int16 and 1 or 0, ffi.new("float", 1))
  emulator.read(d_y, y)
  local left = emulator.read(arrived, nb.tensor("i32", { all }))
  for _, at in ipairs(memory) do emulator.free(at) end
  if wrong then return nil, wrong end
  assert(left:equal(nb.tensor("i32", { all })), "the counts of blocks that arrived are not zero again")
  return y, counts
end

return M
