-- Dequantization: one rounding of the exact product, column groups, every path alike.
local nb = require "nibble"
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C, must = nffi.C, nffi.must

local function random(seed)
  local state = seed
  return function(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 2147483648 * n)
  end
end

local function bytes(n, k, next, limit)
  local t = nb.tensor("u8", { n, k })
  for i = 0, n * k - 1 do t:ptr()[i] = next(limit) end
  return t
end

-- Scales of any dtype: positive normal bit patterns.
local function scales_of(dtype, n, groups, next)
  local t = nb.tensor(dtype, { n, groups })
  for i = 0, n * groups - 1 do
    if dtype == "f32" then t:ptr()[i] = (next(1000000) + 1) * 1e-7
    else ffi.cast("uint16_t *", t.data)[i] = (dtype == "bf16" and 0x3b00 or 0x1c00) + next(0x400) end
  end
  return t
end

local function dequantize(dtype, codes, scales, zeros, g_idx, bits)
  local out = nb.tensor(dtype, codes:size())
  local rc = C.nb_dequantize(out, codes, scales, zeros, g_idx, bits or 4)
  if rc < 0 then return nil, ffi.string(C.nb_error()), ffi.string(C.nb_error_name(rc)) end
  return out
end

describe("dequantize", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
    C.nb_stop_clear()
  end)

  it("is (code - zero) * scale", function()
    local codes = nb.tensor("u8", { 2, 4 }, { 0, 8, 9, 15, 1, 2, 3, 4 })
    local scales = nb.tensor("f32", { 2, 2 }, { 0.5, 2, 1, 0.1 })
    assert.same({ -4, 0, 2, 14, -7, -6 }, { unpack(assert(dequantize("f32", codes, scales)):totable(), 1, 6) })
    local zeros = nb.tensor("u8", { 2, 2 }, { 0, 15, 2, 3 })
    local w = assert(dequantize("f32", codes, scales, zeros)):totable()
    assert.same({ 0, 4, -12, 0, -1, 0, 0 }, { unpack(w, 1, 7) })
    assert.equal(ffi.new("float[1]", 0.1)[0], w[8])
  end)

  it("takes the group of each column from g_idx", function()
    local codes = nb.tensor("u8", { 1, 5 }, { 9, 9, 9, 9, 9 })
    local scales = nb.tensor("f32", { 1, 3 }, { 1, 2, 3 })
    local g_idx = nb.tensor("i32", { 5 }, { 2, 0, 1, 1, 2 })
    assert.same({ 3, 1, 2, 2, 3 }, assert(dequantize("f32", codes, scales, nil, g_idx)):totable())
  end)

  it("serves the whole tensor from one scale", function()
    local codes = nb.tensor("u8", { 2, 2 }, { 7, 8, 9, 10 })
    assert.same({ -3, 0, 3, 6 }, assert(dequantize("f32", codes, nb.tensor("f32", { 1 }, { 3 }))):totable())
    assert.same({ 0, 3, 6, 9 }, assert(dequantize("f32", codes, nb.tensor("f32", { 1 }, { 3 }),
      nb.tensor("u8", { 1 }, { 7 }))):totable())
  end)

  it("gives the same bytes on every path and any number of threads", function()
    local next = random(3)
    for _, s in ipairs { { 1, 1, 1 }, { 3, 7, 1 }, { 5, 36, 4 }, { 2, 96, 3 }, { 70, 1040, 16 }, { 40, 4096, 32 } } do
      local n, k, groups = s[1], s[2], s[3]
      local codes, zeros = bytes(n, k, next, 256), bytes(n, groups, next, 256)
      local g_idx = nb.tensor("i32", { k })
      for i = 0, k - 1 do g_idx:ptr()[i] = next(groups) end
      for _, stored in ipairs { "f32", "bf16", "f16" } do
        local scales = scales_of(stored, n, groups, next)
        for _, out in ipairs { "f32", "bf16", "f16" } do
          for _, z in ipairs { false, zeros } do
            for _, g in ipairs { false, g_idx } do
              C.nb_cpu_limit(0)
              C.nb_threads_set(1)
              local portable = assert(dequantize(out, codes, scales, z or nil, g or nil, 8))
              C.nb_cpu_limit(-1)
              C.nb_threads_set(3)
              local fast = assert(dequantize(out, codes, scales, z or nil, g or nil, 8))
              assert.is_true(portable:equal(fast), ("[%d×%d] %s to %s"):format(n, k, stored, out))
            end
          end
        end
      end
    end
  end)

  it("carries NaN and infinite scales through, alike on every path", function()
    local codes = bytes(1, 64, random(9), 16)
    for _, stored in ipairs { "f32", "bf16", "f16" } do
      local scales = nb.tensor(stored, { 1, 4 })
      local p = stored == "f32" and scales:as("u32"):ptr() or ffi.cast("uint16_t *", scales.data)
      for i, v in ipairs(({ f32 = { 0x7fc12345, 0xff812345, 0x7f800000, 0xff800000 },
                            bf16 = { 0x7fc1, 0xff81, 0x7f80, 0xff80 },
                            f16 = { 0x7e11, 0xfc11, 0x7c00, 0xfc00 } })[stored]) do p[i - 1] = v end
      for _, out in ipairs { "f32", "bf16", "f16" } do
        C.nb_cpu_limit(0)
        local portable = assert(dequantize(out, codes, scales))
        C.nb_cpu_limit(-1)
        local fast = assert(dequantize(out, codes, scales))
        for i = 0, 63 do -- NaN's payload is the processor's affair, being NaN is not
          local a, b
          if out == "f32" then a, b = portable:ptr()[i], fast:ptr()[i]
          else
            a, b = ffi.cast("uint16_t *", portable.data)[i], ffi.cast("uint16_t *", fast.data)[i]
            local inf = out == "bf16" and 0x7f80 or 0x7c00
            if bit.band(a, 0x7fff) > inf then a = 0 / 0 end
            if bit.band(b, 0x7fff) > inf then b = 0 / 0 end
          end
          assert.is_true(a == b or (a ~= a and b ~= b), ("%s to %s, %d: %s, %s"):format(stored, out, i, a, b))
        end
      end
    end
  end)

  it("refuses what doesn't fit, with the numbers", function()
    local codes, scales = nb.tensor("u8", { 2, 10 }), nb.tensor("f32", { 2, 3 })
    local function why(...) return select(2, dequantize(...)) end
    assert.matches("K = 10 does not divide into the scales' 3 groups", why("f32", codes, scales))
    assert.matches("out: expected f32, bf16 or f16, found i32", why("i32", codes, scales))
    assert.matches("scales: expected f32, bf16 or f16, found u8", why("f32", codes, codes))
    assert.matches("0 bits, expected 1 to 8", why("f32", codes, scales, nil, nil, 0))
    assert.matches("zeros: expected u8 %[2x3%]", why("f32", codes, scales, nb.tensor("u8", { 2, 2 })))
    assert.matches("scales: expected any dtype %[2x%*%]", why("f32", codes, nb.tensor("f32", { 3, 2 })))
    assert.matches("g_idx: expected i32 %[10%], found i32 %[9%]",
      why("f32", codes, scales, nil, nb.tensor("i32", { 9 })))
    local g_idx = nb.tensor("i32", { 10 })
    g_idx:ptr()[4] = 3
    local out, msg, code = dequantize("f32", codes, scales, nil, g_idx)
    assert.is_nil(out)
    assert.equal("eformat", code)
    assert.equal("dequantize: g_idx[4] is 3, expected 0 to 2, the groups that the scales have", msg)
    g_idx:ptr()[4] = -1
    assert.matches("g_idx%[4%] is %-1", why("f32", codes, scales, nil, g_idx))
  end)

  it("turns failed allocations into errors and heeds the stop flag", function()
    local codes, scales = nb.tensor("u8", { 2, 8 }), nb.tensor("f32", { 2, 2 })
    local out = nb.tensor("f32", { 2, 8 })
    C.nb_debug_fail_alloc(1)
    assert.equal(C.NB_ENOMEM, C.nb_dequantize(out, codes, scales, nil, nil, 4))
    C.nb_debug_fail_alloc(0)
    assert.equal("dequantize: out of memory", ffi.string(C.nb_error()))
    C.nb_stop_request()
    assert.equal(C.NB_EINTR, C.nb_dequantize(out, codes, scales, nil, nil, 4))
    C.nb_stop_clear()
    must(C.nb_dequantize(out, codes, scales, nil, nil, 4))
  end)
end)
