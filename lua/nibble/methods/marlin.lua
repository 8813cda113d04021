-- methods.marlin: what happens to a 4- or 8-bit integer weight after loading, before
-- Marlin can run it: one matrix, or experts [E,...] (SYSTEMS MRL-20 to MRL-48, MRL-56).
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"

local padded = layout.experts.pad

local M = {}

-- Words of a matrix whose size Marlin's tiles don't divide, with its zero-points,
-- scales and bias: everything filled up with zeros.
local function pad(m, k, n)
  local pn, pk = marlin.padded_size(n, k, m.group)
  if pn == n and pk == k then return m end
  local pf = 32 / m.bits
  local words = m.words
  if m.order == "awq" then words = layout.awq_to_gptq(words, m.bits) end
  local groups = m.group == -1 and 1 or pk / m.group
  local out = setmetatable({ words = padded(words, pk / pf, pn), order = "gptq",
                             scales = padded(m.scales, groups, pn) }, { __index = m })
  if m.zeros then
    local zeros = layout.awq.unpack_zeros(m.zeros, m.bits, m.zeros:size(1))
    out.zeros = layout.awq.pack_zeros(layout.transpose(padded(layout.transpose(zeros), groups, pn)), m.bits)
  end
  if m.bias then out.bias = padded(m.bias:reshape { 1, n }, 1, pn):reshape { pn } end
  return out
end

-- ---- the steps ------------------------------------------------------------------------
-- Each changes m, a table over the caller's description, and fills m.out. -> nothing | msg, code

local step = {}

local function sizes(m)
  local pf, d = 32 / m.bits, m.words.ndim
  local k, n = m.words:size(d - 1), m.words:size(d)
  if m.order == "awq" then return k, n * pf end
  return k * pf, n
end

-- Whether the words become Marlin's where they lie: allowed, neither padded nor in another order.
local function repacked_here(m)
  if not m.in_place or m.g_idx then return false end
  local k, n = sizes(m)
  if m.words.ndim == 3 then return true end
  local pn, pk = marlin.padded_size(n, k, m.group)
  return pn == n and pk == k
end

-- 4-bit codes and scales for fp8 arithmetic. (MRL-42)
function step.codes(m)
  if m.activations ~= "fp8" then return end
  if repacked_here(m) and not m.any_width then -- with the words, when they are moved
    m.fold, m.scales = true, layout.marlin.multiply_scales(m.scales, 512)
    return
  end
  -- any_width: 8-bit words too, as if they held 4-bit codes (SYSTEMS C-12): for comparison only.
  m.words = layout.marlin.fp8_preprocess(m.words, m.zeros,
    { bits = m.any_width and 4 or m.bits, in_place = m.in_place })
  m.scales = layout.marlin.multiply_scales(m.scales, 512)
end

function step.pad(m)
  local k, n = sizes(m)
  local padded_m = m.words.ndim == 2 and pad(m, k, n) or m
  for _, name in ipairs { "words", "order", "scales", "zeros", "bias" } do m[name] = padded_m[name] end
end

function step.act_order(m)
  if m.g_idx then m.out.sorted_g_idx, m.out.perm = layout.marlin.sort_g_idx(m.g_idx) end
end

-- The words on a device: what follows is done there.
function step.device(m)
  local words, msg, code = m.words:to(m.on)
  if not words then return msg, code end
  m.words = words
end

-- m.out[name] = t, or its failure.
local function put(m, name, t, msg, code)
  m.out[name] = t
  if not t then return msg, code end
end

function step.repack(m)
  m.k = sizes(m)
  if repacked_here(m) then
    return put(m, "words", layout.marlin.repack_here(m.words, m.bits, { order = m.order, a8 = m.a8, fold = m.fold,
      zeros = m.fold and m.zeros or nil }))
  elseif m.order == "awq" then return put(m, "words", layout.marlin.awq_repack(m.words, m.bits, m.a8)) end
  return put(m, "words", layout.marlin.repack(m.words, m.bits, m.a8, m.out.perm))
end

-- In activation order a rank whose K is cut has the scales of all groups, so that these, not its K, say how many there are.
function step.scales(m)
  local k = m.g_idx and m.group > 0 and m.scales:size(m.scales.ndim - 1) * m.group or m.k
  return put(m, "scales", layout.marlin.permute_scales(m.scales, m.scale_k or k, m.group, m.a8))
end

-- int8 scales, where there is more than one group. (MRL-40)
function step.int8(m)
  if m.activations == "int8" and m.scales:size(m.scales.ndim - 1) > 1 then
    m.out.scales, m.out.global = layout.marlin.int8_scales(m.out.scales)
  end
end

function step.zeros(m)
  local convert = m.zeros_order == "plain" and layout.marlin.packed_zero_points or layout.marlin.awq_zero_points
  if m.zeros then return put(m, "zeros", convert(m.zeros, m.bits, m.a8)) end
end

function step.bias(m)
  if m.bias then return put(m, "bias", layout.marlin.permute_bias(m.bias)) end
end

local function refuse(m)
  local type = m.zeros and "uint" .. m.bits or ("uint%db%d"):format(m.bits, 2 ^ (m.bits - 1))
  local ok, msg, code = marlin.check_pair(type, m.activations, m.words.ndim == 3)
  if not ok and not m.any_width then return msg, code end
  if m.g_idx and m.activations then
    return ("Marlin repacks no weight in activation order for %s activations; use 16-bit activations, or weights "
      .. "without activation order"):format(m.activations), "eunsupported"
  end
end

--- prepare_all(ms, order [, say]) -> outs | nil, msg, code
-- Several matrices (w13 and w2), step by step: ms and outs as in prepare; order: names of steps, each done to all
-- matrices before the next, or arrays of names, all done to one matrix before the next matrix: codes, pad, act_order,
-- device (to the one that m.on names), repack, scales, int8, zeros, bias. say(step, i): called before a step for matrix i.
function M.prepare_all(ms, order, say)
  local states, outs = {}, {}
  for i, m in ipairs(ms) do
    local msg, code = refuse(m)
    if msg then return nil, msg, code end
    outs[i] = {}
    states[i] = setmetatable({ out = outs[i], a8 = m.activations ~= nil }, { __index = m })
  end
  for _, names in ipairs(order) do
    for i, m in ipairs(states) do
      for _, name in ipairs(type(names) == "table" and names or { names }) do
        if say then say(name, i) end
        local msg, code = step[name](m)
        if msg then return nil, msg, code end
      end
    end
  end
  return outs
end

--- prepare(m) -> {words=, scales=, zeros=, bias=, sorted_g_idx=, perm=, global=} | nil, msg, code
-- m: words (i32 in GPTQ or AWQ order), order = "gptq" | "awq", scales [G,N], zeros (AWQ words [G,N/pf]) or nil,
-- bias or nil, g_idx (i32 [K], activation order) or nil, bits, group (-1: one), activations = nil | "int8" |
-- "fp8". A single matrix is padded to Marlin's tiles where needed. Order: fp8 codes and scales x512, padding,
-- activation order, repack, scale permutation, int8 scales when there is more than one group, zero-points, bias.
-- in_place: the fp8 codes are written over words. scale_k: the K that decides between the scale permutations; by
-- default the matrix's own (MRL-22). Peers pass another one for experts, which differs when g >= that K (SYSTEMS
-- C-06): for comparison only.
function M.prepare(m)
  local outs, msg, code = M.prepare_all({ m },
    { "codes", "pad", "act_order", "repack", "scales", "int8", "zeros", "bias" })
  if not outs then return nil, msg, code end
  return outs[1]
end

local LARGEST = 6 -- 2^6, and 2^9 times that with FP8: the scales that f16 has

--- lifted(scales, dtype) -> scales of dtype, times a power of two that it has room for; what takes that off again
function M.lifted(scales, dtype)
  local most = scales:stats().absmax
  local _, e = math.frexp(most > 0 and most < math.huge and most or 1)
  return layout.marlin.multiply_scales(scales, 2 ^ (LARGEST - e), dtype), 2 ^ (e - LARGEST)
end

--- stack(m, n, k) -> experts as gemm.marlin_experts takes them, their words on m.on | nil, msg, code
-- m: words i32 [E,n',k'/pf], the first code lowest; scales [E,n',G]; zeros u8 [E,n',G] or nil, with 16-bit activations; bias [E,n']
-- or nil; bits, group (-1: one), dtype, activations = nil | "int8" | "fp8"; scale_factor, as that takes it; halves = 2: rows of gate, then
-- of up. [n,k]: of the matrix that Marlin's tiles divide; what lacks is filled up with zeros, in each half for itself.
function M.stack(m, n, k)
  local groups = m.group > 0 and m.group < k and k / m.group or 1
  local function rows(t) return padded(layout.transpose(t), groups, n, m.halves) end
  local given = { order = "gptq", any_width = true, bits = m.bits, group = m.group, activations = m.activations, on = m.on,
    words = padded(layout.transpose(m.words), k * m.bits / 32, n, m.halves), scales = rows(m.scales):cast(m.dtype) }
  if m.bias then
    given.bias = padded(m.bias:cast(m.dtype):reshape { m.bias:size(1), 1, m.bias:size(2) }, 1, n, m.halves):reshape { m.bias:size(1), n }
  end
  local outs, msg, code = M.prepare_all({ given }, { "codes", "device", "repack", "scales", "bias" })
  if not outs then return nil, msg, code end
  local out = outs[1]
  out.type, out.k, out.n = (m.zeros and "uint%d" or "uint%db%d"):format(m.bits, 2 ^ (m.bits - 1)), k, n
  out.group, out.dtype, out.activations, out.scale_factor = m.group, m.dtype, m.activations, m.scale_factor
  if m.zeros then out.zeros = layout.marlin.zero_points(rows(m.zeros), m.bits) end
  return out
end

return M
