-- Every format's writer and reader are inverses, whatever the tiles (DESIGN 1.1).
local nb = require "nibble"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme

local function tile_sizes(f, rec)
  local step, sizes = f.row_step(rec), {}
  for rows = step, rec.n + step - 1, step do sizes[#sizes + 1] = math.min(rows, rec.n) end
  return sizes
end

-- Writes q, reads it back through probe, in every tile size.
local function round_trip(format, s, n, k, dtype)
  local what = ("%s %s [%dx%d] %s"):format(format, scheme.describe(s), n, k, dtype)
  local f = formats.get(format)
  local can, reason = f.can(s, n, k)
  assert.is_true(can, what .. ": " .. tostring(reason))
  local q = support.quantized(s, n, k, dtype)
  local whole, rec = assert(support.store(format, "m.proj", q, { dtype = dtype }))
  local ck = support.checkpoint(whole, f.config { rec })
  for _, rows in ipairs(tile_sizes(f, rec)) do
    local tensors = assert(support.store(format, "m.proj", q, { rows = rows, dtype = dtype }))
    for name, t in pairs(whole) do assert.is_true(t:equal(tensors[name]), what .. ": " .. name .. " in tiles of " .. rows) end
    local back, found = support.load(ck, "m.proj", rows)
    assert.is_true(back ~= nil, found)
    local equal, part = q:equal(back)
    assert.is_true(equal, ("%s in tiles of %d: %s"):format(what, rows, tostring(part)))
    assert.equal(format, found.format)
    if format ~= "awq" then assert.equal(scheme.describe(s), scheme.describe(found.scheme)) end
  end
  assert.equal(q:hash(), formats.quantized(ck, "m.proj"):hash())
end

describe("round trip", function()
  it("compressed-tensors: 2 to 8 bits, symmetric or not, tensor, channel and group", function()
    for bits = 2, 8 do
      for _, words in ipairs { "g32 sym", "g32 asym", "channel sym", "channel asym", "tensor sym", "tensor asym" } do
        round_trip("compressed-tensors", scheme.parse(("W%dA16 %s"):format(bits, words)), 48, 96, "bf16")
      end
    end
  end)

  it("compressed-tensors: ragged n and k, act-order, f16 and f32 scales", function()
    round_trip("compressed-tensors", scheme.parse "W3A16 channel asym", 37, 50, "f16")
    round_trip("compressed-tensors", scheme.parse "W4A16 channel sym", 5, 33, "f32")
    round_trip("compressed-tensors", scheme.parse "W4A16 g32 sym actorder", 16, 128, "bf16")
    round_trip("compressed-tensors", scheme.parse "W5A16 g32 asym actorder", 40, 128, "f16")
  end)

  it("GPTQ v1 and v2: 2, 3, 4, 8 bits, act-order", function()
    for _, format in ipairs { "gptq", "gptq_v2" } do
      for _, bits in ipairs { 2, 3, 4, 8 } do
        for _, words in ipairs { "g32 sym", "g32 asym", "channel sym", "channel asym", "g32 sym actorder", "g32 asym actorder" } do
          round_trip(format, scheme.parse(("W%dA16 %s"):format(bits, words)), 64, 96, "f16")
        end
      end
      round_trip(format, scheme.parse "W4A16 g32 asym", 32, 64, "bf16")
    end
  end)

  it("AWQ gemm: symmetric is stored with zero-points of 8", function()
    for _, words in ipairs { "g32 sym", "g32 asym", "channel sym", "channel asym", "g128 asym" } do
      round_trip("awq", scheme.parse("W4A16 " .. words), 24, 128, "f16")
    end
  end)

  it("compressed-tensors writes rows into tensors that begin at a later row", function()
    local f = formats.get "ct"
    for _, words in ipairs { "W4A16 g32 asym", "W3A16 g32 asym", "W8A16 channel sym" } do
      local q = support.quantized(scheme.parse(words), 96, 64, "bf16")
      local whole, rec = assert(support.store("ct", "m.proj", q))
      local dst = {}
      for _, entry in ipairs(f.layout(rec)) do
        local t = whole["m.proj." .. entry.suffix]
        if entry.rows then
          local first, last = entry.rows(33, 64)
          local shape = t:size()
          shape[1] = last - first + 1
          dst[entry.suffix] = nb.tensor(entry.dtype, shape)
        else
          dst[entry.suffix] = nb.tensor(entry.dtype, entry.shape)
        end
      end
      assert(f.write(dst, rec, 33, 64, q:rows(33, 64), 33))
      for _, entry in ipairs(f.layout(rec)) do
        if entry.rows then
          local first, last = entry.rows(33, 64)
          assert.is_true(dst[entry.suffix]:equal(whole["m.proj." .. entry.suffix]:rows(first, last)), words .. entry.suffix)
        end
      end
    end
  end)

  it("casts bf16 scales for AWQ where that is exact, and names the first where it is not", function()
    local q = support.quantized(scheme.parse "W4A16 g32 asym", 32, 64, "bf16")
    local tensors, rec = assert(support.store("awq", "m.proj", q, { rows = 8 }))
    assert.equal("f16", rec.dtype)
    local ck = support.checkpoint(tensors, formats.get("awq").config { rec })
    local back = assert(formats.quantized(ck, "m.proj"))
    assert.same({ true }, { q:equal(back) })
    assert.equal(q:hash(), back:hash())
    q.scales:as("u16"):set(9 * 2 + 2, 0x3001)
    local none, msg, code = support.store("awq", "m.proj", q, { rows = 8 })
    assert.is_nil(none)
    assert.equal("einexact", code)
    assert.matches("m.proj: scales: the bf16 value .* of row 9, group 1 has no exact f16", msg)
  end)

  it("carries a bias", function()
    for _, format in ipairs(formats.names()) do
      local ints, floats = scheme.parse "W4A16 g32 sym", scheme.parse "FP8_DYNAMIC"
      local s = formats.get(format).can(ints, 32, 64) and ints or formats.get(format).can(floats, 32, 64) and floats
      if format ~= "plain" and s then
        local q = support.quantized(s, 32, 64, "f16")
        q.bias = nb.tensor("f16", { 32 })
        support.fill(q.bias:as("u16"), 0x1234)
        local tensors, rec = assert(support.store(format, "m.proj", q, { bias_dtype = "f16", rows = 32 }))
        local back = support.load(support.checkpoint(tensors, formats.get(format).config { rec }), "m.proj", 32)
        assert.is_true(rec.bias)
        assert.is_true(tensors["m.proj.bias"]:equal(q.bias))
        assert.is_true(back ~= nil)
      end
    end
  end)

  it("refuses rows outside the weight and tiles of another size", function()
    local q = support.quantized(scheme.parse "W4A16 g32 sym", 32, 64, "f16")
    local f = formats.get "ct"
    local tensors, rec = assert(support.store("ct", "m.proj", q))
    local src = assert(formats.source(support.checkpoint(tensors, f.config { rec }), { tensors = {} }))
    assert.error_matches(function() f.read(src, rec, 0, 8, q) end, "rows 0..8 are outside 1..32")
    assert.error_matches(function() f.read(src, rec, 1, 8, q) end, "don't fit a tile %[32x64%]")
  end)
end)
