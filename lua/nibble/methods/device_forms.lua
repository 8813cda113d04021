-- methods.device_forms: what each system's processed layer is, told as matrices in the form that the device's kernels read
-- (nibble.methods.on_device). A system is {query = function(method, L) -> what the oracle is asked with, or nil, form =
-- function(method, L, device) -> form | nil, msg, code, first = function(method, L) -> names of the parameters that go to the
-- device before the layer is processed, because all that is done to them there is repacking}; a form is
--   matrices     {weight = m} of a linear layer; {w13 = m, w2 = m} of experts; m as gemm.marlin takes it, each tensor here or
--                on the device
--   matrices.narrow, least  of a linear layer: from so many rows on its weight for int8 inputs, in Marlin's order for those
--   activations  of experts: what of a scheme is done to the input before a product (nibble.act), nil: nothing
--   codes        "int8" or "fp8", the matrices' activations: the input becomes such codes, not what they stand for; nil: no
--   scales       {w13 = {numbers of expert 0, …} or of all, w2 =}: what nibble.act takes besides, {scale =, global =}
--   after_w13    on_device's: the router's weight goes on the first product's output, as the system's own products say
-- refuses = function(method, L) -> msg, code | nil: why a layer that the oracle can't tell from others isn't taken.
local group_tiles = require("nibble.backends.predicates").group_tiles.check
local layout = require "nibble.layout"
local marlin = require "nibble.marlin"
local prepare_all = require("nibble.methods.marlin").prepare_all
local W4A8_TOKENS = require("nibble.methods.inc").W4A8_TOKENS

local M = {}

-- ---- integers in words -------------------------------------------------------------------------

-- Marlin's form, on the device, of words in AWQ's or GPTQ's order: m as methods.marlin takes it. Sizes that its tiles don't
-- divide are padded before. | nil, msg, code
local function of_words(m, device)
  local d, pf = m.words.ndim, 32 / m.bits
  local k, n = m.words:size(d - 1), m.words:size(d)
  if m.order == "awq" then n = n * pf else k = k * pf end
  local steps = { "act_order", "device", "repack", "scales", "zeros", "bias" }
  if k % (m.activations and 32 or 16) ~= 0 or n % 64 ~= 0 then table.insert(steps, 1, "pad") end
  m.on = device
  local outs, msg, code = prepare_all({ m }, steps)
  if not outs then return nil, msg, code end
  local out = outs[1]
  local words = out.words
  out.k, out.n = words:size(words.ndim - 1) * 16, words:size(words.ndim) * 2 / m.bits
  out.type = (m.zeros and "uint%d" or "uint%db%d"):format(m.bits, 2 ^ (m.bits - 1))
  out.group, out.dtype, out.activations = m.group, m.dtype, m.activations
  return out
end

local function linear_query(format, bits, group, zeros, L)
  return { kind = "linear", weight = { type = "int", bits = bits, zero_points = zeros, group = group, format = format,
    strategy = group > 0 and "group" or "channel" }, dtype = L.dtype, k = L.k, n = L.n, k_full = L.k_full, n_full = L.n_full,
    parallel = L.parallel, tp = L.tp, bias = L.bias }
end

-- A linear layer of words.
local function linear_of(L, m, device)
  m.dtype, m.bias = L.dtype, L:get "bias"
  local out, msg, code = of_words(m, device)
  return out and { matrices = { weight = out } }, msg, code
end

-- A linear layer whose parameters have Marlin's form.
local function linear_as_it_is(L, type, group, bias)
  local words, bits = L:get "qweight", tonumber(type:match "%d")
  return { matrices = { weight = { type = type, words = words, scales = L:get "scales", zeros = L:get "qzeros",
    k = words:size(1) * 16, n = words:size(2) * 2 / bits, group = group, dtype = L.dtype, bias = bias } } }
end

M.awq = {
  query = function(method, L) return linear_query("awq", method.config.bits, method.config.group, true, L) end,
  form = function(method, L, device)
    local c = method.config
    return linear_of(L, { words = L:get "qweight", order = "awq", bits = c.bits, group = c.group, scales = L:get "scales",
      zeros = L:get "qzeros" }, device)
  end,
}

M.awq_marlin = {
  query = function(method, L) return linear_query("awq", 4, method.config.group, true, L) end,
  first = function(method, L)
    local n, k = marlin.padded_size(L.n, L.k, method.config.group)
    return L.order_of_words == nil and n == L.n and k == L.k and (L.kernel == "marlin" or L.kernel == "awq_marlin") and { "qweight" } or {}
  end,
  form = function(method, L, device)
    if method.activations then -- made for comparison only, and its product fails on the CPU too (SYSTEMS C-11)
      return nil, ("%s activations need uint4b8 weights, found uint4"):format(method.activations), "eunsupported"
    end
    if L.order_of_words == "marlin" then return linear_as_it_is(L, "uint4", method.config.group, L:get "bias") end
    local zeros = layout.ct.unpack_zeros(L:get "qzeros", 4, L.n)
    return linear_of(L, { words = L:get "qweight", order = "gptq", bits = 4, group = method.config.group, scales = L:get "scales",
      zeros = layout.awq.pack_zeros(zeros, 4) }, device)
  end,
}

M.pymllm = {
  query = function() end,
  first = function() return { "qweight" } end,
  form = function(method, L)
    local bias = L:get "bias"
    return linear_as_it_is(L, method.type, method.config.group, bias and layout.marlin.permute_bias(bias))
  end,
}

-- With the backend w4a8 the words lie there twice, for inputs of 16 bits and of 8. (INC-18)
M.inc = {
  query = function(method, L)
    return linear_query(method.is_awq_packed and "awq" or "gptq", method.bits, method.group, not method.sym, L)
  end,
  refuses = function(method, L)
    local why = method.options.backend == "w4a8" and group_tiles { k = L.k, weight = { group = method.group } }
    if why then return "the product of int8 inputs " .. why, "eunsupported" end
  end,
  form = function(method, L, device)
    local function words()
      return { words = layout.ct_to_gptq(L:get "qweight"), order = "gptq", bits = 4, group = method.group, scales = L:get "scales" }
    end
    local form, msg, code = linear_of(L, words(), device)
    if not form or method.options.backend ~= "w4a8" then return form, msg, code end
    local m = words()
    m.activations, m.dtype = "int8", L.dtype
    form.matrices.narrow, msg, code = of_words(m, device)
    form.least = W4A8_TOKENS
    return form.matrices.narrow and form, msg, code
  end,
}

-- The tensors that ARK's object holds; asymmetric GPTQ files store zero-points minus one.
M.inc_ark = {
  query = function() end,
  form = function(method, L, device)
    local o, zeros = L.ark.linear, nil
    if not method.sym then
      zeros = o.qzeros
      if not method.is_awq_packed then
        zeros = layout.awq.pack_zeros(layout.gptq.unpack_zeros(zeros, method.bits, true, L.n), method.bits)
      end
    end
    local form, msg, code = linear_of(L, { words = o.qweight, order = "gptq", bits = method.bits, group = method.group,
      scales = o.scales, zeros = zeros }, device)
    if form then L.ark = nil end
    return form, msg, code
  end,
}

for name, entry in pairs(require "nibble.methods.device_experts") do M[name] = entry end

return M
