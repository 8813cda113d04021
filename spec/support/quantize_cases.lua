-- quantize_cases: nb_device_rtn_quantize, nb_device_float_quantize and the activations' beside the CPU's: every scheme,
-- dtype, range and arithmetic on small odd shapes. Each function returns how many cases it tried and a list of what
-- differed; it runs where the driver is the emulator (on_device.run).
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local emulator = require "spec.support.emulator"
local on_device = require "spec.support.on_device"
local weights = require "spec.support.weights"

local M = {}

local dtypes = { "f32", "bf16", "f16" }
local orders = { 0, 1, 2, 3, 12345 }

local list = {}
list.__index = list
local function new_list() return setmetatable({ tried = 0, wrong = {} }, list) end

-- Each case in the next order of threads.
function list:try(name, ...)
  self.tried = self.tried + 1
  emulator.order(orders[self.tried % #orders + 1])
  local why = on_device.same(...)
  if why then self.wrong[#self.wrong + 1] = ("%s, order %d: %s"):format(name, orders[self.tried % #orders + 1], why) end
end

function list:kind() return weights.kinds[self.tried % #weights.kinds + 1] end

function list:__tostring()
  local shown = {}
  for i = 1, math.min(#self.wrong, 5) do shown[i] = self.wrong[i] end
  return ("%d tried, %d wrong\n%s"):format(self.tried, #self.wrong, table.concat(shown, "\n"))
end

-- ---- round to nearest -------------------------------------------------------------------

-- n, k, group: within a lane, some lanes, a warp, a block of threads; not vectors; one scale.
local shapes = {
  { 1, 8, 8 }, { 3, 32, 16 }, { 5, 24, -1 }, { 2, 20, 5 }, { 3, 7, -1 }, { 4, 96, 32 }, { 2, 256, 128 }, { 3, 384, 96 },
  { 1, 1032, -1 }, { 2, 2056, -1 }, { 3, 3, 1 }, { 7, 3, 0 }, { 2, 72, 0 }, { 1, 2100, 0 }, { 3, 64, 64 }, { 2, 1000, 500 },
}

function M.rtn_case(cases, w, o)
  local n, k = w:size(1), w:size(2)
  local group = o.group > 0 and o.group or k
  local groups = o.group == 0 and 1 or math.floor(k / group)
  local symmetric = o.symmetric ~= false
  cases:try(("%s [%d×%d] %d bits, group %d, %s, %s, %s scales, %s"):format(w:type(), n, k, o.bits, o.group,
    symmetric and "symmetric" or "asymmetric", o.range or "FULL", o.scales or w:type(), o.arithmetic or "F32"),
    "rtn_quantize", { on_device.poisoned("u8", { n, k }), on_device.poisoned(o.scales or w:type(), { n, groups }),
      not symmetric and on_device.poisoned("u8", { n, groups }) }, w,
    ffi.new("nb_rtn_options", { bits = o.bits, symmetric = symmetric and 1 or 0, group = o.group,
      range = C["NB_RANGE_" .. (o.range or "FULL")], arithmetic = C["NB_ARITHMETIC_" .. (o.arithmetic or "F32")] }))
end

--- rtn(passes): dtypes of weights and scales × symmetry × ranges × arithmetics, that often, with bits, shapes and values
-- in turn
function M.rtn(passes)
  local cases = new_list()
  local bits = { 4, 8, 2, 4, 3, 8, 5, 6, 7 }
  local function try(dtype, scales, symmetric, range, arithmetic)
    local i = cases.tried
    local n, k, group = unpack(shapes[i % #shapes + 1])
    local w = weights.make(cases:kind(), dtype, n, k, i)
    M.rtn_case(cases, w, { bits = bits[i % #bits + 1], group = group, symmetric = symmetric, range = range, scales = scales,
      arithmetic = arithmetic })
  end
  for _ = 1, passes do
    for _, dtype in ipairs(dtypes) do
      for _, symmetric in ipairs { true, false } do
        for _, range in ipairs { "FULL", "NARROW", "TIGHT" } do
          for _, scales in ipairs(dtypes) do try(dtype, scales, symmetric, range, "F32") end
          try(dtype, dtype, symmetric, range, "DTYPE")
        end
      end
    end
  end
  return cases
end

--- rtn_large(): blocks that threads of several warps share, again and again, and rows beyond what they hold; more groups than
-- teams; every order
function M.rtn_large()
  local cases = new_list()
  for _, c in ipairs { { "bf16", 200, 1056, -1 }, { "f16", 1, 17000, -1 }, { "f32", 2, 9000, -1 }, { "f16", 130, 512, 16 },
                       { "f32", 40, 1031, -1 }, { "f16", 2, 136000, 0 } } do
    local w = weights.make("sizes", c[1], c[2], c[3], 7)
    weights.set(w, c[2] - 1, math.floor(0.45 * c[3]), 999)
    for _ = 1, c[1] == "bf16" and #orders or 1 do
      M.rtn_case(cases, w, { bits = 4, group = c[4], symmetric = false })
    end
  end
  return cases
end

--- rtn_failures(): NaN, Inf, scales too large; the first one is named
function M.rtn_failures()
  local cases = new_list()
  for _, dtype in ipairs(dtypes) do
    for _, group in ipairs { 8, -1, 0 } do
      local w = weights.make("sizes", dtype, 5, 24, 3)
      weights.set(w, 4, 23, 0 / 0)
      M.rtn_case(cases, w, { bits = 4, group = group })
      weights.set(w, 2, 9, -1 / 0)
      weights.set(w, 2, 13, 0 / 0)
      M.rtn_case(cases, w, { bits = 8, group = group, symmetric = false })
      weights.set(w, 0, 0, 1 / 0)
      M.rtn_case(cases, w, { bits = 4, group = group, arithmetic = "DTYPE" })
    end
    local large = weights.make("sizes", dtype, 3, 16, 4)
    weights.set(large, 1, 8, dtype == "f16" and 65504 or 1e38)
    weights.set(large, 2, 1, dtype == "f16" and -65504 or -3.3e38)
    for _, scales in ipairs(dtypes) do
      M.rtn_case(cases, large, { bits = 2, group = 8, scales = scales, range = "NARROW" })
      M.rtn_case(cases, large, { bits = 2, group = 0, scales = scales, symmetric = false })
    end
  end
  return cases
end

-- ---- small floats ---------------------------------------------------------------------------

local blocks = { -- rows, columns, n, k
  { 1, 16, 3, 32 }, { 1, 32, 2, 96 }, { 1, 8, 5, 40 }, { 1, 5, 2, 18 }, { 1, 128, 3, 200 }, { 24, 40, 50, 72 }, { 128, 128, 130, 136 },
  { 1, 1032, 2, 1032 }, { 3, 7, 7, 15 }, { 1, 3, 1, 3 }, { 2, 600, 5, 1200 }, { 1, 2100, 3, 4200 }, { 9, 4, 3, 2 },
}

local function float_case(cases, w, o)
  local n, k = w:size(1), w:size(2)
  local scales = o.given or on_device.poisoned(o.scales, { math.ceil(n / o.rows), math.ceil(k / o.columns) })
  cases:try(("%s [%d×%d] %s under %s of %d×%d, global %g, %s, %s%s"):format(w:type(), n, k, o.codes, o.scales, o.rows, o.columns,
    o.global or 0, o.arithmetic or "F32", o.rule or "CT", o.given and ", given" or ""),
    "float_quantize", { on_device.poisoned(o.codes, { n, k }), scales }, w,
    ffi.new("nb_float_options", { rows = o.rows, columns = o.columns, given = o.given and 1 or 0, global = o.global or 0,
      arithmetic = C["NB_ARITHMETIC_" .. (o.arithmetic or "F32")], rule = C["NB_FLOAT_" .. (o.rule or "CT")] }))
end
M.float_case = float_case

local kinds = { -- codes, scales, rule
  { "f8_e4m3", "f32", "CT" }, { "f8_e4m3", "bf16", "CT" }, { "f8_e4m3", "f16", "CT" }, { "f8_e4m3", "f8_e8m0", "CT" },
  { "f8_e4m3", "f8_e8m0", "VLLM" }, { "u8", "f8_e4m3", "CT" }, { "u8", "f8_e4m3", "VLLM" }, { "u8", "f8_e8m0", "CT" },
  { "u8", "f8_e8m0", "VLLM" },
}
local globals = { 1, 2688, 0.37, 1e-30, 1e30, 3e38, 1e-38 }

--- floats(passes): dtypes × kinds of codes and scales × arithmetics, that often, with blocks, values and global scales in turn
function M.floats(passes)
  local cases = new_list()
  for _ = 1, passes do
    for _, dtype in ipairs(dtypes) do
      for _, kind in ipairs(kinds) do
        for _, arithmetic in ipairs { "F32", "DTYPE" } do
          local plain = kind[2] == "f32" or kind[2] == "bf16" or kind[2] == "f16"
          local i = cases.tried
          local b = blocks[i % #blocks + 1]
          local w = weights.make(cases:kind(), dtype, b[3], b[4], i)
          float_case(cases, w, { codes = kind[1], scales = plain and arithmetic == "DTYPE" and dtype or kind[2], rule = kind[3],
            rows = b[1], columns = b[2], arithmetic = arithmetic, global = globals[i % #globals + 1] })
        end
      end
    end
  end
  return cases
end

--- floats_given(): codes on scales that are there, whatever they hold: 0, negative, NaN, tiny, huge; Inf is refused
function M.floats_given()
  local cases = new_list()
  for _, dtype in ipairs(dtypes) do
    for _, kind in ipairs(kinds) do
      for _, arithmetic in ipairs { "F32", "DTYPE" } do
        local plain = kind[2] == "f32" or kind[2] == "bf16" or kind[2] == "f16"
        local scales = nb.tensor(plain and arithmetic == "DTYPE" and dtype or kind[2], { 12, 3 })
        if plain then
          local values = { 1, 0.1, -0.3, 0, 2 ^ -20, -0.0, 3e4, 0 / 0, 1e-7, 448, 6e-8, 0.77 }
          for i = 1, scales:numel() do scales:set(i, values[i % #values + 1] * (i > 18 and dtype ~= "f16" and 1e30 or 1)) end
        else
          local p = ffi.cast("uint8_t *", scales.data)
          for i = 0, scales:numel() - 1 do p[i] = i * 7 % 256 end
        end
        local w = weights.make(cases:kind(), dtype, 12, 48, cases.tried)
        for c = 0, 47 do weights.set(w, 3, c, c % 2 == 0 and 0 or 1e-4) end
        local o = { codes = kind[1], scales = scales:type(), rule = kind[3], rows = 1, columns = 16, arithmetic = arithmetic,
                    global = 1.7, given = scales }
        float_case(cases, w, o)
        if plain and scales:type() ~= "f16" then
          scales:set(20, 1 / 0)
          float_case(cases, w, o)
        end
      end
    end
  end
  return cases
end

--- float_failures(): NaN, Inf and scales too large; absmax of the same tensors
function M.float_failures()
  local cases = new_list()
  for _, dtype in ipairs(dtypes) do
    for _, kind in ipairs(kinds) do
      local w = weights.make("sizes", dtype, 4, 40, 5)
      weights.set(w, 3, 39, 0 / 0)
      local o = { codes = kind[1], scales = kind[2], rule = kind[3], rows = 1, columns = 8, global = 3 }
      float_case(cases, w, o)
      weights.set(w, 1, 7, -1 / 0)
      float_case(cases, w, o)
    end
    local w = weights.make("huge", dtype, 3, 32, 6)
    float_case(cases, w, { codes = "f8_e4m3", scales = "f16", rows = 1, columns = 32 })
  end
  return cases
end

-- ---- activations ----------------------------------------------------------------------------

--- activations(): int8 and fp8, by token, tensor and a scale that is there, of odd shapes, with NaN and Inf
function M.activations()
  local cases = new_list()
  for _, dtype in ipairs(dtypes) do
    local halves = nb.tensor("f32", { 1, 8 }, { 127, 0.5, -0.5, 1.5, -2.5, 126.5, -126.5, 3 }):cast(dtype)
    cases:try("halves", "act_quant_int8", { on_device.poisoned("i8", { 1, 8 }), on_device.poisoned("f32", { 1, 1 }) }, halves, 1)
    for _, shape in ipairs { { 1, 16 }, { 3, 40 }, { 2, 7 }, { 5, 1032 }, { 1, 3000 }, { 4, 0 }, { 0, 8 }, { 130, 8 } } do
      local m, k = unpack(shape)
      for _, strange in ipairs { false, "NaN and Inf", "Inf" } do
        local x = weights.make(cases:kind(), dtype, m, k, cases.tried)
        if strange and m * k > 0 then
          weights.set(x, m - 1, k - 1, strange == "Inf" and 1 or 0 / 0)
          weights.set(x, math.floor(m / 2), 1, 1 / 0)
          weights.set(x, 0, 3, -1 / 0)
        end
        local name = ("%s [%d×%d]%s"):format(dtype, m, k, strange and " with " .. strange or "")
        local rows, one = on_device.poisoned("f32", { m, 1 }), on_device.poisoned("f32", { 1 })
        cases:try(name .. " int8", "act_quant_int8", { on_device.poisoned("i8", { m, k }), rows }, x, 0.75)
        rows = on_device.poisoned("f32", { m, 1 })
        cases:try(name .. " fp8 token", "act_quant_fp8", { on_device.poisoned("f8_e4m3", { m, k }), rows }, x, C.NB_ACT_TOKEN)
        cases:try(name .. " fp8 tensor", "act_quant_fp8", { on_device.poisoned("f8_e4m3", { m, k }), one }, x, C.NB_ACT_TENSOR)
        for _, scale in ipairs { 0.013, 0, -3, 1e-38, 1 / 0, 0 / 0 } do
          local given = nb.tensor("f32", { 1 }, { scale })
          cases:try(name .. " fp8 static " .. scale, "act_quant_fp8", { on_device.poisoned("f8_e4m3", { m, k }), given }, x,
            C.NB_ACT_STATIC)
        end
      end
    end
  end
  return cases
end

return M
