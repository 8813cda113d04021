-- cuda.dequantize: on the stand-in device the bytes of nb_dequantize and nb_dequantize_float, in every order of threads, for
-- every scheme, packing and dtype; memory read and written once, no bank conflicts; what is wrong, in a sentence.
local presets = require "nibble.scheme_presets"
local standin = require "spec.support.standin"

-- What a process prints whose driver is the stand-in; its errors after it.
local run = standin.with [[
  package.path = "./?.lua;" .. package.path
  local ffi = require "ffi"
  local C = require("nibble.ffi").C
  local d = require "spec.support.cuda_dequantize"
]]

local function agrees(code) assert.equal("ok", run(code .. " print 'ok'")) end

describe("cuda.dequantize", function()
  it("gives the processor's bytes for every preset, out of a quantized weight that was moved", function()
    local names = {}
    for _, preset in ipairs(presets.list) do names[#names + 1] = ("%q"):format(preset.name) end
    agrees(([[
      local next = d.random(7)
      local w = nb.tensor("bf16", { 12, 256 })
      for i = 1, w:numel() do w:set(i, (next(2001) - 1000) / 700) end
      for _, name in ipairs { %s } do
        local q = assert(w:quantize { scheme = name })
        local there = assert(q:to "cuda")
        assert(there.codes:where() == "cuda:0" and there:to("cpu"):equal(q))
        for _, dtype in ipairs { "f32", "bf16", "f16" } do
          local same, where = d.same(there:dequantize(dtype):to "cpu", q:dequantize(dtype))
          if not same then error(name .. " to " .. dtype .. ": " .. where, 0) end
        end
        assert(there:dequantize():type() == q:dequantize():type())
      end ]]):format(table.concat(names, ", ")))
  end)

  it("takes integers of 1 to 8 bits in every packing, sizes and groups that fit nothing", function()
    agrees [[
      for bits = 1, 8 do
        for _, packing in ipairs { false, "ct", "gptq", bits % 4 == 0 and "awq" or nil } do
          d.check({ n = 8, k = 51, bits = bits, packing = packing or nil, group = 17, asym = bits % 2 == 0, orders = false })
          d.check({ n = 16, k = 52, bits = bits, packing = packing or nil, group = 13, act_order = bits % 2 == 1, scales = "bf16" }, { "bf16" })
          d.check({ n = 1, k = 64, bits = bits, packing = packing ~= "awq" and packing or nil, group = 0, asym = true, scales = "f32",
                    orders = false })
        end
      end ]]
  end)

  for _, bits in ipairs { 4, 8 } do
    it(("goes fast over %d bits along the rows, with groups, zero-points and an activation order"):format(bits), function()
      agrees(([[
        for _, packing in ipairs { "ct", false } do
          for _, act_order in ipairs { false, true } do
            local o = { n = 13, k = 136, bits = %d, packing = packing or nil, act_order = act_order, group = 8, asym = true }
            d.check(o)
            o.asym, o.group, o.scales, o.n, o.k = false, -1, "f32", 70, 264
            d.check(o, { "bf16", "f32" })
          end
        end ]]):format(bits))
    end)

    it(("goes fast over %d bits along n: GPTQ's words, and AWQ's"):format(bits), function()
      agrees(([[
        local bits = %d
        for _, act_order in ipairs { false, true } do
          d.check({ n = 132, k = 136, bits = bits, packing = "gptq", group = 8, asym = true, act_order = act_order }, { "f16", "f32" })
          d.check({ n = 4, k = 8, bits = bits, packing = "gptq", group = -1, act_order = act_order, scales = "bf16" })
        end
        d.check({ n = 32 * 9, k = 136, bits = bits, packing = "awq", group = 68, asym = true, scales = "f32" }, { "bf16" })
        d.check({ n = 32, k = 264, bits = bits, packing = "awq", group = 24, asym = true }, { "f16", "f32" })
        d.check({ n = 64, k = 16, bits = bits, packing = "awq", group = 0, scales = "bf16" })
        d.check({ n = 32, k = 40, bits = bits, packing = "awq", group = 8, act_order = true }, { "f16" }) ]]):format(bits))
    end)
  end

  it("takes float codes under scales of every dtype, in blocks and for the whole weight", function()
    agrees [[
      for _, code in ipairs { "f8_e4m3", "f8_e4m3fnuz", "e2m1" } do
        for _, scales in ipairs { "f32", "bf16", "f16", "f8_e4m3", "f8_e8m0" } do
          d.check({ n = 9, k = 48, code = code, scales = scales, group = 16 }, { "bf16", "f16" })
          d.check({ n = 9, k = 51, code = code, scales = scales, block = { 4, 16 }, global = 3 }, { "f32" })
          if code == "e2m1" then
            d.check({ n = 5, k = 64, code = code, packing = "fp4", scales = scales, group = 32, global = 0.37 })
            d.check({ n = 5, k = 33, code = code, packing = "fp4", scales = scales, group = 16, factor = 1.7 })
          end
        end
        d.check({ n = 20, k = 264, code = code, scales = "f32", block = { 8, 128 } })
        d.check({ n = 6, k = 24, code = code, scales = "f32", block = { 6, 24 } })
        d.check({ n = 6, k = 24, code = code, scales = "bf16", group = -1, factor = 0.3 })
      end ]]
  end)

  it("casts floats: all of f16 and bf16, and f32 between their values", function()
    agrees [[
      local all = nb.tensor("u16", { 256, 256 })
      for i = 0, 65535 do all:ptr()[i] = i end
      local between = nb.tensor("u32", { 256, 512 })
      for i = 0, 131071 do between:ptr()[i] = i * 32768 + ({ [0] = 0, 1, 16384, 4096, 12288, 32767 })[i % 6] end
      for _, t in ipairs { all:as("f16", { 256, 256 }), all:as("bf16", { 256, 256 }), between:as("f32", { 256, 512 }) } do
        local there = t:to "cuda"
        for _, dtype in ipairs { "f32", "bf16", "f16" } do
          local same, where = d.same(nb.cuda.dequantize(there, { dtype = dtype }):to "cpu", t:cast(dtype))
          if not same then error(t:type() .. " to " .. dtype .. ": " .. where, 0) end
        end
      end
      local odd = nb.tensor("f32", { 3, 5 }):fill(0.1)
      assert(d.same(nb.cuda.dequantize(odd:to "cuda", { dtype = "f16" }):to "cpu", odd:cast "f16")) ]]
  end)

  it("has every code under every special scale: NaN, infinite, subnormal, zero, 2^-127, 2^127", function()
    agrees [[
      local function special(dtype)
        local values = { f32 = { 0x7fc00001, 0xff800000, 0x7f800000, 1, 0x80000000, 0, 0x7f7fffff, 0x00800000 },
          bf16 = { 0x7fc1, 0xff80, 0x7f80, 1, 0x8000, 0, 0x7f7f, 0x80 }, f16 = { 0x7e01, 0xfc00, 0x7c00, 1, 0x8000, 0, 0x7bff, 0x400 },
          f8_e4m3 = { 0x7f, 0xff, 0, 0x80, 1, 7, 8, 0x7e }, f8_e8m0 = { 0, 255, 254, 1, 127, 2, 128, 100 } }
        local s = nb.tensor(dtype, { 8, 1 })
        local bits = ({ f32 = "uint32_t *", bf16 = "uint16_t *", f16 = "uint16_t *" })[dtype] or "uint8_t *"
        for i, v in ipairs(values[dtype]) do ffi.cast(bits, s.data)[i - 1] = v end
        return s
      end
      for _, k in ipairs { 256, 257 } do -- the fast kernel and the other
        for _, code in ipairs { "f8_e4m3", "f8_e4m3fnuz", "e2m1", "u8" } do
          local codes = nb.tensor(code:find "^f" and code or "u8", { 8, k })
          for i = 0, 8 * k - 1 do ffi.cast("uint8_t *", codes.data)[i] = i % k % 256 end
          for _, dtype in ipairs { "f32", "bf16", "f16", code ~= "u8" and "f8_e4m3" or nil, code ~= "u8" and "f8_e8m0" or nil } do
            for _, global in ipairs { false, code ~= "u8" and k == 256 and 1e-38 or nil, code ~= "u8" and k == 257 and 3e38 or nil } do
              local w = { values = codes, n = 8, k = k, bits = code == "u8" and 8 or nil, block = { 1, k }, scales = special(dtype),
                          global = global and nb.tensor("f32", { 1 }, { global }) or nil }
              for _, out in ipairs(k == 256 and not global and { "f32", "bf16", "f16" } or { "f32" }) do
                local same, where = d.same(nb.cuda.dequantize(d.there(w), { dtype = out }):to "cpu", d.here(w, codes, out))
                if not same then error(("%s, %s scales to %s: %s"):format(code, dtype, out, where), 0) end
              end
            end
          end
        end
      end ]]
  end)

  it("reads and writes what it must, in whole sectors, free of bank conflicts", function()
    agrees [[
      -- Codes once, the scale of each piece of 8 with it; a warp's 32 pieces in whole sectors.
      local n, k = 64, 1024
      local function counts(o) o.n, o.k, o.group = n, k, -1 return d.check(o, { "bf16" }) end
      for _, o in ipairs { { bits = 4, packing = "ct" }, { bits = 8 }, { code = "e2m1", packing = "fp4" }, { code = "f8_e4m3" } } do
        local codes, pieces = n * k * (o.bits == 4 and 4 or o.packing == "fp4" and 4 or 8) / 8, n * k / 8
        local c = counts(o)
        assert(c.bank_conflicts == 0 and c.global_written == n * k * 2 and c.global_read == codes + 2 * pieces)
        assert(c.global_sectors == n * k * 2 / 32 + codes / 32 + pieces / 32, c.global_sectors)
      end
      for _, packing in ipairs { "gptq", "awq" } do
        for _, bits in ipairs { 4, 8 } do
          local c = d.check({ n = 256, k = 256, bits = bits, packing = packing, group = -1 }, { "bf16" })
          local codes, pieces = 65536 * bits / 8, 65536 / 8
          assert(c.bank_conflicts == 0 and c.global_written == 65536 * 2 and c.global_read == codes + 2 * pieces)
          -- scales of 4 rows side by side, or as far apart as a word is wide
          assert(c.global_sectors == 65536 * 2 / 32 + codes / 32 + pieces / 32 * (packing == "awq" and bits == 4 and 2 or 1), c.global_sectors)
          c = d.check({ n = 256, k = 128, bits = bits, packing = packing, group = -1, asym = true }, { "f32" })
          assert(c.bank_conflicts == 0)
        end
      end ]]
  end)

  it("takes weights without rows or columns, and views", function()
    agrees [[
      d.check { n = 0, k = 64, bits = 4, packing = "ct", group = 32 }
      d.check { n = 3, k = 0, bits = 4, packing = "ct", group = 32 }
      local w, codes = d.weight { n = 9, k = 64, bits = 8, group = 16, asym = true }
      local there, part = d.there(w), { n = 4, k = 64, bits = 8, block = { 1, 16 } }
      for _, field in ipairs { "values", "scales", "zeros" } do part[field] = there[field]:rows(2, 5) end
      for _, field in ipairs { "scales", "zeros" } do w[field] = w[field]:rows(2, 5) end
      w.n = 4
      assert(d.same(nb.cuda.dequantize(part, { dtype = "f16" }):to "cpu", d.here(w, codes:rows(2, 5), "f16")))
      -- codes that begin on no multiple of 16
      part.values, part.k, part.block = there.values:reshape(9 * 64):rows(2, 33):reshape(4, 8), 8, { 1, 8 }
      part.scales, part.zeros = there.scales:rows(1, 1):reshape(4, 1), nil
      local small = { n = 4, k = 8, bits = 8, scales = part.scales:to "cpu" }
      local expected = d.here(small, codes:reshape(9 * 64):rows(2, 33):reshape(4, 8), "f32")
      assert(d.same(nb.cuda.dequantize(part, { dtype = "f32" }):to "cpu", expected)) ]]
  end)

  it("says what is wrong, and goes on", function()
    local out = run [[
      local function try(change, o)
        local w = d.weight { n = 4, k = 64, bits = 4, packing = "ct", group = 32, asym = true, act_order = true }
        local there = d.there(w)
        for field, v in pairs(change) do there[field] = v end
        local ok, got, msg, code = pcall(nb.cuda.dequantize, there, o)
        print(ok and (got and "fine" or code .. ": " .. msg) or "error: " .. tostring(got):gsub("^[^:]*:%d+: ", ""))
      end
      local g_idx = nb.tensor("i32", { 64 })
      g_idx:set(5, 2)
      try { g_idx = g_idx }
      g_idx:set(5, -1)
      try { g_idx = g_idx:to "cuda" }
      try { g_idx = nb.tensor("i32", { 63 }) }
      try { values = nb.tensor("i32", { 4, 8 }) }
      try { values = nb.tensor("i32", { 4, 7 }):to "cuda" }
      try { scales = nb.tensor("f16", { 4, 2 }) }
      try { scales = nb.tensor("f16", { 4, 3 }):to "cuda" }
      try { scales = nb.tensor("f8_e4m3", { 4, 2 }):to "cuda" }
      try { zeros = nb.tensor("u8", { 4, 1 }):to "cuda" }
      try { packing = "marlin" }
      try { packing = "fp4" }
      try { bits = 9 }
      try { bits = 5, packing = "awq" }
      try { block = { 0, 1 } }
      try({}, { dtype = "i32" })
      try { n = -1 }
      try { n = 2 ^ 40 }
      local v = nb.tensor("u8", { 4, 32 }):to "cuda"
      local function float(o)
        o.values, o.packing, o.n, o.k, o.group = o.values or v, "fp4", 4, 64, 16
        o.scales = o.scales or nb.tensor("f8_e4m3", { 4, 4 }):to "cuda"
        local ok, got, msg, code = pcall(nb.cuda.dequantize, o)
        print(ok and (got and "fine" or code .. ": " .. msg) or "error: " .. tostring(got):gsub("^[^:]*:%d+: ", ""))
      end
      float { global = nb.tensor("f32", { 1 }, { 0 }) }
      float { global = nb.tensor("f32", { 1 }, { 1 / 0 }):to "cuda" }
      float { global = nb.tensor("f32", { 2 }, { 1, 1 }) }
      float { global = nb.tensor("f32", { 1 }, { 0 }), factor = 2 }
      float { scales = nb.tensor("u8", { 33 }):to("cuda"):rows(2, 33):as("f16", { 4, 4 }) }
      float { factor = "two" }
      print(pcall(nb.cuda.dequantize, 7))
      print(select(2, pcall(nb.cuda.dequantize, nb.tensor("f32", { 2, 2 }))))
      try {} ]]
    local expected = {
      "eformat: dequantize: g_idx[4] is 2, expected 0 to 1, the groups that the scales have",
      "eformat: dequantize: g_idx[4] is -1, expected 0 to 1, the groups that the scales have",
      "error: dequantize: g_idx: expected i32 [64], found i32 [63]",
      'error: dequantize: values: expected a tensor on a device (t:to "cuda")',
      "error: dequantize: words: expected i32 [4x8], found i32 [4x7]",
      "error: dequantize: scales: expected on cuda:0, found in the computer's memory",
      "error: dequantize: scales: expected any dtype [4x2], found f16 [4x3]",
      "error: dequantize: scales: expected f32, bf16 or f16, found f8_e4m3",
      "error: dequantize: zeros: expected u8 [4x2], found u8 [4x1]",
      'error: dequantize: packing must be "ct", "gptq", "awq" or "fp4", found "marlin"',
      "error: dequantize: 4 bits in packing 4",
      "error: dequantize: 9 bits, expected 1 to 8",
      "error: dequantize: AWQ packs 4 or 8 bits, found 5",
      "error: dequantize: blocks of 0x1, expected at least 1x1",
      "error: dequantize: out: expected f32, bf16 or f16, found i32",
      "error: dequantize: a weight [-1x64]",
      "eunsupported: dequantize: a weight [1099511627776x64] is more than a launch can count",
      "eformat: dequantize float codes: the global scale is 0, expected a finite number above 0",
      "eformat: dequantize float codes: the global scale is inf, expected a finite number above 0",
      "error: dequantize float codes: global: expected f32 [1], found f32 [2]",
      "fine",
      "error: dequantize: scales: begins 1 bytes past a multiple of 2",
      "error: dequantize: factor: found a string",
      "false\tdequantize: expected a quantized weight, a tensor on a device or a table of words, found a number",
      "dequantize: expected a quantized weight, a tensor on a device or a table of words, found a cdata",
      "fine",
    }
    local found = {}
    for line in out:gmatch "[^\n]+" do found[#found + 1] = line end
    assert.same(expected, found)
  end)
end)

describe("cuda.marlin_dequantize", function()
  for _, bits in ipairs { 4, 8 } do
    it(("gives the numbers of gemm.marlin, rounded, [k,n]: %d bits"):format(bits), function()
      agrees(([[
        local bits = %d
        d.check_marlin { k = 16, n = 64, bits = bits, groups = 1 }
        d.check_marlin { k = 48, n = 192, bits = bits, groups = 3, zeros = true, scales = "bf16" } -- more tiles than a block's warps
        d.check_marlin { k = 64, n = 64, bits = bits, groups = 8, scales = "f32" } -- groups smaller than tiles
        d.check_marlin { k = 48, n = 128, bits = bits, groups = 1, zeros = true }
        d.check_marlin { k = 80, n = 128, bits = bits, groups = 5, zeros = true, act_order = true }
        local c = d.check_marlin { k = 64, n = 128, bits = bits, groups = 2 }
        local words = 64 * 128 * bits / 8
        assert(c.bank_conflicts == 0 and c.global_written == 64 * 128 * 2)
        -- in whole sectors: out, the words, and for each tile eight times the scales of eight lanes side by side
        assert(c.global_sectors == 64 * 128 * 2 / 32 + words / 32 + 8 * 8, c.global_sectors) ]]):format(bits))
    end)
  end

  it("fills a tensor that is there, and says what is wrong", function()
    local out = run [[
      local function try(change, o)
        local there = d.marlin_there(d.marlin { k = 32, n = 64, bits = 4, groups = 2, act_order = true })
        for field, v in pairs(change) do there[field] = v or nil end
        local ok, got, msg, code = pcall(nb.cuda.marlin_dequantize, there, o)
        print(ok and (got and "fine" or code .. ": " .. msg) or "error: " .. tostring(got):gsub("^[^:]*:%d+: ", ""))
      end
      local function order(i, v)
        local t = nb.tensor("i32", { 32 })
        for j = 0, 31 do t:ptr()[j] = j % 32 end
        t:set(i, v)
        return t
      end
      try {}
      try { perm = order(3, 32) }
      try { perm = order(3, 7):to "cuda" }
      try { sorted_g_idx = order(1, 2) }
      try { sorted_g_idx = false }
      try { perm = nb.tensor("i32", { 31 }) }
      try { n = 128 }
      try { n = 60 }
      try { k = 24 }
      try { type = "float8_e4m3fn" }
      try { activations = "int8" }
      try { scales = nb.tensor("i32", { 2, 64 }):to "cuda" }
      try { scales = nb.tensor("f16", { 2, 64 }) }
      try { scales = nb.tensor("f16", { 0, 64 }):to "cuda" }
      try { type = "uint4", zeros = nb.tensor("i32", { 1, 8 }):to "cuda" }
      try { words = nb.tensor("i32", { 2, 128 }) }
      try({}, { dtype = "f32" })
      local w, out = ffi.new "nb_marlin_weight", nb.cuda.new("cuda", "f16", { 32, 64 })
      local m = d.marlin_there(d.marlin { k = 32, n = 64, bits = 8, groups = 1 })
      w.k, w.n, w.bits, w.scale_factor, w.words, w.scales = 32, 64, 8, 2, m.words.t, m.scales.t
      local before = out.t.data
      print(C.nb_device_marlin_dequantize(out.t, w, C.NB_F16), before == out.t.data)
      m.scales = m.scales:to("cpu"):cast("f32"):map(function(v) return 2 * v end):to "cuda"
      print(d.same(nb.cuda.marlin_dequantize(m, { dtype = "f16" }):to "cpu", out:to "cpu"))
      print(C.nb_device_marlin_dequantize(nb.cuda.new("cuda", "f16", { 64, 32 }).t, w, C.NB_F16), ffi.string(C.nb_error())) ]]
    local expected = {
      "fine",
      "eformat: marlin dequantize: perm: 32 at position 2 is outside 0..31",
      "eformat: marlin dequantize: perm: 7 stands there twice, the second time at position 7",
      "eformat: marlin dequantize: g_idx: 2 at position 0 is outside 0..1",
      "error: marlin dequantize: perm and g_idx belong together, found only perm",
      "error: marlin dequantize: perm: expected i32 [32], found i32 [31]",
      "error: marlin dequantize: words: expected i32 [2x256], found i32 [2x128]",
      "error: marlin dequantize: N = 60 is not a multiple of 64",
      "error: marlin dequantize: K = 24 is not a multiple of 16",
      "error: marlin gemm: FP8 weights need dtype f16 or bf16, found nil",
      "eunsupported: marlin dequantize: on a device weights are integers or FP8 under float scales, MXFP8, MXFP4 or NVFP4, "
        .. "in the order for 16-bit activations; others are multiplied in the computer's memory only",
      "error: marlin dequantize: scales of this weight cannot be i32",
      "error: marlin dequantize: scales: expected on cuda:0, found in the computer's memory",
      "error: marlin dequantize: K = 32 is not a multiple of the 0 groups of scales",
      "error: marlin dequantize: zero-points: expected i32 [2x8], found i32 [1x8]",
      'error: marlin dequantize: words: expected a tensor on a device (t:to "cuda")',
      "error: marlin dequantize: out is f16 or bf16, found f32",
      "0\ttrue",
      "true",
      "-1\tmarlin dequantize: out: expected f16 [32x64], found f16 [64x32]",
    }
    local found = {}
    for line in out:gmatch "[^\n]+" do found[#found + 1] = line end
    assert.same(expected, found)
  end)
end)
