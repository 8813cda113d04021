-- methods.device_experts: the forms of experts, for methods.device_forms: what each system's processed stacks are, told as
-- matrices w13 and w2 in Marlin's form. Intermediate sizes that Marlin's tiles don't divide are filled up with zeros, gate and up
-- each for itself; hidden sizes are multiples of 64.
local common = require "nibble.methods.moe_common"
local group_tiles = require("nibble.backends.predicates").group_tiles.check
local layout = require "nibble.layout"
local marlin = require "nibble.methods.marlin"
local marlin_float = require "nibble.methods.marlin_float"
local moe_wna16 = require "nibble.methods.moe_wna16"
local tensor = require "nibble.tensor"
local nffi = require "nibble.ffi"

local M = {}

-- ---- what the oracle is asked with ------------------------------------------------------------

local query = common.query

local function integers(L, format, bits, group, zeros, actorder)
  return query(L, { type = "int", bits = bits, zero_points = zeros, group = group, format = format, actorder = actorder,
    strategy = group > 0 and "group" or "channel" })
end

-- ---- integers that have Marlin's form ----------------------------------------------------------

-- A stack [E,...] whose last dimension is not 0, else nil.
local function some(t) return t and t:numel() > 0 and t or nil end

-- What Marlin's kernels quantize the input to: nil, "int8" or "fp8".
local function activations_of(method)
  local a = method.activations or method.options.activations
  return a ~= "none" and a or nil
end

local function as_it_is(method, L, w, o)
  local words, bits = L:get(w .. o.words), tonumber(o.type:match "%d")
  return { type = o.type, words = words, scales = L:get(w .. o.scales), zeros = L:get(w .. "_qzeros"), bias = L:get(w .. "_bias"),
    sorted_g_idx = some(L:get(w .. o.g_idx)), perm = some(L:get(w .. "_g_idx_sort_indices")), group = o.group,
    k = words:size(2) * 16, n = words:size(3) * 2 / bits, k_full = w == "w13" or L.k_full, dtype = L.dtype,
    activations = activations_of(method), global = L:get(w .. "_input_global_scale") }
end

local function both(make) return { matrices = { w13 = make "w13", w2 = make "w2" } } end

-- Codes folded for FP8 need their zero-points beside them: such words are repacked before they go to the device.
local function repacked_there(...)
  local names = { ... }
  return function(method) return (method.monolithic or activations_of(method)) and {} or names end
end

M.awq_marlin_moe = {
  query = function(method, L) return integers(L, "awq", 4, method.config.group, true) end,
  first = repacked_there("w13_qweight", "w2_qweight"),
  form = function(method, L)
    return both(function(w)
      return as_it_is(method, L, w, { type = "uint4", words = "_qweight", scales = "_scales", g_idx = "_g_idx",
        group = method.config.group })
    end)
  end,
}

M.gptq_marlin_moe = {
  query = function(method, L)
    local c = method.config
    return integers(L, "gptq", c.bits, c.group, false, c.desc_act and "group" or nil)
  end,
  first = repacked_there("w13_qweight", "w2_qweight"),
  form = function(method, L)
    return both(function(w)
      return as_it_is(method, L, w, { type = method.type, words = "_qweight", scales = "_scales", g_idx = "_g_idx",
        group = method.config.group })
    end)
  end,
}

-- ---- integers in other words --------------------------------------------------------------------

-- Both stacks, of what parts(w) gives as methods.marlin's stack takes it.
local function stacks(L, device, parts)
  local out = {}
  for _, w in ipairs { "w13", "w2" } do
    local m = parts(w)
    local i = marlin_float.filled(L.i, m.group)
    m.dtype, m.on, m.halves = L.dtype, device, w == "w13" and L.s or 1
    local msg, code
    out[w], msg, code = marlin.stack(m, w == "w13" and L.s * i or L.h, w == "w13" and L.h or i)
    if not out[w] then return nil, msg, code end
  end
  return { matrices = out }
end

M.moe_wna16 = {
  query = function(method, L)
    local c = method.config
    return integers(L, method.kind, c.bits, c.group, c.zero_point)
  end,
  form = function(method, L, device)
    local bits = method.config.bits
    return stacks(L, device, function(w)
      local bytes, zeros = L:get(w .. "_qweight"), L:get(w .. "_qzeros")
      local e, n, columns = bytes:size(1), bytes:size(2), bytes:size(3)
      if zeros then
        local groups = zeros:size(3)
        zeros = moe_wna16.unpack_zeros(zeros:reshape { e * zeros:size(2), groups }, bits):reshape { e, n, groups }
      end
      return { words = bytes:as("i32", { e, n, columns / 4 }), bits = bits, group = L.group, scales = L:get(w .. "_scales"),
        zeros = zeros, bias = (w == "w13" or L.rank == 0) and L:get(w .. "_bias") or nil }
    end)
  end,
}

-- Experts one after the other into a stack: each(e) -> tensors by name, of expert e from 0.
local function stacked(experts, each)
  local out = {}
  for e = 0, experts - 1 do
    nffi.stop_check()
    for name, t in pairs(each(e)) do
      local shape = t:size()
      table.insert(shape, 1, experts)
      out[name] = out[name] or tensor.new(t:type(), shape)
      nffi.must(nffi.C.nb_tensor_copy(out[name][e + 1], t))
    end
  end
  return out
end

-- FlashInfer's bytes are put back into rows of words first.
local function from_mxint4(L, device)
  local mxint4 = require "nibble.methods.mxint4"
  return stacks(L, device, function(w)
    local bytes, scales = L:get(w .. "_weight_packed"), L:get(w .. "_weight_scale")
    local m = stacked(L.e, function(e)
      local words, s = mxint4.unpack(bytes[e + 1], scales[e + 1], w == "w13")
      return { words = words, scales = s }
    end)
    m.bits, m.group = 4, 32
    return m
  end)
end

M.ct_wna16_moe = {
  query = function(method, L)
    return integers(L, "compressed-tensors", method.bits, method.group, false, method.act_order and "group" or nil)
  end,
  refuses = function(method)
    if method.monolithic and method.activations then
      return ("FlashInfer's experts take 16-bit activations, found %s"):format(method.activations), "eunsupported"
    end
  end,
  first = repacked_there("w13_weight_packed", "w2_weight_packed"),
  form = function(method, L, device)
    if method.monolithic then return from_mxint4(L, device) end
    return both(function(w)
      return as_it_is(method, L, w, { type = method.type, words = "_weight_packed", scales = "_weight_scale", g_idx = "_weight_g_idx",
        group = method.group })
    end)
  end,
}

-- The CPU's packed matrices in Marlin's order for int8 activations; where groups aren't what that product takes, in that for 16
-- bits, and the input is what its codes stand for. A scale a row, which is f32, is rounded to the layer's dtype. (CTM-W4A8)
M.w4a8_moe = {
  query = function(method, L)
    return query(L, { type = "int", bits = 4, group = method.group, strategy = method.scheme.strategy }, method.scheme.activations)
  end,
  form = function(method, L, device)
    local group = method.group
    local narrow = not group_tiles { weight = { group = group } }
    local form, msg, code = stacks(L, device, function(w)
      local m = stacked(L.e, function(e)
        local codes, scales, bias = method:unpack(L, w, e)
        local unsigned = tensor.new("u8", codes:size())
        local from, to = codes:ptr(), unsigned:ptr()
        for i = 0, codes:numel() - 1 do to[i] = from[i] + 8 end
        return { words = layout.ct.pack(unsigned, 4), scales = scales, bias = L.bias and bias or nil }
      end)
      m.bits, m.group, m.activations = 4, group, narrow and "int8" or nil
      return m
    end)
    if form and not narrow then form.activations = method.scheme.activations end
    return form, msg, code
  end,
}

-- ---- floats -------------------------------------------------------------------------------------

-- Both stacks by methods.marlin_float of what parts(w) gives: weight [E,N,K], scale, global, bias; group along K.
local function floats(L, device, kind, group, parts)
  local out, i = {}, marlin_float.filled(L.i, group)
  for _, w in ipairs { "w13", "w2" } do
    local m = parts(w)
    m.kind, m.dtype, m.on, m.halves = kind, L.dtype, device, w == "w13" and L.s or 1
    local msg, code
    out[w], msg, code = marlin_float.stack(m, w == "w13" and L.s * i or L.h, w == "w13" and L.h or i, group)
    if not out[w] then return nil, msg, code end
  end
  return { matrices = out }
end

local kernel_forms = {}

-- A kernel's rows back in their plain order: gate, then up, as many as the layer has.
local function plain_rows(t, form, L, w)
  local n, rows = t:size(2), w == "w13" and L.s * L.i or L.h
  local gated = w == "w13" and L.gated
  if form == "shuffled" then
    t = layout.experts.take_rows(t, layout.experts.inverse_order(layout.experts.shuffled_rows(n, gated)))
  elseif form == "swapped" and gated then t = layout.experts.swap_halves(t) end
  if n == rows then return t end
  local half, per = n / (gated and 2 or 1), rows / (gated and 2 or 1) -- without what was filled up
  return layout.experts.take_rows(t, layout.experts.row_order(rows, function(r) return math.floor(r / per) * half + r % per end))
end

-- The first columns of a stack.
local function first_columns(t, columns)
  if t:size(3) == columns then return t end
  local out = tensor.new(t:type(), { t:size(1), t:size(2), columns })
  nffi.must(nffi.C.nb_tensor_copy_block(out, t, 2, 0, 0, columns))
  return out
end

function kernel_forms.marlin(L, type, group)
  return both(function(w)
    local words, bits = L:get(w .. "_weight"), type == "float8_e4m3fn" and 8 or 4
    return { type = type, words = words, scales = L:get(w .. "_weight_scale"), bias = L:get(w .. "_bias"),
      global = type == "float4_e2m1f" and L:get(w .. "_weight_scale_2") or nil, group = group, k = words:size(2) * 16,
      n = words:size(3) * 2 / bits, dtype = L.dtype }
  end)
end

local function float_query(method, L)
  local s = method.scheme
  return query(L, { type = "float", bits = s.bits, strategy = s.strategy, group = s.group, block = s.block }, s.activations)
end

M.ct_fp8_moe = {
  query = float_query,
  refuses = function(method, L)
    if method.options.fnuz then
      return "NVIDIA's FP8 is e4m3fn: e4m3fnuz is AMD's; leave fnuz unset, the checkpoint is e4m3fn", "eunsupported"
    end
    local bk = method.block and method.block[2]
    if bk and L.h % bk ~= 0 then
      return ("the hidden size %d is not a multiple of the block's %d columns"):format(L.h, bk), "eunsupported"
    end
    if method.backend == "NONE" then return "no backend takes these FP8 experts, so there is no kernel", "eunsupported" end
  end,
  form = function(method, L, device)
    local kernel = method.kernels.forms[method.backend]
    local group = method.block and method.block[2] or -1
    if kernel[1] == "marlin" then return kernel_forms.marlin(L, "float8_e4m3fn", group) end
    -- Blocks' rows of scales lie as the weight's do, but for the filled up sizes, which blocks don't have.
    local order = kernel[1] == "shuffled" and method.block and "swapped" or kernel[1]
    local form, msg, code = floats(L, device, "fp8", group, function(w)
      local weight, scale = plain_rows(L:get(w .. "_weight"), order, L, w), L:get(w .. "_weight_scale")
      if method.block and order == "swapped" and w == "w13" and L.gated then scale = layout.experts.swap_halves(scale) end
      return { weight = first_columns(weight, w == "w13" and L.h or L.i), scale = scale, block = method.block }
    end)
    if form and method.run_activations and not kernel.weight_only then
      form.activations, form.scales = method.run_activations, {}
      for _, w in ipairs { "w13", "w2" } do
        local s = L:get(w .. "_input_scale")
        form.scales[w] = { { scale = s and s:get(1) or nil } }
      end
    end
    return form, msg, code
  end,
}

M.ct_nvfp4_moe = {
  query = float_query,
  form = function(method, L, device)
    local kernel = method.kernels.forms[method.backend]
    if kernel[1] == "marlin" then return kernel_forms.marlin(L, "float4_e2m1f", 16) end
    local order = (kernel[1] == "plain" or kernel[1] == "swizzled") and "plain" or kernel[1]
    local negative
    local form, msg, code = floats(L, device, "nvfp4", 16, function(w)
      local weight, scale, columns = L:get(w .. "_weight"), L:get(w .. "_weight_scale"), (w == "w13" and L.h or L.i) / 2
      if kernel[1] ~= "plain" then scale = layout.marlin.unswizzle_blockscale(scale, weight:size(2), weight:size(3) / 8) end
      scale = first_columns(plain_rows(scale, order, L, w), columns / 8)
      if scale:stats().min < 0 then negative = w end
      return { weight = first_columns(plain_rows(weight, order, L, w), columns), scale = scale, global = L:get(w .. "_weight_scale_2"),
        bias = L:get(w .. "_bias") }
    end)
    if negative then return nil, ("%s has negative block scales, which the device's form can't hold"):format(negative), "eunsupported" end
    if form and method.scheme.activations and not kernel.weight_only then
      form.activations, form.scales = method.scheme.activations, {}
      for _, w in ipairs { "w13", "w2" } do
        local s = L:get(w .. "_input_scale")
        form.scales[w] = {}
        for e = 1, method.kernels.differs(s) and L.e or 1 do
          form.scales[w][e] = { global = kernel.emulated and s:get(e) or 1 / s:get(e) }
        end
      end
    end
    return form, msg, code
  end,
}

return M
