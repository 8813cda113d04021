-- quant: quantization methods and whole weights: which methods there are, what
-- they can be told, and running one, be it C or a Lua function, on a weight or on
-- a tile of its rows.
--
-- A method is a table:
--   name       "rtn"
--   title      one line about it
--   row_local  true: a tile of rows gives the same codes as the whole weight does
--   options    { {name=, type=, default=, values=|min=,max=, doc=}, … }
--   tile       function(out, w, scheme, options [, whole]) -> true | nil, msg, code: fills the
--              Quantized out (codes, scales, zeros) from w f32|bf16|f16 [n,k]; whole: what
--              quant_float.whole tells of the whole weight, where w is a tile of it
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local scheme_m = require "nibble.scheme"
local text = require "nibble.text"
local floats = require "nibble.quant_float"
local C, must = nffi.C, nffi.must

local M = { methods = {} }

-- ---- C's answers --------------------------------------------------------------

-- C's failures as nil, msg, code, so that a tile's caller can name the module;
-- only an interruption is raised.
local function answer(rc)
  if rc >= 0 then return true end
  local msg, code = ffi.string(C.nb_error()), ffi.string(C.nb_error_name(rc))
  if code == "eintr" then error("interrupted", 0) end
  return nil, msg, code
end

local ranges = { full = C.NB_RANGE_FULL, narrow = C.NB_RANGE_NARROW, tight = C.NB_RANGE_TIGHT }
local arithmetics = { float32 = C.NB_ARITHMETIC_F32, dtype = C.NB_ARITHMETIC_DTYPE }

-- The C options that every integer method begins with.
local function rtn_options(scheme, options)
  local group = scheme.strategy == "tensor" and 0 or scheme.strategy == "channel" and -1 or scheme.group
  return ffi.new("nb_rtn_options", {
    bits = scheme.bits, symmetric = scheme.symmetric and 1 or 0, group = group,
    range = ranges[options.range or "full"], arithmetic = arithmetics[options.arithmetic or "float32"],
  })
end

-- ---- options --------------------------------------------------------------------

local range_option = {
  name = "range", type = "string", default = "full", values = { "full", "narrow", "tight" },
  doc = "what the largest magnitude of a symmetric group is divided by: full (2^bits - 1) / 2, as "
    .. "compressed-tensors; narrow 2^(bits-1) - 1, nothing is clipped; tight: each sign by its own bound",
}

local function option_names(method)
  local names = {}
  for i, o in ipairs(method.options) do names[i] = o.name end
  return names
end

local function option_fault(method, o, value)
  local where = ("method %s: %s"):format(method.name, o.name)
  if type(value) ~= o.type then
    return ("%s must be a %s, found a %s (%s)"):format(where, o.type, type(value), tostring(value))
  end
  if o.values then
    for _, v in ipairs(o.values) do if v == value then return nil end end
    return ("%s = %q%s"):format(where, value, text.did_you_mean(value, o.values))
  end
  if o.type == "number" and not (value >= o.min and value <= o.max) then
    return ("%s = %g, expected %g to %g"):format(where, value, o.min, o.max)
  end
end

-- Options with the defaults filled in | nil, msg.
local function complete(method, given)
  local out = {}
  if not method.options then -- a Lua function: its options are its own
    for k, v in pairs(given or {}) do out[k] = v end
    return out
  end
  for _, o in ipairs(method.options) do out[o.name] = o.default end
  for key, value in pairs(given or {}) do
    local schema
    for _, o in ipairs(method.options) do if o.name == key then schema = o end end
    if not schema then
      return nil, ("method %s has no option %q%s"):format(method.name, tostring(key),
        text.did_you_mean(tostring(key), option_names(method)))
    end
    local fault = option_fault(method, schema, value)
    if fault then return nil, fault end
    out[key] = value
  end
  return out
end

-- ---- the methods --------------------------------------------------------------------

--- register(method): adds a method (see above) under its name.
function M.register(method) M.methods[method.name] = method end

-- Columns come in the order of their importance through tile() below, which takes actorder out of the scheme.
local function no_actorder(method, scheme)
  if not scheme.actorder then return true end
  return nil, ("method %s doesn't order columns by itself: actorder = %q needs to know their importance (calibrate in a "
    .. "recipe, importance here); or leave it out"):format(method.name, scheme.actorder), "einval"
end

local rtn = {
  name = "rtn", title = "round to nearest: the scale from each group's largest magnitude", row_local = true,
  options = {
    range_option,
    { name = "arithmetic", type = "string", default = "float32", values = { "float32", "dtype" },
      doc = "float32: codes are found with the stored scale in float32; dtype: every operation rounded to the "
        .. "weight's dtype, which gives compressed-tensors' and llm-compressor's bytes" },
  },
}

function rtn.tile(out, w, scheme, options, whole)
  local ok, msg, code = no_actorder(rtn, scheme)
  if not ok then return nil, msg, code end
  if scheme.type == "float" then return floats.tile(out, w, options, whole) end
  local o = rtn_options(scheme, options or {})
  if not tensor.on_device(w) then return answer(C.nb_rtn_quantize(out.codes, out.scales, out.zeros, w, o)) end
  return answer(C.nb_device_rtn_quantize(out.codes.t, out.scales.t, out.zeros and out.zeros.t, w.t, o))
end

local mse = {
  name = "mse", title = "round to nearest in the clipping range with the least error, searched group by group",
  row_local = true,
  options = {
    range_option,
    { name = "grid", type = "number", default = 100, min = 1, max = 10000,
      doc = "the range shrinks in steps of 1/grid" },
    { name = "max_shrink", type = "number", default = 0.8, min = 0, max = 0.99,
      doc = "how much of the range may be given up" },
    { name = "norm", type = "number", default = 2, min = 1, max = 4,
      doc = "the power of the error that is made least: 2 mean squared error, 2.4 as GPTQ tools use" },
  },
}

function mse.tile(out, w, scheme, options)
  local ok, msg, code = no_actorder(mse, scheme)
  if not ok then return nil, msg, code end
  if scheme.type == "float" then
    return nil, ("method mse searches integer grids; use rtn for %s"):format(scheme_m.describe(scheme)), "einval"
  end
  options = complete(mse, options)
  local o = ffi.new("nb_mse_options", {
    rtn = rtn_options(scheme, options), grid = options.grid, max_shrink = options.max_shrink, norm = options.norm,
  })
  return answer(C.nb_mse_quantize(out.codes, out.scales, out.zeros, w, o))
end

M.register(rtn)
M.register(mse)

-- ---- methods written in Lua ------------------------------------------------------------

-- What a user's function returned in place of what it was given to fill. Shapes and
-- dtypes are checked against the storage, then copied into it.
local function take(name, what, got, into)
  if got == nil or got == into then return true end
  if not ffi.istype(tensor.type, got) then
    return nil, ("%s: %s must be a tensor, found %s"):format(name, what, tensor.found(got))
  end
  if got:type() ~= into:type() or got.ndim ~= 2 or got:size(1) ~= into:size(1) or got:size(2) ~= into:size(2) then
    return nil, ("%s: %s: expected %s [%d×%d], found %s [%s]"):format(name, what, into:type(), into:size(1),
      into:size(2), got:type(), table.concat(got:size(), "×"))
  end
  return (answer(C.nb_tensor_copy(into, got)))
end

-- A tile of the user's: w as float32, scales as float32 to fill; the function's
-- results, returned or filled in, are checked before they count.
local function function_tile(method, f)
  return function(out, w, scheme, options)
    if scheme.type == "float" then
      return nil, ("%s: a function fills integer codes; use method = \"rtn\" for %s"):format(method.name,
        scheme_m.describe(scheme)), "einval"
    end
    if w:type() ~= "f32" then w = w:cast "f32" end
    -- LuaJIT takes some NaN bits for other types: a loop over hostile weights must not meet them.
    local bad = tonumber(C.nb_count_nonfinite(w))
    if bad > 0 then return nil, ("%s: %d weights are NaN or infinite"):format(method.name, bad), "eformat" end
    local scales = out.scales:type() == "f32" and out.scales or tensor.new("f32", out.scales:size())
    local dtype = out.scales.dtype
    local given = {
      codes = out.codes, scales = scales, zeros = out.zeros, n = out.n, k = out.k, groups = out.scales:size(2),
      group = scheme.strategy == "group" and scheme.group or out.k,
      round = function(x) return C.nb_round_scale(x, dtype) end,
    }
    local ok, got = pcall(f, w, scheme, options or {}, given)
    if not ok then
      if got == "interrupted" then error(got, 0) end
      return nil, ("%s: %s"):format(method.name, tostring(got)), "einval"
    end
    if got ~= nil and type(got) ~= "table" then
      return nil, ("%s: expected nothing or a table {codes=, scales=, zeros=}, found a %s"):format(method.name,
        type(got)), "einval"
    end
    got = got or {}
    if got.zeros ~= nil and not out.zeros then
      return nil, ("%s: zeros were returned, but the scheme is symmetric"):format(method.name), "einval"
    end
    for _, what in ipairs { "codes", "scales", "zeros" } do
      local done, msg = take(method.name, what, got[what], given[what])
      if not done then return nil, msg, "einval" end
    end
    if scales ~= out.scales then must(C.nb_cast(out.scales, scales, 0)) end
    local fine, msg, code = answer(C.nb_quant_check(out.codes, out.scales, out.zeros, scheme.bits))
    if not fine then return nil, method.name .. ": " .. msg, code end
    return true
  end
end

--- method(which [, options]) -> method | nil, msg
-- which: a registered name (default "rtn"), a method, or a function
--   function(w, scheme, options, out)
-- w: f32 [n,k]; options: the recipe's table; out: {codes = u8 [n,k], scales = f32 [n,groups], zeros = u8
-- [n,groups] or nil, n=, k=, groups=, group= (columns a group), round = function(x): x as the scales' dtype
-- stores it}. It fills out, or returns {codes=, scales=, zeros=} of the same dtypes and shapes. Codes are
-- unsigned: (code - zero) * scale is the weight, zero = 2^(bits-1) when symmetric. It sees whole rows, maybe
-- not all of them. options are checked against the method's schema; the message says which are known.
function M.method(which, options)
  if which == nil then which = "rtn" end
  local method = which
  if type(which) == "string" then
    method = M.methods[which]
    if not method then
      local names = {}
      for name in pairs(M.methods) do names[#names + 1] = name end
      table.sort(names)
      return nil, ("unknown method %q%s"):format(which, text.did_you_mean(which, names))
    end
  elseif type(which) == "function" then
    jit.on(which, true) -- a recipe is loaded with its functions interpreted
    local info = debug.getinfo(which, "S")
    method = { name = ("function %s:%d"):format(info.short_src:match "[^/]*$", info.linedefined),
               title = "a Lua function", row_local = true, user = true }
    method.tile = function_tile(method, which)
  elseif type(which) ~= "table" or type(which.tile) ~= "function" then
    return nil, ("a method is a name, a method or a function, found a %s"):format(type(which))
  end
  local ok, msg = complete(method, options)
  if not ok then return nil, msg end
  return method
end

--- tile(method, out, w, scheme, options [, {order=, whole=}]) -> true | nil, msg, code
-- method.tile, for schemes in activation order (actorder = "group") on columns in `order` (actorder.order), after which
-- out.g_idx tells their groups. whole: as method.tile takes it.
function M.tile(method, out, w, scheme, options, o)
  if o and o.order and scheme.actorder == "group" then
    return require("nibble.actorder").tile(method, out, w, scheme, options, o.order, o.whole)
  end
  return method.tile(out, w, scheme, options, o and o.whole)
end

--- row_local(method, scheme) -> whether tiles of rows may be quantized one by one: not when the whole
-- tensor shares one scale.
-- (FP8's one scale and NVFP4's global one come from a first pass: see quant_float.)
function M.row_local(method, scheme)
  return method.row_local and (scheme.strategy ~= "tensor" or scheme.type == "float" and not method.user)
end

-- ---- whole weights -----------------------------------------------------------------------

local float = { f32 = true, bf16 = true, f16 = true }

local function fail(msg, code, level)
  if code == "einval" then error(msg, level + 1) end
  return nil, msg, code
end

-- Weights that a Lua function sees at once: as float32 they stay in the caches, and Ctrl-C is heard between two tiles,
-- because a compiled loop hears nothing.
local USER_TILE = 256 * 1024

-- M.tile of a whole weight: of a user's function tile by tile, where rows can be quantized one by one.
local function in_tiles(method, q, w, scheme, options, o)
  if not (method.user and M.row_local(method, scheme)) or o.order then return M.tile(method, q, w, scheme, options, o) end
  local rows = math.max(1, math.floor(USER_TILE / q.k))
  for a = 1, q.n, rows do
    nffi.stop_check()
    local b = math.min(q.n, a + rows - 1)
    local ok, msg, code = M.tile(method, q:rows(a, b), w:rows(a, b), scheme, options, o)
    if not ok then return nil, q.n > rows and ("rows %d-%d: %s"):format(a, b, msg) or msg, code end
  end
  return true
end

-- Storage for w's codes where w is, on its device too | nil, msg, code
local function storage(scheme, w, scale_dtype)
  local n, k = w:size(1), w:size(2)
  if not tensor.on_device(w) then return scheme_m.quantized(scheme, n, k, scale_dtype) end
  local cuda, msg, code = require "nibble.cuda", nil, nil
  local ok, q = pcall(scheme_m.quantized, scheme, n, k, scale_dtype, nil, function(dtype, shape)
    local t
    t, msg, code = cuda.new(w:where(), dtype, shape)
    return t or error(msg, 0)
  end)
  if ok then return q end
  if not msg then error(q, 0) end
  return nil, msg, code
end

--- quantize(w, scheme [, {method="rtn", options={…}, scale_dtype=, importance=}]) -> Quantized | nil, msg, code
-- w: f32, bf16 or f16 [n,k], or that on a device, where codes, scales and zeros then lie too (method "rtn" alone);
-- scheme: a name or a table (scheme.parse); method: see method(); scale_dtype:
-- f32, bf16 or f16, default the scheme's, else w's; importance: [k], for actorder = "group" (actorder.order). NaN or Inf
-- in w and scales that don't fit their dtype are nil, msg; a group size that doesn't divide K, or a wrong option, is an
-- error.
function M.quantize(w, scheme, opts)
  opts = opts or {}
  if not tensor.is_any(w) then error("quantize: expected a tensor, found " .. tensor.found(w), 2) end
  if not float[w:type()] or w.ndim ~= 2 then
    error(("quantize: expected f32, bf16 or f16 [n×k], found %s [%s]"):format(w:type(),
      table.concat(w:size(), "×")), 2)
  end
  scheme = scheme_m.parse(scheme)
  local method, why = M.method(opts.method, opts.options)
  if not method then error(why, 2) end
  if tensor.on_device(w) and (method ~= rtn or opts.importance) then
    error(('quantize: %s runs in the computer\'s memory only; on a device there is method = "rtn", and w:to "cpu" gives '
      .. "a copy"):format(opts.importance and "order by importance" or "method " .. method.name), 2)
  end
  local k = w:size(2)
  local group = scheme.group > 0 and scheme.group or k
  if group > 0 and k % group ~= 0 then
    error(("quantize: K = %d is not a multiple of the group size %d; choose a group size that divides K, or -1 "
      .. "for one scale a row"):format(k, group), 2)
  end
  local q, msg, code = storage(scheme, w, opts.scale_dtype or scheme.scale_dtype or w:type())
  if not q then return nil, msg, code end
  local order = opts.importance and require("nibble.actorder").order(opts.importance)
  local ok
  ok, msg, code = in_tiles(method, q, w, scheme, (complete(method, opts.options)), { order = order })
  if not ok then return fail(msg, code, 2) end
  return q
end

local scheme_keys = { scheme = true, group = true, symmetric = true, strategy = true, scale_dtype = true,
                      actorder = true, block = true, activations = true }

--- of_tensor(w, {scheme="W4A16", group=128, method="rtn", …}) -> Quantized | nil, msg, code
-- t:quantize{…} is this: the scheme's fields, the method and the method's options in one table.
function M.of_tensor(w, t)
  if type(t) == "string" then t = { scheme = t } end
  if type(t) ~= "table" or t.scheme == nil then
    error('quantize: name a scheme, as in w:quantize{scheme = "W4A16", group = 128, method = "rtn"}', 2)
  end
  local fields, options = {}, {}
  for key, value in pairs(t) do
    if scheme_keys[key] then
      if key ~= "scheme" then fields[key] = value end
    elseif key ~= "method" and key ~= "importance" then options[key] = value end
  end
  local ok, scheme = pcall(scheme_m.parse, t.scheme, fields)
  if not ok then error((tostring(scheme):gsub("^[^:]+:%d+: ", "")), 2) end
  local results = { pcall(M.quantize, w, scheme, { method = t.method, options = options,
    importance = t.importance }) }
  if not results[1] then error((tostring(results[2]):gsub("^[^:]+:%d+: ", "")), 2) end
  return unpack(results, 2, 4)
end

-- ---- errors --------------------------------------------------------------------------------

--- add_error(sums, q, w): adds the error of a Quantized tile against w (f32, bf16 or f16, the same rows) to
-- sums, a table that starts empty. Tiles come in order.
function M.add_error(sums, q, w)
  if not sums.c then sums.c = ffi.new "nb_quant_sums" end
  if q.scheme.type == "float" then
    local dequantized = q:dequantize "f32"
    must(C.nb_quant_error_of(sums.c, dequantized, w))
    dequantized:free()
  else
    must(C.nb_quant_error(sums.c, q.codes, q.scales, q.zeros, q.g_idx, q.scheme.bits, w))
  end
end

--- finish_error(sums) -> {mse=, sqnr_db=, rel=, max_abs=, worst_row=, worst_row_share=}
-- rel: sqrt(error² / weight²); worst_row is 1-based, worst_row_share its part of the squared error; sqnr_db
-- is math.huge where nothing was lost.
function M.finish_error(sums)
  local c = sums.c
  if not c or c.numel == 0 then return { mse = 0, sqnr_db = math.huge, rel = 0, max_abs = 0 } end
  local lost = c.error2 > 0
  return {
    mse = c.error2 / tonumber(c.numel),
    sqnr_db = lost and 10 * math.log10(c.weight2 / c.error2) or math.huge,
    rel = lost and math.sqrt(c.error2 / c.weight2) or 0,
    max_abs = c.max_abs,
    worst_row = lost and tonumber(c.worst_row) + 1 or nil,
    worst_row_share = lost and c.worst_error2 / c.error2 or nil,
  }
end

--- error_of(q, w) -> finish_error's table for a whole weight.
function M.error_of(q, w)
  local sums = {}
  M.add_error(sums, q, w)
  return M.finish_error(sums)
end

return M
