-- GPTQ's and INC's configs (SYSTEMS INC-01 to INC-06, INC-18 to INC-20): what they hold, what they refuse, and which method a
-- layer gets.
local nb = require "nibble"
local gptq = require "nibble.methods.gptq_config"
local inc = require "nibble.methods.inc_config"
local configs = require "spec.support.method_configs"

local refused, linear, experts, fused = configs.refused, configs.linear, configs.experts, configs.fused

local function without(t, key)
  t[key] = nil
  return t
end

describe("GPTQ's config", function()
  local function file(more)
    local t = { quant_method = "gptq", bits = 4, group_size = 128, desc_act = false, sym = true }
    for k, v in pairs(more or {}) do t[k] = v end
    return t
  end

  it("INC-19: takes 4 and 8 bits, symmetric, without act-order of groups", function()
    assert.equal("AutoGPTQConfig(quant_type=uint8b128, group_size=-1, desc_act=False, lm_head_quantized=False, dynamic={}, "
      .. "modules_in_block_to_quantize=[])", tostring(gptq.new(file { bits = 8, group_size = -1, desc_act = true })))
    assert.matches("bits = 3 with sym = true is not supported", refused("eunsupported", gptq.new(file { bits = 3 })), 1, true)
    assert.matches("sym = false is not supported", refused("eunsupported", gptq.new(file { sym = false })), 1, true)
    assert.matches("the GPTQ config: desc_act = true with group_size = 128 is no longer supported",
      refused("eunsupported", gptq.new(file { desc_act = true })), 1, true)
    assert.matches("none of the keys desc_act is there", refused("eformat", gptq.new(without(file(), "desc_act"))), 1, true)
  end)

  it("gives layers what dynamic and the list of quantized layers say, shards alike", function()
    local c = assert(gptq.new(file { dynamic = assert(nb.json.decode '{"-:.*l0": {}, "+:.*l1.*": {"bits": 8}, ".*l2.q_proj": {"bits": 8}}') }))
    local function of(name) return c:method(linear(name, 256, 256), { fused = fused }) end
    assert.same({ "skip", "unquantized" }, { of "l0.q_proj".action, of "l0.q_proj".method })
    assert.same({ "uint8b128", "gptq_marlin" }, { of "l1.qkv_proj".type, of "l1.qkv_proj".method })
    local d, msg = of "l2.qkv_proj"
    assert.is_nil(d)
    assert.matches("l2.qkv_proj: dynamic says {\"bits\":8} of l2.q_proj and nothing of l2.k_proj, but a fused layer's shards must share one precision",
      msg, 1, true)
    local listed = assert(gptq.new(file { modules_in_block_to_quantize = { { "down_proj" }, { "o_proj" } } }))
    assert.equal("method", listed:method(linear("l.down_proj", 256, 256)).action)
    assert.equal("skip", listed:method(linear("l.up_proj", 256, 256)).action)
    assert.is_nil(c:method { name = "lm_head", kind = "lm_head", n = 64, k = 64 })
    local moe = c:method(experts("l3.experts", 192, 256))
    assert.same({ "fallback", "moe_wna16" }, { moe.action, moe.method })
  end)
end)

describe("INC's config", function()
  local function file(more)
    local t = { quant_method = "auto-round", bits = 4, group_size = 128 }
    for k, v in pairs(more or {}) do t[k] = v end
    return t
  end
  local function new(more) return assert(inc.new(file(more))) end

  it("INC-03: has defaults, aliases and a name that takes over", function()
    local c = new()
    assert.same({ true, "auto_round:auto_gptq", "int", "auto" }, { c.sym, c.packing, c.data_type, c.backend })
    assert.is_nil(c.blocks)
    assert.same({ "a.b", "c" }, new { to_quant_block_names = "a.b, c" }.blocks)
    assert.same({ "x" }, new { block_name_to_quantize = { "x" } }.blocks)
    assert.equal("marlin", new { vllm_backend = "marlin" }.backend)
    assert.same({ "inc", { "quantization_config.json" }, 0 }, { inc.name, inc.files, inc.min_capability })
    assert.equal("inc", (inc.override(file())))
    assert.matches("the checkpoint says auto-round: inc is used", select(2, inc.override(file())), 1, true)
    assert.is_nil(inc.override { quant_method = "gptq" })
    assert.matches("none of the keys group_size is there", refused("eformat", inc.new(without(file(), "group_size"))), 1, true)
    assert.matches("INCConfig%(weight_bits=4, group_size=128, sym=True", tostring(c))
  end)

  it("INC-04: refuses values with the value and the allowed set", function()
    local function why(more) return refused("eunsupported", inc.new(file(more))) end
    assert.matches("bits = 9; expected 2, 3, 4, 5, 6, 7 or 8", why { bits = 9 }, 1, true)
    assert.matches("data_type = nv_fp; expected int, mx_fp… or fp", why { data_type = "nv_fp" }, 1, true)
    assert.matches("packing_format = auto_round; expected auto_round:auto_gptq, auto_round:auto_awq, auto_round:fp8",
      why { packing_format = "auto_round" }, 1, true)
    assert.matches("backend = exllama; expected auto, gptq, gptq:marlin, awq, awq:marlin, marlin", why { backend = "exllama" }, 1, true)
    assert.matches("group_size = [128, 128]; expected one number, because data_type = int", why { group_size = { 128, 128 } }, 1, true)
    assert.matches("packing_format = auto_round:fp8; expected auto_round:auto_gptq or auto_round:auto_awq, because data_type = int",
      why { packing_format = "auto_round:fp8" }, 1, true)
    assert(inc.new(file { data_type = "mx_fp4", packing_format = "auto_round:llm_compressor", group_size = { 1, 32 } }))
  end)

  it("INC-01 and INC-02: know bits, group, symmetry, pack factor and packing of a layer", function()
    local r = assert(new { packing_format = "auto_round:auto_awq", bits = 3 }:resolve("a", "linear"))
    assert.same({ 3, 128, true, 10, true, false, true }, { r.bits, r.group, r.sym, r.pack_factor, r.is_awq, r.is_gptq, r.quantized })
    r = assert(new { backend = "awq" }:resolve("a", "linear"))
    assert.same({ true, true }, { r.is_awq, r.is_gptq })
  end)

  it("INC-05: resolves by exact key, suffix, kind, regex, and the global values, in this order", function()
    local extra = assert(nb.json.decode [[{ "l.0.up": {"bits": 8}, "0.down": {"bits": 2}, "l\\..*\\.(up|down|gate)": {"bits": 3},
      "bad(": {"bits": 5}, "plain.name": {"bits": 7}}]])
    local c = new { extra_config = extra }
    local function bits(name, kind) return assert(c:resolve(name, kind or "linear", fused)).bits end
    assert.same({ 8, 2, 3, 4 }, { bits "l.0.up", bits "l.0.down", bits "l.1.gate", bits "m.0.up" })
    assert.equal(16, bits("lm_head", "lm_head"))
    -- Each rule before the ones after it: exact, suffix, kind, sub-entries, shards, regex, global.
    local order = new { extra_config = assert(nb.json.decode [[{ "b.up": {"bits": 8}, "a.b.up": {"bits": 2}, ".*up": {"bits": 3},
      "lm_head": {"bits": 8}, ".*head": {"bits": 3}, "x.experts.0.up": {"bits": 2}, ".*experts": {"bits": 3}, "f.q_proj": {"bits": 2},
      "f.k_proj": {"bits": 2}, "f.v_proj": {"bits": 2}, ".*qkv_proj": {"bits": 3} }]]) }
    local function resolved(name, kind) return assert(order:resolve(name, kind or "linear", fused)) end
    assert.same({ 2, 'extra_config "a.b.up" (exact)' }, { resolved "a.b.up".bits, resolved "a.b.up".how })
    assert.same({ 8, 'extra_config "b.up" (suffix)' }, { resolved "c.b.up".bits, resolved "c.b.up".how })
    assert.equal(3, resolved "cb.up".bits) -- no suffix of whole components
    assert.equal(8, resolved("lm_head", "lm_head").bits)
    assert.equal(2, resolved("x.experts", "moe").bits)
    assert.equal("extra_config's entries for its experts agree", resolved("x.experts", "moe").how)
    assert.equal(3, resolved("y.experts", "moe").bits)
    assert.same({ 2, "extra_config's entries for its shards agree" }, { resolved "f.qkv_proj".bits, resolved "f.qkv_proj".how })
    assert.equal(3, resolved "g.qkv_proj".bits)
    assert.equal("the config's global values", resolved "h".how)
    assert.equal(4, bits "plainXname")
    assert.equal(1, #c.ignored)
    local blocks = new { block_name_to_quantize = "model.layers, lm" }
    assert.same({ true, false, true }, { blocks:resolve("model.layers.0.x", "linear").quantized,
      blocks:resolve("visual.model.layers.x", "linear").quantized, blocks:resolve("lm_head", "lm_head").quantized })
    assert.matches("no entry of block_name_to_quantize begins its name", blocks:method(linear("visual.x", 64, 64)).reason, 1, true)
  end)

  it("INC-02 and INC-06: shards and experts must agree, and 16 bits are unquantized", function()
    local c = new { extra_config = assert(nb.json.decode [[{"l.q_proj": {"bits": 8}, "m.q_proj": {"bits": 8},
      "m.k_proj": {"bits": 8}, "m.v_proj": {"bits": 8}, "e.experts.0.up": {"bits": 8}, "e.experts.1.up": {"bits": 2}, "o": {"bits": 16}}]]) }
    local msg = refused("eformat", c:resolve("l.qkv_proj", "linear", fused))
    assert.matches("l.qkv_proj: the fused layer's sub-layers must share one config, but l.q_proj is 8 bits g128 sym and l.k_proj is 4 bits",
      msg, 1, true)
    assert.equal(8, c:resolve("m.qkv_proj", "linear", fused).bits)
    assert.equal(4, c:resolve("n.qkv_proj", "linear", fused).bits)
    assert.matches("e.experts: the mixture of experts's sub-layers", refused("eformat", c:resolve("e.experts", "moe")), 1, true)
    local d = c:method(linear("o", 64, 64))
    assert.same({ "skip", "unquantized", "INC-06" }, { d.action, d.method, d.requirement })
    assert.matches("says 16 bits", d.reason, 1, true)
  end)

  local layer = linear("model.x", 128, 128)

  local ARK = { packages = { auto_round_kernel = true } }

  it("INC-18: on the XPU and the CPU takes what their kernels take", function()
    local function of(more, o, l)
      o = o or {}
      o.platform = o.platform or "xpu"
      return assert(new(more):method(l or layer, o))
    end
    assert.equal("inc_xpu", of().method)
    assert.equal("inc_ark", of(nil, ARK).method)
    assert.equal("refuse", of({ bits = 8 }).action)
    assert.equal("refuse", of({ sym = false }).action)
    assert.matches("ark: needs the package auto_round_kernel", of({ bits = 2 }).reason, 1, true)
    assert.equal("inc_ark", of({ bits = 2 }, ARK).method)
    assert.matches("(backend ark, 4 bits, symmetric, group 128): ark: needs the package", of(nil, { backend = "ark" }).reason, 1, true)
    assert.equal("inc_xpu", of(nil, { backend = "w4a16", packages = ARK.packages }).method)
    assert.matches("takes symmetric weights of 4 bits only, found 2 bits", of({ bits = 2 }, { backend = "w4a16" }).reason, 1, true)
    local w4a8 = of(nil, { backend = "w4a8" })
    assert.equal("inc_xpu_w4a8", w4a8.method)
    assert.matches("fewer than 512 tokens run as w4a16", w4a8.reason, 1, true)
    assert.matches("takes groups, not channels: found the group size -1", of({ group_size = -1 }, { backend = "w4a8" }).reason, 1, true)
    assert.matches("needs N of a multiple of 8, found 12", of(nil, { backend = "w4a8" }, linear("x", 12, 128)).reason, 1, true)
    assert.equal("wna16", of(nil, { platform = "cpu" }).method)
    assert.equal("inc_ark", of(nil, { platform = "cpu", packages = ARK.packages }).method)
    assert.matches("takes the layout gptq, found awq", of({ packing_format = "auto_round:auto_awq" }, { platform = "cpu" }).reason, 1, true)
    assert.equal("wna16", of({ bits = 3 }, { platform = "cuda" }).method)
    local ok, msg = new():method(layer, { backend = "marlni" })
    assert.is_nil(ok)
    assert.matches("unknown backend; expected auto, gptq, gptq:marlin, awq, awq:marlin, marlin, or ark, w4a16, w4a8 on the XPU", msg, 1,
      true)
    ok, msg = new():method(layer, { platform = "tpu" })
    assert.is_nil(ok)
    assert.matches("INC has no method on tpu", msg, 1, true)
  end)

  it("INC-19: on CUDA takes Marlin where it can, else plain AWQ or a refusal", function()
    local function of(more, l) return assert(new(more):method(l or layer, { capability = 80 })) end
    assert.same({ "gptq_marlin", "uint4b8" }, { of().method, of().type })
    assert.equal("uint8b128", of({ bits = 8 }).type)
    assert.matches("takes symmetric weights of 4 or 8 bits only, found 4 bits, asymmetric", of({ sym = false }).reason, 1, true)
    assert.matches("takes the group sizes -1, 32, 64 or 128, found 16", of({ group_size = 16 }).reason, 1, true)
    local packed = { packing_format = "auto_round:auto_awq", sym = false }
    local function with(more) return { packing_format = packed.packing_format, sym = more.sym or false, bits = more.bits } end
    assert.same({ "awq_marlin", "uint4" }, { of(packed).method, of(packed).type })
    packed.group_size = 16
    local plain = of(packed)
    assert.same({ "fallback", "awq" }, { plain.action, plain.method })
    assert.matches("model.x: Marlin does not take it (", plain.warning, 1, true)
    assert.matches("takes the group sizes -1, 32, 64 or 128, found 16): falling back to unoptimized AWQ", plain.warning, 1, true)
    local moe = of(nil, experts("e.experts", 192, 256))
    assert.same({ "fallback", "moe_wna16" }, { moe.action, moe.method })
    assert.matches("Marlin does not take it: ", moe.reason, 1, true)
    assert.equal("gptq_marlin", of(nil, experts("e.experts", 256, 256)).method)
    assert.equal("refuse", of({ sym = false }, experts("e.experts", 256, 256)).action)
    -- Marlin's uint4 goes with zero-points, and plain AWQ takes 4 bits.
    assert.same({ "fallback", "awq" }, { of(with { sym = true }).action, of(with { sym = true }).method })
    assert.same({ "refuse", "INC-19" }, { of(with { bits = 8 }).action, of(with { bits = 8 }).requirement })
  end)

  it("INC-20: names layer, backend, bits, symmetry and group in every refusal", function()
    local d = new({ sym = false, bits = 8 }):method(layer, { platform = "xpu", backend = "w4a8" })
    assert.matches("model.x (backend w4a8, 8 bits, asymmetric, group 128): w4a8: takes symmetric weights of 4 bits only", d.reason, 1, true)
    -- {config, backend, platform, layer}: one for each refusal
    for _, case in ipairs {
      { {}, "w4a8", "xpu", linear("model.x", 12, 128) }, { { group_size = 16 }, "w4a8", "xpu" }, { { bits = 2 }, "w4a16", "xpu" },
      { {}, "ark", "xpu" }, { { bits = 2 }, "auto", "xpu" }, { {}, "ark", "cpu" }, { { bits = 8 }, "auto", "cpu" },
      { { sym = false }, "gptq", "cuda" }, { { group_size = 16 }, "gptq:marlin", "cuda" },
      { {}, "best", "cuda" }, { {}, "auto", "tpu" },
    } do
      local config = new(case[1])
      local found, msg = config:method(case[4] or layer, { platform = case[3], backend = case[2], capability = 80 })
      if found then
        assert.equal("refuse", found.action)
        msg = found.reason
      end
      local facts = ("model.x (backend %s, %d bits, %s, group %d): "):format(case[2], config.bits,
        config.sym and "symmetric" or "asymmetric", config.group)
      assert.equal(facts, msg:sub(1, #facts))
      assert.is_true(#msg > #facts + 10)
    end
  end)
end)
