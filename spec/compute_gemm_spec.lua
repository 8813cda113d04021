-- y = x Wᵀ + bias against a double-precision model in Lua, at odd sizes, on every
-- path that this processor has.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local C = nffi.C
local compute = nb.compute

local function random(shape, seed)
  math.randomseed(seed)
  local t = nb.tensor("f32", shape)
  local p = t:ptr()
  for i = 0, t:numel() - 1 do p[i] = math.random() - 0.5 end
  return t
end

-- Keeps the upper 16 bits: a bf16 tensor and the same values in f32.
local function as_bf16(t)
  local out, words = nb.tensor("bf16", t:size()), t:as("u16")
  local to = out:as("u16"):ptr()
  for i = 0, t:numel() - 1 do
    to[i] = words:ptr()[2 * i + 1]
    words:ptr()[2 * i] = 0
  end
  return out, t
end

-- f16 of multiples of 1/1024 below 1/2, which f16 holds exactly.
local function as_f16(t)
  local out, p = nb.tensor("f16", t:size()), t:ptr()
  local to = out:as("u16"):ptr()
  for i = 0, t:numel() - 1 do
    local v = math.floor(math.abs(p[i]) * 1024)
    p[i] = (p[i] < 0 and -v or v) / 1024
    local m, e = math.frexp(v / 1024)
    to[i] = v == 0 and 0 or (p[i] < 0 and 0x8000 or 0) + (e + 14) * 1024 + (m * 2 - 1) * 1024
  end
  return out, t
end

local function model(x, w, bias)
  local m, n, k = x:size(1), w:size(1), x:size(2)
  local y, xp, wp = {}, x:ptr(), w:ptr()
  for i = 0, m - 1 do
    for j = 0, n - 1 do
      local sum = bias and bias:get(j + 1) or 0
      for t = 0, k - 1 do sum = sum + xp[i * k + t] * wp[j * k + t] end
      y[i * n + j + 1] = sum
    end
  end
  return y
end

local function close(found, want, bound)
  local p = found:ptr()
  for i = 1, #want do
    local off = math.abs(p[i - 1] - want[i])
    if off > bound or off ~= off then
      error(("element %d is %.9g, expected %.9g"):format(i, p[i - 1], want[i]), 2)
    end
  end
end

local paths = { portable = 0, all = -1 }

describe("compute.gemm", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  for path, features in pairs(paths) do
    -- {m, n, k}: single, odd, past one tile of rows (512), of columns (256), of k (1024)
    for _, s in ipairs { { 1, 1, 1 }, { 3, 5, 7 }, { 2, 259, 33 }, { 517, 3, 18 }, { 4, 6, 1029 }, { 7, 4, 0 } } do
      it(("%d×%d×%d, %s"):format(s[1], s[2], s[3], path), function()
        C.nb_cpu_limit(features)
        local x, w, bias = random({ s[1], s[3] }, 1), random({ s[2], s[3] }, 2), random({ s[2] }, 3)
        for _, narrow in ipairs { function(t) return t, t end, as_bf16, as_f16 } do
          local stored, exact = narrow(w:clone())
          local bound = 1e-6 * (1 + math.sqrt(s[3]))
          close(compute.gemm(nb.tensor("f32", { s[1], s[2] }), x, stored, bias), model(x, exact, bias), bound)
          close(compute.gemm(nb.tensor("f32", { s[1], s[2] }), x, stored), model(x, exact), bound)
        end
      end)
    end

    it("gives the same bits on any number of threads, " .. path, function()
      C.nb_cpu_limit(features)
      local x, w = random({ 600, 40 }, 4), random({ 300, 40 }, 5)
      C.nb_threads_set(1)
      local want = compute.gemm(nb.tensor("f32", { 600, 300 }), x, w)
      for _, threads in ipairs { 2, 5 } do
        C.nb_threads_set(threads)
        assert.is_true(compute.gemm(nb.tensor("f32", { 600, 300 }), x, w):equal(want))
      end
    end)
  end

  it("says what doesn't fit", function()
    local x, w, y = nb.tensor("f32", { 2, 3 }), nb.tensor("f32", { 4, 5 }), nb.tensor("f32", { 2, 4 })
    assert.error_matches(function() compute.gemm(y, x, w) end, "gemm: w: expected any dtype %[%*x3%], found f32 %[4x5%]")
    assert.error_matches(function() compute.gemm(y, x, nb.tensor("i8", { 4, 3 })) end, "gemm: w: expected f32, bf16 or f16")
    assert.error_matches(function() compute.gemm(x, x, nb.tensor("f32", { 4, 3 })) end, "gemm: y: expected f32 %[2x4%]")
    assert.error_matches(function() compute.gemm(y, x, nb.tensor("f32", { 4, 3 }), x) end, "gemm: bias: expected f32 %[4%]")
  end)

  it("stops when asked to", function()
    local x, y = random({ 8, 4 }, 6), nb.tensor("f32", { 8, 8 })
    C.nb_stop_request()
    local ok, msg = pcall(compute.gemm, y, x, x)
    C.nb_stop_clear()
    assert.is_false(ok)
    assert.equal("interrupted", msg)
  end)

  it("fails cleanly without memory for scratch", function()
    local x, w, y = random({ 2, 4 }, 6), nb.tensor("bf16", { 3, 4 }), nb.tensor("f32", { 2, 3 })
    C.nb_debug_fail_alloc(1)
    assert.error_matches(function() compute.gemm(y, x, w) end, "out of memory")
    C.nb_debug_fail_alloc(0)
  end)

  it("names the library, and measures a peak", function()
    assert.matches("%S", compute.blas())
    assert.is_true(compute.peak_flops(1) > 1e8)
  end)
end)
