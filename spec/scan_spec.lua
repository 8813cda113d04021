-- The scan of a tensor's values: counts and first places for every dtype, on every instruction set and number of
-- threads, against the values one by one.
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local support = require "spec.support.formats"

-- The smallest normal number of a dtype; 0: it has no subnormals that count.
local normal = { f16 = 2 ^ -14, bf16 = 2 ^ -126, f32 = 2 ^ -126, f64 = 2 ^ -1022, f8_e4m3 = 2 ^ -6, f8_e5m2 = 2 ^ -14,
  f8_e4m3fnuz = 2 ^ -7, f8_e5m2fnuz = 2 ^ -15 }

-- From the definition, a value at a time.
local function one_by_one(t)
  local s = { numel = t:numel(), nan = 0, inf = 0, zeros = 0, negative = 0, subnormal = 0, zero_rows = 0 }
  local columns, row = t:size(t.ndim), 0
  for i = 1, t:numel() do
    local v = t:get(i)
    local odd = v ~= v or v == math.huge or v == -math.huge
    if v ~= v then s.nan = s.nan + 1 elseif odd then s.inf = s.inf + 1 end
    if odd then s.first_odd = s.first_odd or i end
    if v == 0 then s.zeros, s.first_zero, row = s.zeros + 1, s.first_zero or i, row + 1 end
    if v < 0 then s.negative, s.first_negative = s.negative + 1, s.first_negative or i end
    if v ~= 0 and math.abs(v) < (normal[t:type()] or 0) then s.subnormal = s.subnormal + 1 end
    if i % columns == 0 then
      if row == columns then s.zero_rows, s.first_zero_row = s.zero_rows + 1, s.first_zero_row or i / columns end
      row = 0
    end
  end
  return s
end

local dtypes = { "bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "bf16", "f32", "f64", "f8_e4m3", "f8_e5m2",
  "f8_e8m0", "f8_e4m3fnuz", "f8_e5m2fnuz" }

local function each_path(fn)
  for _, features in ipairs { 0, tonumber(C.NB_CPU_AVX2), -1 } do
    for _, threads in ipairs { 1, 3 } do
      C.nb_cpu_limit(features)
      C.nb_threads_set(threads)
      fn(("cpu %d, %d threads"):format(features, threads))
    end
  end
end

describe("scan", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  for _, dtype in ipairs(dtypes) do
    it("counts " .. dtype .. " as its values are", function()
      local random = support.random(11)
      local bytes = tonumber(C.nb_dtype_bits(C.nb_dtype_parse(dtype))) / 8
      local t = nb.tensor(dtype, { 61, 103 }) -- beyond one block, with a rest behind the last vector
      local p = ffi.cast("uint8_t *", t.data)
      for i = 0, t:bytes() - 1 do p[i] = dtype == "bool" and random(2) or random(256) end
      if dtype ~= "bool" then -- what random bits seldom hit
        for i, top in ipairs { 0x7f, 0xff, 0x7e, 0x7c, 0xfc, 0x80, 0x00 } do
          for k = 0, bytes - 1 do p[(i * 500 + k)] = k == bytes - 1 and top or i == 7 and 1 or 0 end
          for k = 0, bytes - 1 do p[(i * 800 * (bytes > 1 and 1 or 0) + 16 + k)] = k >= bytes - 2 and top or 0 end
        end
      end
      for _, row in ipairs { 30, 47 } do ffi.fill(p + row * 103 * bytes, 103 * bytes, 0) end -- rows of zeros
      local want = one_by_one(t)
      each_path(function(path) assert.same(want, t:scan(), path) end)
    end)
  end

  it("finds one bad value anywhere, over many blocks and threads", function()
    local n = 3 * 2 ^ 20 + 77
    local t = nb.tensor("bf16", { n }):fill(1)
    for _, at in ipairs { 1, 2049, 2 ^ 20, n } do
      t:set(at, 0 / 0)
      each_path(function(path)
        local s = t:scan()
        assert.same({ 1, at, 0, 0 }, { s.nan, s.first_odd, s.zeros, s.negative }, path)
      end)
      t:set(at, -2)
      local s = t:scan()
      assert.same({ 0, 1, at }, { s.nan, s.negative, s.first_negative })
      t:set(at, 1)
    end
  end)

  it("takes -0 for zero, and neither it nor a NaN with a sign for negative", function()
    local t = nb.tensor("f16", { 2, 2 })
    local p = t:as("u16", { 4 }):ptr()
    p[0], p[1], p[2], p[3] = 0x8000, 0xfe00, 0xfc00, 0x3c00
    local s = t:scan()
    assert.same({ 1, 1, 1, 1, 3 }, { s.zeros, s.nan, s.inf, s.negative, s.first_negative })
  end)

  it("of nothing is nothing; of packed or complex numbers it is refused by name", function()
    assert.equal(0, nb.tensor("f32", { 0, 4 }):scan().numel)
    assert.equal(1, nb.tensor("f32", {}):scan().zeros)
    assert.error_matches(function() nb.tensor("u4", { 8 }):scan() end, "scan: u4 is packed")
    assert.error_matches(function() nb.tensor("c64", { 8 }):scan() end, "complex")
  end)

  it("stops when it is asked to", function()
    local t = nb.tensor("bf16", { 2 ^ 20 })
    C.nb_stop_request()
    local ok, why = pcall(t.scan, t)
    C.nb_stop_clear()
    assert.is_false(ok)
    assert.equal("interrupted", why)
  end)
end)
