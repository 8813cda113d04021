-- GPTQ v1, v2 and AutoRound: zero-points, act-order, overrides, contradictions, the config written (FORMATS 3, 8).
local nb = require "nibble"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme
local gptq = formats.get "gptq"

local function stored(format, words, change)
  local q = support.quantized(scheme.parse(words), 32, 64, "f16")
  local tensors = assert(support.store(format, "l.up", q))
  if change then change(tensors, q) end
  return tensors, q
end

local function base(extra)
  local c = { quant_method = "gptq", bits = 4, group_size = 32, desc_act = false, sym = false }
  for k, v in pairs(extra or {}) do c[k] = v end
  return c
end

local function problem(...)
  local list, msg, code = formats.modules(support.checkpoint(...))
  assert.is_nil(list)
  assert.is_truthy(code == "eformat" or code == "eunsupported")
  return msg
end

describe("GPTQ", function()
  it("symmetric 4-bit zero-points are 0x77777777 in v1 and 0x88888888 in v2", function()
    assert.equal(0x77777777, stored("gptq", "W4A16 g32 sym")["l.up.qzeros"]:get(1))
    assert.equal(0x88888888 - 2 ^ 32, stored("gptq_v2", "W4A16 g32 sym")["l.up.qzeros"]:get(1))
    assert.equal(0x7f7f7f7f, stored("gptq", "W8A16 g32 sym")["l.up.qzeros"]:get(1))
  end)

  it("goes by checkpoint_format, v1 without one", function()
    local v1, q = stored("gptq", "W4A16 g32 asym")
    assert.is_true(q:equal(formats.quantized(support.checkpoint(v1, base()), "l.up")))
    local v2 = stored("gptq_v2", "W4A16 g32 asym")
    assert.is_true(q:equal(formats.quantized(support.checkpoint(v2, base { checkpoint_format = "gptq_v2" }), "l.up")))
    assert.is_false((q:equal(formats.quantized(support.checkpoint(v2, base()), "l.up"))))
    local ck = support.checkpoint(v1, base { checkpoint_format = "gptq_p" })
    local _, msg = formats.weight(ck, "l.up")
    assert.matches("not readable yet: format gptq gptq_p", msg)
  end)

  it("AutoRound: packing_format says the zero-points, g_idx is absent, sym is the default", function()
    for packing, format in pairs { ["auto_round:auto_gptq"] = "gptq", ["auto_round"] = "gptq_v2", ["auto_round:gptqmodel"] = "gptq_v2" } do
      local tensors, q = stored(format, "W4A16 g32 asym")
      tensors["l.up.g_idx"] = nil
      local config = { quant_method = "auto-round", bits = 4, group_size = 32, sym = false, packing_format = packing }
      assert.is_true(q:equal(formats.quantized(support.checkpoint(tensors, config), "l.up")), packing)
    end
    local tensors, q = stored("gptq", "W4A16 g32 sym")
    local ck = support.checkpoint(tensors, { quant_method = "auto-round", bits = 4, group_size = 32 })
    assert.equal("W4A16 g32 sym", scheme.describe(formats.record(ck, "l.up").scheme))
    assert.is_true(q:equal(formats.quantized(ck, "l.up")))
    ck = support.checkpoint(stored("gptq", "W8A16 g32 sym"), { quant_method = "auto-round", bits = 4, group_size = 32,
      extra_config = { ["l.*up"] = { bits = 8 } } })
    assert.equal("W8A16 g32 sym", scheme.describe(formats.record(ck, "l.up").scheme))
    ck = support.checkpoint({ ["m.x"] = nb.tensor("f16", { 1 }) }, { quant_method = "auto-round", packing_format = "auto_round:fp8", bits = 8 })
    local _, msg = formats.weight(ck, "m")
    assert.matches("format auto%-round auto_round:fp8", msg)
  end)

  it("reads a side file that leaves quant_method out", function()
    local tensors, q = stored("gptq", "W4A16 g32 asym")
    local c = base()
    c.quant_method = nil
    assert.is_true(q:equal(formats.quantized(support.checkpoint(tensors, c), "l.up")))
  end)

  it("dynamic: the first rule that matches wins, -: means not quantized", function()
    local tensors = stored("gptq", "W8A16 channel sym")
    local config = nb.json.decode [[{"quant_method":"gptq","bits":4,"group_size":32,"sym":true,"desc_act":false,
      "dynamic":{"+:.*down.*":{"bits":2},".*\\.up$":{"bits":8,"group_size":-1},"+:l\\..*":{"bits":3},"-:.*":{}}}]]
    local ck = support.checkpoint(tensors, config)
    assert.equal("W8A16 channel sym", scheme.describe(formats.record(ck, "l.up").scheme))
    config = nb.json.decode [[{"quant_method":"gptq","bits":4,"group_size":32,"dynamic":{"-:.*up":{}}}]]
    assert.matches('not to quantize it %("%-:.*up"%), but it holds qweight', problem(tensors, config))
    assert.matches("dynamic: pattern .* not supported", problem(tensors, base { dynamic = { ["+:(?<=x)y"] = {} } }))
  end)

  it("counts the v1 zero-points that wrapped, and refuses to write them", function()
    local _, q = stored("gptq_v2", "W4A16 g32 asym")
    q.zeros:set(2 * 4 + 2, 0)
    local none, msg, code = support.store("gptq", "l.up", q)
    assert.is_nil(none)
    assert.equal("einexact", code)
    assert.matches("l.up: the zero%-point of row 4, group 1 is 0, which GPTQ v1 .* write gptq_v2", msg)
    local tensors = assert(support.store("gptq_v2", "l.up", q))
    local v1 = nb.tensor("i32", { 2, 4 })
    local ffi = require "nibble.ffi"
    ffi.must(ffi.C.nb_gptq_pack_zeros(v1, q.zeros, 4, 0, 32, 1))
    tensors["l.up.qzeros"] = v1
    local back = assert(formats.quantized(support.checkpoint(tensors, base()), "l.up"))
    assert.equal(1, back.wrapped_zeros)
    assert.is_true(back:equal(q))
  end)

  it("checks g_idx against desc_act", function()
    local tensors, q = stored("gptq", "W4A16 g32 asym actorder")
    local ck = support.checkpoint(tensors, base { desc_act = true })
    assert.equal("W4A16 g32 asym actorder", scheme.describe(formats.record(ck, "l.up").scheme))
    assert.is_true(q:equal(formats.quantized(ck, "l.up")))
    local none, msg = formats.quantized(support.checkpoint(tensors, base()), "l.up")
    assert.is_nil(none)
    assert.matches("the config says desc_act = false, but g_idx puts the columns in another order", msg)
    tensors = stored("gptq", "W4A16 g32 asym")
    ck = support.checkpoint(tensors, base { desc_act = true })
    assert.equal("W4A16 g32 asym", scheme.describe(formats.record(ck, "l.up").scheme), "a trivial g_idx is none")
  end)

  it("checks the zero-points of sym = true, and takes them at their word without sym", function()
    local tensors, q = stored("gptq", "W4A16 g32 asym")
    local none, msg = formats.quantized(support.checkpoint(tensors, base { sym = true }), "l.up")
    assert.is_nil(none)
    assert.matches("the config says sym = true, but the zero%-point of row %d+, group %d is %d+ and not 8", msg)
    local c = base()
    c.sym = nil
    assert.is_true(q:equal(formats.quantized(support.checkpoint(tensors, c), "l.up")))
  end)

  it("names both facts when the config contradicts the tensors", function()
    local tensors = stored("gptq", "W4A16 g32 asym")
    assert.matches("says W8A16 g32 asym, but 8 rows of qweight hold 32 columns and g_idx 64", problem(tensors, base { bits = 8 }))
    assert.matches("the config says W4A16 g64 asym and qweight %[8x32%] means a weight of %[32x64%], so scales must be "
      .. "%[1x32%], but it is %[2x32%]", problem(tensors, base { group_size = 64 }))
    assert.matches("k = 64 is not a multiple of 48", problem(tensors, base { group_size = 48 }))
    assert.matches("bits is missing", problem(tensors, { quant_method = "gptq", group_size = 32 }))
    assert.matches("the config says 5 bits; GPTQ files hold 2, 3, 4 or 8", problem(tensors, base { bits = 5 }))
    local function with(change)
      local t = stored("gptq", "W4A16 g32 asym", change)
      return problem(t, base())
    end
    assert.matches("the tensor qzeros is missing", with(function(t) t["l.up.qzeros"] = nil end))
    assert.matches("the tensor scales is missing", with(function(t) t["l.up.scales"] = nil end))
    assert.matches("qzeros must be %[2x4%], but it is %[2x5%]", with(function(t) t["l.up.qzeros"] = nb.tensor("i32", { 2, 5 }) end))
    assert.matches("qweight is u8 %[8x32%], expected i32", with(function(t) t["l.up.qweight"] = nb.tensor("u8", { 8, 32 }) end))
    assert.matches("holds both weight and qweight", with(function(t) t["l.up.weight"] = nb.tensor("f16", { 32, 64 }) end))
  end)

  it("writes the config that consumers need", function()
    local function rec(name, words) return { name = name, kind = "linear", scheme = words and scheme.parse(words) } end
    local c = gptq.config { rec("l.0.up", "W4A16"), rec "lm_head" }
    assert.same({ quant_method = "gptq", bits = 4, group_size = 128, desc_act = false, sym = true,
      checkpoint_format = "gptq", lm_head = false }, c)
    assert.equal("gptq_v2", formats.get("gptq_v2").config({ rec("l.0.up", "W4A16 asym") }).checkpoint_format)
    assert.is_true(gptq.config({ rec("l.0.up", "W4A16"), rec("lm_head", "W4A16") }).lm_head)
    assert.is_true(gptq.config({ rec("l.0.up", "W4A16 actorder") }).desc_act)
    c = gptq.config({ rec("l.0.up", "W4A16"), rec("l.1.up", "W4A16"), rec("l.0.q_proj", "W8A16 channel"),
      rec("l.0.k_proj", "W8A16 channel"), rec "l.0.gate" },
      { fused = { { "q_proj", "k_proj", "v_proj", as = "qkv_proj" } } })
    local eight = { bits = 8, group_size = -1, sym = true }
    assert.same({ ["+:^l\\.0\\.(?:q_proj|k_proj|qkv_proj)$"] = eight, ["-:^l\\.0\\.gate$"] = {} }, c.dynamic)
    c = gptq.config { rec("l.0.up", "W4A16 actorder"), rec("l.1.up", "W4A16 actorder"), rec("l.0.down", "W4A16") }
    assert.is_true(c.desc_act)
    assert.is_false(c.dynamic["+:^l\\.0\\.down$"].desc_act)
    local none, msg = gptq.config { rec "l.0.up" }
    assert.is_nil(none)
    assert.matches("no module is quantized", msg)
  end)

  it("says what it can't hold", function()
    local cases = {
      { "W5A16 g32", 32, 64, "2, 3, 4 or 8 bits, not 5" }, { "W4A16 tensor", 32, 64, "not one a tensor" },
      { "W4A16 g32", 32, 100, "k = 100 is not a multiple of the group size 32" },
      { "W4A16 channel", 12, 64, "n = 12 at 4 bits doesn't fill whole 32%-bit words" },
      { "W3A16 channel", 32, 40, "k = 40 at 3 bits" },
    }
    for _, c in ipairs(cases) do
      local ok, reason = gptq.can(scheme.parse(c[1]), c[2], c[3])
      assert.is_false(ok)
      assert.matches(c[4], reason)
    end
  end)
end)
