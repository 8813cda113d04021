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

--- prepare(m) -> {words=, scales=, zeros=, bias=, sorted_g_idx=, perm=, global=} | nil, msg, code
-- m: words (i32 in GPTQ or AWQ order), order = "gptq" | "awq", scales [G,N], zeros (AWQ words [G,N/pf]) or nil,
-- bias or nil, g_idx (i32 [K], activation order) or nil, bits, group (-1: one), activations = nil | "int8" |
-- "fp8". A single matrix is padded to Marlin's tiles where needed. Order: fp8 codes, padding, repack, scales
-- (x512 for fp8), scale permutation, int8 scales when there is more than one group, zero-points, bias.
-- scale_k: the K that decides between the scale permutations; by default the matrix's own (MRL-22). Peers pass
-- another one for experts, which differs when g >= that K (SYSTEMS C-06): for comparison only.
function M.prepare(m)
  local a8 = m.activations ~= nil
  local dense = m.words.ndim == 2
  local pf, d = 32 / m.bits, m.words.ndim
  local type = m.zeros and "uint" .. m.bits or ("uint%db%d"):format(m.bits, 2 ^ (m.bits - 1))
  local ok, msg, code = marlin.check_pair(type, m.activations, not dense)
  if not ok then return nil, msg, code end
  local words = m.words
  if m.activations == "fp8" then words = layout.marlin.fp8_preprocess(words, m.zeros, { bits = m.bits }) end
  local k = words:size(d - 1) * (m.order == "awq" and 1 or pf)
  local n = words:size(d) * (m.order == "awq" and pf or 1)
  m = setmetatable({ words = words }, { __index = m })
  if dense then m = pad(m, k, n) end
  k = m.words:size(d - 1) * (m.order == "awq" and 1 or pf)

  local out = {}
  if m.g_idx then out.sorted_g_idx, out.perm = layout.marlin.sort_g_idx(m.g_idx) end
  if m.order == "awq" then out.words = layout.marlin.awq_repack(m.words, m.bits, a8)
  else out.words = layout.marlin.repack(m.words, m.bits, a8, out.perm) end

  local scales = m.scales
  if m.activations == "fp8" then scales = layout.marlin.multiply_scales(scales, 512) end
  out.scales = layout.marlin.permute_scales(scales, m.scale_k or k, m.group, a8)
  if m.activations == "int8" and scales:size(scales.ndim - 1) > 1 then
    out.scales, out.global = layout.marlin.int8_scales(out.scales)
  end
  if m.zeros then out.zeros = layout.marlin.awq_zero_points(m.zeros, m.bits, a8) end
  if m.bias then out.bias = layout.marlin.permute_bias(m.bias) end
  return out
end

return M
