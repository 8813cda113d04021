-- methods.wna16_convert: GPTQ-packed experts of 4 or 8 bits turned into what Marlin's MoE kernels
-- read, for the backends MARLIN and BATCHED_MARLIN (SYSTEMS ORC-14 to ORC-21).
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local compat = require "nibble.compat"
local marlin = require "nibble.methods.marlin"
local text = require "nibble.text"

local M = {}

local backends = { MARLIN = true, BATCHED_MARLIN = true }

--- outputs: the names of the 12 values that convert returns, in order.
M.outputs = { "w13", "w2", "w13_scale", "w2_scale", "w13_g_idx", "w2_g_idx", "w13_g_idx_sort_indices",
  "w2_g_idx_sort_indices", "w13_input_global_scale", "w2_input_global_scale", "w13_bias", "w2_bias" }

-- Step by step, the last two after both matrices' scales are permuted.
local ORDER = { "codes", "act_order", "repack", "scales", "int8", "bias" }

local function name_of(config)
  return type(config) == "table" and config.method or type(config)
end

local function check(backend, config)
  if not backends[backend] then
    error(("wna16_convert: unsupported backend %s: expected MARLIN or BATCHED_MARLIN%s"):format(tostring(backend),
      text.did_you_mean(tostring(backend), { "MARLIN", "BATCHED_MARLIN" })), 3)
  end
  if name_of(config) ~= "gptq_marlin" then
    error(("wna16_convert: the backend %s needs a gptq_marlin config, found %s"):format(backend,
      tostring(name_of(config))), 3)
  end
end

local function matrix(config, activations, words, scales, g_idx, bias, switches)
  return { words = words, order = "gptq", scales = scales, bias = bias, bits = config.bits, group = config.group,
    g_idx = config.desc_act and g_idx or nil, activations = activations, any_width = switches.fp8_preprocess_any_width }
end

-- The K that the document passes to the scale permutation (SYSTEMS C-06): the intermediate size for w13; for w2 its
-- groups times the group, or the codes of a word for one group.
local function document_k(config, layer, w2_scales)
  local unit = config.group ~= -1 and config.group or 32 / config.bits
  return layer.i, w2_scales:size(2) * unit
end

--- convert(backend, layer, config, activations, w13, w2, w13_scale, w2_scale, w13_g_idx, w2_g_idx [, w13_bias,
-- w2_bias [, options]]) -> 12 values | nil, msg, code
-- backend: "MARLIN" or "BATCHED_MARLIN". config: {method = "gptq_marlin", bits = 4|8, group = -1|32|64|128, desc_act =
-- bool}. activations: nil (16 bits), "int8" or "fp8". w13, w2: i32 [E,K/pf,N] in GPTQ order; scales f16 or bf16
-- [E,G,N]; g_idx i32 [E,K]; biases [E,N] or nil. options: compat (nibble.compat), say(step, matrix) before each step.
-- Values, in the order of M.outputs: words [E,K/16,N*bits/2]; permuted scales; g_idx sorted within each expert and the
-- stable order that sorts it, i32 [E,K], or all [E,0] without desc_act; int8's global scales f32 [1] where the matrix
-- has more than one group; permuted biases. The inputs stay as they are. Another config or backend is an error;
-- 8-bit weights with 8-bit activations, and desc_act with them, are refused. (ORC-14 to ORC-21)
function M.convert(backend, layer, config, activations, w13, w2, w13_scale, w2_scale, w13_g_idx, w2_g_idx, w13_bias,
    w2_bias, options)
  options = options or {}
  check(backend, config)
  local switches = compat.read(options)
  local ms = { matrix(config, activations, w13, w13_scale, w13_g_idx, w13_bias, switches),
    matrix(config, activations, w2, w2_scale, w2_g_idx, w2_bias, switches) }
  if switches.scale_permutation_k then ms[1].scale_k, ms[2].scale_k = document_k(config, layer, w2_scale) end
  local outs, msg, code = marlin.prepare_all(ms, ORDER, options.say)
  if not outs then return nil, msg, code end
  local function empty() return tensor.new("i32", { w13:size(1), 0 }) end
  local function global(out) return out.global and tensor.new("f32", { 1 }, { out.global }) end
  local function g_idx(out, given)
    if not out.perm then return empty(), empty() end
    local index = out.sorted_g_idx
    if switches.unsorted_g_idx then
      index = tensor.new("i32", given:size())
      nffi.must(nffi.C.nb_tensor_copy(index, given))
    end
    return index, out.perm
  end
  local a, b = outs[1], outs[2]
  local g13, p13 = g_idx(a, w13_g_idx)
  local g2, p2 = g_idx(b, w2_g_idx)
  return a.words, b.words, a.scales, b.scales, g13, g2, p13, p2, global(a), global(b), a.bias, b.bias
end

--- named(…) -> {w13 =, w2 =, …} of convert's 12 values | nil, msg, code (its failure, passed on)
function M.named(...)
  if (...) == nil then return ... end
  local out = {}
  for i, name in ipairs(M.outputs) do out[name] = (select(i, ...)) end
  return out
end

return M
