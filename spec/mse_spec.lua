-- Clipping by search: never worse than round to nearest, the same on every path,
-- and the power it computes itself.
local nb = require "nibble"
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must

local function options(t)
  return ffi.new("nb_mse_options", {
    rtn = { bits = t.bits or 4, symmetric = t.symmetric == false and 0 or 1, group = t.group or -1,
            range = C["NB_RANGE_" .. (t.range or "full"):upper()], arithmetic = t.arithmetic or 0 },
    grid = t.grid or 100, max_shrink = t.max_shrink or 0.8, norm = t.norm or 2,
  })
end

local function storage(w, t)
  local n, k = w:size(1), w:size(2)
  local groups = math.ceil(k / ((t.group or -1) > 0 and t.group or k))
  return { codes = nb.tensor("u8", { n, k }), scales = nb.tensor(t.scales or "f32", { n, groups }),
           zeros = t.symmetric == false and nb.tensor("u8", { n, groups }) or nil }
end

local function mse(w, t)
  local q = storage(w, t)
  local rc = C.nb_mse_quantize(q.codes, q.scales, q.zeros, w, options(t))
  if rc < 0 then return nil, ffi.string(C.nb_error()), ffi.string(C.nb_error_name(rc)) end
  return q
end

local function rtn(w, t)
  local q = storage(w, t)
  must(C.nb_rtn_quantize(q.codes, q.scales, q.zeros, w, options(t).rtn))
  return q
end

-- Sum of |w - dequantized|^norm of one group, in doubles.
local function error_of(q, w, t, row, group)
  local k = w:size(2)
  local size = (t.group or -1) > 0 and t.group or k
  local d = nb.tensor("f32", w:size())
  must(C.nb_dequantize(d, q.codes, q.scales, q.zeros, nil, t.bits))
  local sum, a, b = 0, d:ptr(), w:ptr()
  for i = row * k + group * size, row * k + (group + 1) * size - 1 do
    sum = sum + math.abs(a[i] - b[i]) ^ (t.norm or 2)
  end
  return sum
end

-- Bell-shaped, with an outlier now and then.
local function weight(n, k, seed)
  local t, state = nb.tensor("f32", { n, k }), seed
  local function next()
    state = (state * 1103515245 + 12345) % 2147483648
    return state / 2147483648
  end
  for i = 0, n * k - 1 do
    local v = next() + next() + next() + next() - 2
    t:ptr()[i] = v * (next() < 0.01 and 3 or 1) * 0.02
  end
  return t
end

describe("clipping search", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
    C.nb_stop_clear()
  end)

  it("is never worse than round to nearest, in any group, and mostly better", function()
    local w = weight(8, 256, 5)
    for _, t in ipairs {
      { bits = 4, group = 64 }, { bits = 2, group = 32 }, { bits = 3, group = 128, symmetric = false },
      { bits = 4, group = 32, symmetric = false, norm = 2.4 }, { bits = 3, group = 64, norm = 2.4, range = "narrow" },
      { bits = 4, group = -1, scales = "f16", range = "tight" }, { bits = 8, group = 16, scales = "bf16" },
      { bits = 5, group = 64, norm = 1 }, { bits = 2, group = 256, norm = 4, symmetric = false },
    } do
      local a, b = assert(mse(w, t)), rtn(w, t)
      local better, groups = 0, a.scales:size(2)
      for row = 0, 7 do
        for g = 0, groups - 1 do
          local ea, eb = error_of(a, w, t, row, g), error_of(b, w, t, row, g)
          assert.is_true(ea <= eb * (1 + 1e-6), ("%d bits, group %d: %g > %g"):format(t.bits, t.group, ea, eb))
          if ea < eb * (1 - 1e-6) then better = better + 1 end
        end
      end
      assert.is_true(better > 8 * groups / 3, ("%d bits: only %d of %d groups got better"):format(t.bits, better,
        8 * groups))
    end
  end)

  it("comes near the best of a fine search over all ranges", function()
    local w, t = weight(1, 128, 77), { bits = 3, group = 128 }
    local q, best = assert(mse(w, t)), math.huge
    local p = w:ptr()
    local absmax = 0
    for i = 0, 127 do absmax = math.max(absmax, math.abs(p[i])) end
    for i = 1, 4000 do
      local s, sum = absmax / 3 * i / 4000, 0
      for j = 0, 127 do
        local c = math.max(-4, math.min(3, math.floor(p[j] / s + 0.5)))
        sum = sum + (p[j] - c * s) ^ 2
      end
      best = math.min(best, sum)
    end
    assert.is_true(error_of(q, w, t, 0, 0) <= best * 1.02)
  end)

  -- DESIGN 1.5
  it("gives the same bytes on every path and any number of threads", function()
    for case, shape in ipairs { { 1, 1, -1 }, { 3, 7, -1 }, { 5, 36, 12 }, { 40, 640, 128 }, { 9, 1000, 200 } } do
      local w = weight(shape[1], shape[2], case)
      for _, t in ipairs { { bits = 4 }, { bits = 2, norm = 2.4 }, { bits = 3, symmetric = false, norm = 1.5 },
                           { bits = 8, symmetric = false, scales = "bf16" } } do
        t.group = shape[3]
        C.nb_cpu_limit(0)
        C.nb_threads_set(1)
        local portable = assert(mse(w, t))
        C.nb_cpu_limit(-1)
        C.nb_threads_set(3)
        local fast = assert(mse(w, t))
        assert.is_true(portable.codes:equal(fast.codes))
        assert.is_true(portable.scales:equal(fast.scales))
        assert.is_true(not portable.zeros or portable.zeros:equal(fast.zeros))
      end
    end
  end)

  it("handles zeros, single values and the ends of float32", function()
    local q = assert(mse(nb.tensor("f32", { 2, 16 }), { bits = 4 }))
    assert.same({ 2 ^ -23, 2 ^ -23 }, q.scales:totable())
    for _, v in ipairs { 1e-44, 1e-38, 1, 3e38 } do
      local w = nb.tensor("f32", { 1, 8 })
      w:ptr()[2] = v
      q = assert(mse(w, { bits = 4 }))
      local d = nb.tensor("f32", { 1, 8 })
      must(C.nb_dequantize(d, q.codes, q.scales, nil, nil, 4))
      assert.near(1, d:get(3) / w:get(3), v == 1e-44 and 0.15 or 1e-6)
    end
  end)

  it("shrinks nothing when it may not", function()
    local w, t = weight(4, 64, 9), { bits = 4, max_shrink = 0, range = "narrow" }
    local a, b = assert(mse(w, t)), rtn(w, t)
    assert.is_true(a.scales:equal(b.scales) and a.codes:equal(b.codes))
  end)

  it("refuses what it cannot do, with the numbers", function()
    local w = weight(2, 32, 1)
    local function why(t) return select(2, mse(w, t)) end
    assert.matches("mse: grid = 0, expected 1 to 10000", why { grid = 0 })
    assert.matches("mse: max_shrink = 1, expected 0 or more and less than 1", why { max_shrink = 1 })
    assert.matches("mse: norm = 0.5, expected 1 to 4", why { norm = 0.5 })
    assert.matches("mse: norm = %-?nan", why { norm = 0 / 0 })
    assert.matches("mse: arithmetic must be float32", why { arithmetic = 1 })
    assert.matches("mse: K = 32 is not a multiple of the group size 5", (why { group = 5 } or ""))
    local o = options { group = 0 }
    local q = storage(w, {})
    assert.equal(C.NB_EUNSUPPORTED, C.nb_mse_quantize(q.codes, q.scales, nil, w, o))
    assert.matches("one scale for the whole tensor is not searched", ffi.string(C.nb_error()))
    w:ptr()[40] = 0 / 0
    local bad, msg, code = mse(w, {})
    assert.is_nil(bad)
    assert.equal("eformat", code)
    assert.matches("mse: the weight has NaN in row 1, column 8", msg)
  end)

  it("turns failed allocations into errors and heeds the stop flag", function()
    local w, q = weight(2, 32, 1), storage(weight(2, 32, 1), {})
    C.nb_debug_fail_alloc(1)
    local rc = C.nb_mse_quantize(q.codes, q.scales, nil, w, options {})
    C.nb_debug_fail_alloc(0)
    assert.equal(C.NB_ENOMEM, rc)
    C.nb_stop_request()
    assert.equal(C.NB_EINTR, C.nb_mse_quantize(q.codes, q.scales, nil, w, options {}))
  end)
end)
