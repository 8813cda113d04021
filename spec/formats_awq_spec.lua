-- AWQ: gemm, gemv and gemv_fast, config keys, contradictions, the config written (FORMATS 2, AWQ-01..03, AWQ-11).
local nb = require "nibble"
local support = require "spec.support.formats"
local nffi = require "nibble.ffi"
local formats, scheme = nb.formats, nb.scheme
local awq = formats.get "awq"
local C, must = nffi.C, nffi.must

local function stored(words, change)
  local q = support.quantized(scheme.parse(words), 32, 128, "f16")
  local tensors = assert(support.store("awq", "l.up", q))
  if change then change(tensors, q) end
  return tensors, q
end

local function config(extra)
  local c = { quant_method = "awq", bits = 4, group_size = 32, zero_point = true, version = "gemm" }
  for k, v in pairs(extra or {}) do c[k] = v end
  return c
end

local function problem(...)
  local list, msg, code = formats.modules(support.checkpoint(...))
  assert.is_nil(list)
  assert.equal("eformat", code)
  return msg
end

-- q as the tool's gemv and gemv_fast files hold it: padded to 8 groups a word, 2 or 4 words for groups 64 and 32.
local function gemv(q, words)
  local t = { ["l.up.qweight"] = nb.tensor("i32", { q.n, q.k / 8 }), ["l.up.qzeros"] = nb.tensor("i32", { q.n, words }),
    ["l.up.scales"] = nb.tensor("f16", { q.n, 8 * words }) }
  must(C.nb_awq_gemv_pack(t["l.up.qweight"], q.codes, 4, 0))
  must(C.nb_awq_gemv_pack_zeros(t["l.up.qzeros"], q.zeros, 4, 0))
  local to, from = t["l.up.scales"]:as("u16"):ptr(), q.scales:as("u16"):ptr()
  for r = 0, q.n - 1 do
    for g = 0, q.groups - 1 do to[r * 8 * words + g] = from[r * q.groups + g] end
  end
  return t
end

local function gemv_fast(q, words)
  local t = { ["l.up.qweight"] = nb.tensor("i16", { q.n / 4, q.k }), ["l.up.qzeros"] = nb.tensor("f16", { 8 * words, q.n }),
    ["l.up.scales"] = nb.tensor("f16", { 8 * words, q.n }) }
  must(C.nb_awq_gemv_fast_pack(t["l.up.qweight"], q.codes, 4, 0))
  must(C.nb_transpose_put(t["l.up.scales"]:rows(1, q.groups), q.scales, 0))
  must(C.nb_awq_gemv_fast_pack_zeros(t["l.up.qzeros"], t["l.up.scales"], q.zeros, 0))
  return t
end

describe("AWQ", function()
  it("reads gemv and gemv_fast in any tiles, padded as the tool pads", function()
    for group, words in pairs { [32] = 4, [64] = 2, [128] = 1 } do
      local q = support.quantized(scheme.parse(("W4A16 g%d asym"):format(group)), 32, 128, "f16")
      for version, make in pairs { gemv = gemv, gemv_fast = gemv_fast } do
        local ck = support.checkpoint(make(q, words), config { group_size = group, version = version:upper() })
        for _, rows in ipairs { 4, 12, 32 } do
          local back, rec = support.load(ck, "l.up", rows)
          assert.is_truthy(back, rec)
          assert.same({ true }, { q:equal(back) }, version .. group)
        end
        assert.is_true(formats.weight(ck, "l.up", "f32"):equal(q:dequantize "f32"))
      end
    end
  end)

  it("AWQ-01: reads aliases and side files without quant_method, and lists the keys it tried", function()
    local tensors, q = stored "W4A16 g32 asym"
    local side = { w_bit = 4, q_group_size = 32, zero_point = true, version = "GEMM" }
    assert.is_true(q:equal(formats.quantized(support.checkpoint(tensors, side), "l.up")))
    assert.matches("none of the keys bits, w_bit is there", problem(tensors, { quant_method = "awq", zero_point = true }))
    assert.matches("none of the keys group_size, q_group_size", problem(tensors, { quant_method = "awq", bits = 4 }))
    assert.matches("none of the keys zero_point", problem(tensors, { quant_method = "awq", bits = 4, group_size = 32 }))
    assert.matches("8 bits; AWQ files hold 4 %(AWQ%-02%)", problem(tensors, config { bits = 8 }))
  end)

  it("zero_point = false: symmetric, with or without stored zero-points of 8", function()
    local tensors, q = stored "W4A16 g32 sym"
    local ck = support.checkpoint(tensors, config { zero_point = false })
    assert.equal("W4A16 g32 sym", scheme.describe(formats.record(ck, "l.up").scheme))
    assert.is_true(q:equal(formats.quantized(ck, "l.up")))
    tensors["l.up.qzeros"] = nil
    assert.is_true(q:equal(formats.quantized(support.checkpoint(tensors, config { zero_point = false }), "l.up")))
    local none, msg = formats.quantized(support.checkpoint(stored "W4A16 g32 asym", config { zero_point = false }), "l.up")
    assert.is_nil(none)
    assert.matches("the config says zero_point = false, but the zero%-point of row %d+, group %d", msg)
  end)

  it("AutoRound's auto_awq packing is AWQ", function()
    local tensors, q = stored "W4A16 g32 asym"
    local c = { quant_method = "auto-round", bits = 4, group_size = 32, sym = false, packing_format = "auto_round:auto_awq" }
    assert.is_true(q:equal(formats.quantized(support.checkpoint(tensors, c), "l.up")))
    assert.equal("awq", formats.record(support.checkpoint(tensors, c), "l.up").format)
  end)

  it("names both facts when the config contradicts the tensors", function()
    local tensors = stored "W4A16 g32 asym"
    assert.matches("the config says W4A16 g64 asym, version gemm and qweight %[128x4%] means a weight of %[32x128%], "
      .. "so scales must be %[2x32%], but it is %[4x32%]", problem(tensors, config { group_size = 64 }))
    assert.matches("so scales must be %[128x32%], but it is %[4x32%]", problem(tensors, config { version = "gemv" }))
    assert.matches("version gemv_fast, but qweight is i32 %[128x4%] and not i16", problem(tensors, config { version = "gemv_fast" }))
    assert.matches("the tensor qzeros is missing", problem(stored("W4A16 g32 asym", function(t) t["l.up.qzeros"] = nil end), config()))
    assert.matches("k = 128 is not a multiple of 48", problem(tensors, config { group_size = 48 }))
    local ck = support.checkpoint(tensors, config { version = "llm-awq" })
    local w, msg = formats.weight(ck, "l.up")
    assert.is_nil(w)
    assert.equal("l.up: not readable yet: format awq llm-awq", msg)
  end)

  it("says which zero-point of gemv_fast is not whole", function()
    local q = support.quantized(scheme.parse "W4A16 g128 asym", 32, 128, "f16")
    local t = gemv_fast(q, 1)
    t["l.up.qzeros"]:as("u16"):set(4, 0x1234)
    local none, msg = formats.quantized(support.checkpoint(t, config { group_size = 128, version = "gemv_fast" }), "l.up")
    assert.is_nil(none)
    assert.matches("^l.up: .*group 0, column 3: .* not minus a whole zero%-point", msg)
  end)

  it("writes the config that consumers need", function()
    local function rec(name, words) return { name = name, kind = "linear", scheme = words and scheme.parse(words) } end
    assert.same({ quant_method = "awq", bits = 4, group_size = 128, zero_point = true, version = "gemm",
      modules_to_not_convert = nb.json.null }, awq.config { rec("l.0.up", "W4A16"), rec "lm_head" })
    local c = awq.config { rec("l.0.mlp.experts.0.up", "W4A16"), rec "l.0.mlp.gate", rec("lm_head", "W4A16") }
    assert.same({ "l.0.mlp.gate" }, setmetatable(c.modules_to_not_convert, nil))
    assert.is_true(c.lm_head)
  end)

  it("AWQ-11: refuses a skip entry that would skip a quantized module, and mixed groups", function()
    local function rec(name, words) return { name = name, kind = "linear", scheme = words and scheme.parse(words) } end
    local none, msg, code = awq.config { rec("l.0.mlp.gate_proj", "W4A16"), rec "l.0.mlp.gate" }
    assert.is_nil(none)
    assert.equal("einexact", code)
    assert.matches("l.0.mlp.gate stays as it is and l.0.mlp.gate_proj is quantized", msg)
    none, msg = awq.config { rec("a", "W4A16 g64 sym"), rec("b", "W4A16 g64 asym"), rec("c", "W4A16 g32 asym") }
    assert.is_nil(none)
    assert.matches("a is W4A16 g64 sym and c is W4A16 g32 asym", msg)
  end)

  it("says what it can't hold", function()
    assert.is_true(awq.can(scheme.parse "W4A16 g32 sym", 32, 64))
    for words, why in pairs { ["W8A16"] = "4 bits, not 8", ["W4A16 actorder"] = "act%-order", ["W4A16 tensor"] = "not one a tensor" } do
      local ok, reason = awq.can(scheme.parse(words), 32, 128)
      assert.is_false(ok)
      assert.matches(why, reason)
    end
    assert.same({ false, "n = 12 is not a multiple of 8" }, { awq.can(scheme.parse "W4A16", 12, 128) })
  end)
end)
