-- The experts' activation functions against their formulas in float64, on every path, in
-- every form: halves, pairs, apart, in place, rounded.
local nb = require "nibble"
local C = require("nibble.ffi").C
local moe = nb.moe

local function values(n, seed)
  math.randomseed(seed)
  local out = {}
  for i = 1, n do out[i] = (math.random() - 0.5) * (i % 3 == 0 and 40 or 6) end
  for i, v in ipairs { 0, -0.0, 7, -7, 1e-20, 88, -88, 30000, -30000, 1e-3 } do if i <= n then out[i] = v end end
  return out
end

-- ln Gamma is not needed: erfc by its series or continued fraction, in double.
local function erfc(z)
  local x = math.abs(z)
  local y
  if x < 3 then
    local term, sum, k = x, x, 0
    repeat
      k = k + 1
      term = -term * x * x / k
      sum = sum + term / (2 * k + 1)
    until math.abs(term) < 1e-18 * math.abs(sum) or k > 200
    y = 1 - 2 / math.sqrt(math.pi) * sum
  else
    local f = 0
    for k = 60, 1, -1 do f = k / 2 / (x + f) end
    y = math.exp(-x * x) / math.sqrt(math.pi) / (x + f)
  end
  return z < 0 and 2 - y or y
end

local function sigmoid(x) return 1 / (1 + math.exp(-x)) end
local function silu(x) return x * sigmoid(x) end
local function gelu(x) return x / 2 * erfc(-x / math.sqrt(2)) end
local function gelu_tanh(x)
  local y = math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3)
  return x * sigmoid(2 * y)
end
local function clamp(x, l) return math.max(-l, math.min(x, l)) end

local function oai(limit, alpha, beta)
  return function(g, u)
    local gc = math.min(g, limit)
    return gc * sigmoid(alpha * gc) * (clamp(u, limit) + beta)
  end
end

local cases = {
  { "silu", {}, function(g, u) return silu(g) * u end },
  { "silu", { limit = 2.5 }, function(g, u) return silu(math.min(g, 2.5)) * clamp(u, 2.5) end },
  { "gelu", {}, function(g, u) return gelu(g) * u end },
  { "gelu_tanh", {}, function(g, u) return gelu_tanh(g) * u end },
  { "swigluoai", {}, oai(7, 1.702, 1), pairs = true },
  { "swigluoai_uninterleave", { limit = 7 }, oai(7, 1, 0) },
  { "swigluoai_uninterleave", { limit = 3, alpha = 1.702, beta = 1 }, oai(3, 1.702, 1) },
  { "swiglustep", {}, function(g, u) return math.min(silu(g), 7) * clamp(u, 7) end },
  { "silu_no_mul", {}, silu, plain = true },
  { "gelu_no_mul", {}, gelu, plain = true },
  { "gelu_tanh_no_mul", {}, gelu_tanh, plain = true },
  { "relu2_no_mul", {}, function(x) return math.max(x, 0) ^ 2 end, plain = true },
}

-- h [rows, 2n] or [rows, n] of gates g and ups u (flat, rows·n each).
local function arranged(case, g, u, rows, n)
  if case.plain then return nb.tensor("f32", { rows, n }, g) end
  local h = nb.tensor("f32", { rows, 2 * n })
  for r = 0, rows - 1 do
    for i = 0, n - 1 do
      local a, b = i + 1, n + i + 1
      if case.pairs then a, b = 2 * i + 1, 2 * i + 2 end
      h:set(r * 2 * n + a, g[r * n + i + 1])
      h:set(r * 2 * n + b, u[r * n + i + 1])
    end
  end
  return h
end

local function copy(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return out
end

local function f32(x) return nb.tensor("f32", { 1 }, { x }):get(1) end

describe("moe.activation", function()
  for _, case in ipairs(cases) do
    local name = case[1] .. (case[2].limit and (" with limit %g"):format(case[2].limit) or "")
    it(("FWD-06: %s is its formula in float64"):format(name), function()
      for _, shape in ipairs { { 1, 1 }, { 3, 7 }, { 2, 8 }, { 2, 530 } } do
        local rows, n = shape[1], shape[2]
        local g, u = values(rows * n, 5), values(rows * n, 6)
        local h = arranged(case, g, u, rows, n)
        C.nb_cpu_limit(0)
        local portable = moe.activation(case[1], h, case[2])
        C.nb_cpu_limit(-1)
        local y = moe.activation(case[1], h, case[2])
        assert.is_true(portable:equal(y), "the paths differ")
        assert.same({ rows, n }, y:size())
        for i = 1, rows * n do
          local want, found = case[3](f32(g[i]), f32(u[i])), y:get(i)
          -- The rounding of a gate near the end of exp's range costs more than one of 1.
          local bound = 1e-6 * math.max(1, math.abs(want))
          assert(math.abs(want - found) <= bound, ("%s(%g, %g) = %.9g, expected %.9g"):format(name, g[i], u[i], found, want))
        end
      end
    end)

    it(("FWD-07, FWD-14: %s takes gate and up apart, and may write over its input"):format(name), function()
      local rows, n = 5, 21
      local g, u = values(rows * n, 1), values(rows * n, 2)
      local want = moe.activation(case[1], arranged(case, g, u, rows, n), case[2])
      local o, gate = copy(case[2]), nb.tensor("f32", { rows, n }, g)
      o.out = gate
      if not case.plain then o.up = nb.tensor("f32", { rows, n }, u) end
      if case.pairs then
        assert.error_matches(function() moe.activation(case[1], gate, o) end, "takes gate and up interleaved in one tensor")
      else
        assert.is_true(moe.activation(case[1], gate, o):equal(want))
        assert.is_true(gate:equal(want))
      end
    end)

    it(("FWD-06: %s rounds its input and output where the kernel's are 16 bits wide"):format(name), function()
      local rows, n = 3, 19
      local h = arranged(case, values(rows * n, 3), values(rows * n, 4), rows, n)
      for _, dtype in ipairs { "f16", "bf16" } do
        local o = copy(case[2])
        local want = moe.activation(case[1], h:cast(dtype):cast "f32", o):cast(dtype):cast "f32"
        o.dtype = dtype
        assert.is_true(moe.activation(case[1], h, o):equal(want))
      end
    end)
  end

  it("FWD-06: rounds every pattern as the casts do, subnormal, infinite and too large", function()
    local bits = nb.tensor("u32", { 1, 65536 })
    for i = 0, 65535 do bits:ptr()[i] = i * 65536 + (i * 40503) % 65536 end
    local x = bits:as("f32", { 1, 65536 })
    for _, dtype in ipairs { "f16", "bf16" } do
      local want = x:cast(dtype):cast "f32"
      for _, features in ipairs { 0, -1 } do
        C.nb_cpu_limit(features)
        local y = nb.compute.scale_rows(x:clone(), nb.tensor("f32", { 1 }, { 1 }), dtype)
        local p, q = want:as("u32"):ptr(), y:as("u32"):ptr()
        for i = 0, 65535 do
          local nan = p[i] % 2 ^ 31 > 0x7f800000
          if nan then assert(q[i] % 2 ^ 31 > 0x7f800000) elseif p[i] ~= q[i] then
            error(("%s %08x became %08x, expected %08x"):format(dtype, bits:ptr()[i], q[i], p[i]))
          end
        end
      end
    end
  end)

  it("FWD-06: keeps NaN in a gate and in an up", function()
    for _, case in ipairs(cases) do
      local nan = 0 / 0
      local y = moe.activation(case[1], arranged(case, { nan, 1, 1 }, { 1, nan, 1 }, 1, 3), case[2])
      assert.is_true(y:get(1) ~= y:get(1), case[1])
      if not case.plain then assert.is_true(y:get(2) ~= y:get(2), case[1]) end
      assert.is_true(y:get(3) == y:get(3), case[1])
    end
  end)

  it("FWD-06: errors name the valid functions and what one doesn't take", function()
    local h = nb.tensor("f32", { 1, 4 })
    local function says(msg, name, o, t) assert.error_matches(function() moe.activation(name, t or h, o) end, msg) end
    says('unknown activation "sillu"; known: silu, gelu, gelu_tanh, swigluoai, swigluoai_uninterleave, swiglustep, '
      .. 'silu_no_mul, gelu_no_mul, gelu_tanh_no_mul, relu2_no_mul; did you mean "silu"', "sillu")
    says("activation swigluoai_uninterleave needs a limit", "swigluoai_uninterleave")
    says("activation gelu takes no limit, found 7", "gelu", { limit = 7 })
    says("activation silu takes no alpha and no beta", "silu", { alpha = 2 })
    says("the limit must be above 0, found %-1", "silu", { limit = -1 })
    assert.same(10, #moe.activations())
    assert.is_true(moe.gated "silu")
    assert.is_false(moe.gated "relu2_no_mul")
    assert.error_matches(function() moe.gated "x" end, "unknown activation")
  end)

  it("FWD-07: shape errors show both sizes", function()
    local h = nb.tensor("f32", { 2, 6 })
    assert.error_matches(function() moe.activation("silu", nb.tensor("f32", { 2, 5 })) end,
      "expected an input %[rows, 2I%], found f32 %[2x5%]")
    assert.error_matches(function() moe.activation("silu", h, { out = nb.tensor("f32", { 2, 6 }) }) end,
      "input %[2x6%] and output %[2x6%]; expected as many rows, and an input twice as wide")
    assert.error_matches(function() moe.activation("silu_no_mul", h, { out = nb.tensor("f32", { 2, 3 }) }) end,
      "input %[2x6%] and output %[2x3%]; expected as many rows, and equal widths")
    assert.error_matches(function() moe.activation("silu", h, { out = nb.tensor("f32", { 3, 3 }) }) end, "input %[2x6%] and output %[3x3%]")
    assert.error_matches(function() moe.activation("silu", h, { up = nb.tensor("f32", { 2, 5 }) }) end, "up: expected f32 %[2x6%]")
    assert.error_matches(function() moe.activation("silu_no_mul", h, { up = h }) end, "an up half for a kind that is not gated")
    assert.error_matches(function() moe.activation("silu", h, { out = h:reshape({ 12 }):as("f32", { 2, 3 }) }) end,
      "the output lies over an input twice as wide")
  end)
end)
