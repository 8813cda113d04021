-- compressed-tensors' config (SYSTEMS CTM-SEL-01 to CTM-SEL-05): what it holds, what it refuses, and which method a layer gets.
local nb = require "nibble"
local ct = require "nibble.methods.ct_config"
local ct_args = require "nibble.formats.ct_args"
local configs = require "spec.support.method_configs"

local refused, linear, experts, fused = configs.refused, configs.linear, configs.experts, configs.fused

describe("compressed-tensors' config", function()
  local function file(groups, ignore, format)
    return { quant_method = "compressed-tensors", format = format or "pack-quantized", ignore = ignore, config_groups = groups }
  end
  local w4 = { num_bits = 4, type = "int", group_size = 128, strategy = "group" }
  local w8 = { num_bits = 8, type = "int", strategy = "channel" }

  it("CTM-SEL-03: reads arguments with defaults and refuses contradictions with both fields", function()
    assert.same({ bits = 8, type = "int", symmetric = true, strategy = "tensor", dynamic = false }, ct_args.parse {})
    assert.equal("group", ct_args.parse({ group_size = 32 }).strategy)
    assert.equal("channel", ct_args.parse({ group_size = -1 }).strategy)
    assert.same({ 64, 128 }, ct_args.parse({ strategy = "block", block_structure = "64x128" }).block)
    assert.equal("block", ct_args.parse({ block_structure = { 128, 128 } }).strategy)
    for given, want in pairs { dynamic = "group", static = "weight", group = "group", weight = "weight" } do
      assert.equal(want, ct_args.parse({ group_size = 32, actorder = given }).actorder)
    end
    assert.equal("group", ct_args.parse({ group_size = 32, actorder = true }).actorder)
    assert.equal("local", ct_args.parse({ strategy = "tensor_group", group_size = 16, dynamic = "local" }).dynamic)
    local bad = {
      ['strategy = "group" needs group_size above 0, found group_size = nil'] = { strategy = "group" },
      ['strategy = "channel" contradicts group_size = 64'] = { strategy = "channel", group_size = 64 },
      ['strategy = "block" needs block_structure'] = { strategy = "block" },
      ['block_structure contradicts strategy = "tensor"'] = { strategy = "tensor", block_structure = "128x128" },
      ['strategy = "token" needs dynamic = true, found dynamic = false'] = { strategy = "token" },
      ['dynamic = "local" needs strategy = "tensor_group", found strategy = "group"'] = { group_size = 16, dynamic = "local" },
      ['dynamic = true contradicts strategy = "block"'] = { block_structure = "8x8", dynamic = true },
      ['actorder = "group" needs strategy = "group", found strategy = "channel"'] = { strategy = "channel", actorder = "dynamic" },
      ['actorder = "weight" contradicts dynamic = true'] = { group_size = 32, actorder = "static", dynamic = true },
      ['actorder = random: expected group'] = { group_size = 32, actorder = "random" },
      ['block_structure = 128: expected [rows, columns]'] = { strategy = "block", block_structure = "128" },
      ["num_bits = 4.5: expected a whole number"] = { num_bits = 4.5 },
      ['type = "complex": expected int or float'] = { type = "complex" },
      ["symmetric = 1: expected true or false"] = { symmetric = 1 },
      ["group_size = 0: expected a number above 0"] = { group_size = 0 },
      ['strategy = "row": expected tensor, channel'] = { strategy = "row" },
      ['dynamic = "sometimes": expected false, true or "local"'] = { dynamic = "sometimes" },
      ['unknown argument num_bit; did you mean "num_bits"?'] = { num_bit = 4 },
    }
    for want, given in pairs(bad) do assert.matches(want, refused("eformat", ct_args.parse(given)), 1, true) end
    assert(ct_args.parse({ num_bit = 4 }, { unknown = true }))
  end)

  it("CTM-SEL-02: matches by name, then all shards, then class; shards partly ignored are an error", function()
    local c = assert(ct.new(file(assert(nb.json.decode [[{"b": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "strategy": "channel"}},
      "c": {"targets": ["l.q_proj", "l.k_proj", "l.v_proj"], "weights": {"num_bits": 4, "group_size": 64}},
      "a": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}}]]), { "lm_head", "l.gate_proj" })))
    local function of(name, kind) return c:method({ name = name, kind = kind or "linear" }, { fused = fused }) end
    assert.equal("config group b targets \"re:.*down_proj\": int8 channel symmetric", of "l.down_proj".reason)
    assert.equal(64, of "l.qkv_proj".weights.group)
    assert.equal(128, of "l.o_proj".weights.group)
    assert.same({ "skip", "unquantized" }, { of("lm_head", "lm_head").action, of("lm_head", "lm_head").method })
    assert.equal("no target of the config groups means it", of("head", "lm_head").reason)
    local d, msg = of "l.gate_up_proj"
    assert.is_nil(d)
    assert.matches("l.gate_up_proj: gate_proj is ignored and up_proj is not", msg, 1, true)
    assert.matches("CompressedTensorsConfig%(format=pack%-quantized, b: int8 channel symmetric", tostring(c))
  end)

  it("CTM-SEL-01: asks the three projections of expert 0, which must share one scheme", function()
    local c = assert(ct.new(file({ a = { targets = { "Linear" }, weights = w4 } }, { "re:m\\..*experts.*" })))
    local d = c:method(experts("l.experts", 256, 256))
    assert.same({ "wna16", 128 }, { d.method, d.weights.group })
    d = c:method(experts("m.experts", 256, 256))
    assert.same({ "skip", "unquantized", "CTM-SEL-01" }, { d.action, d.method, d.requirement })
    c = assert(ct.new(file(assert(nb.json.decode [[{"d": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "strategy": "channel"}},
      "a": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}}]]))))
    local ok, msg = c:method(experts("l.experts", 256, 256))
    assert.is_nil(ok)
    assert.matches("l.experts: the projections of a mixture of experts must share one scheme, but l.experts.0.gate_proj is config group a "
      .. "and l.experts.0.down_proj is config group d", msg, 1, true)
    assert.equal("wna16", c:method({ name = "l.experts", kind = "moe", projections = { "w1", "w3", "w2" } }).method)
  end)

  it("CTM-SEL-04: takes the first method in its order, and names both schemes where none is", function()
    local fp8 = { type = "float", strategy = "channel" }
    local block = { type = "float", block_structure = { 128, 128 } }
    local nvfp4 = { num_bits = 4, type = "float", strategy = "tensor_group", group_size = 16 }
    local mxfp4 = { num_bits = 4, type = "float", group_size = 32 }
    local token8 = { strategy = "token", dynamic = true }
    local f8 = { type = "float", strategy = "token", dynamic = true }
    local function of(w, a, format, capability)
      local rule, msg = ct.method_of { weights = assert(ct_args.parse(w)), activations = a and assert(ct_args.parse(a)), kind = "moe",
        format = format or "pack-quantized", capability = capability, layer = "x" }
      return rule and rule.method, msg
    end
    assert.equal("w4a8_mxfp4", of(mxfp4, f8))
    assert.equal("mxfp4", of(mxfp4))
    assert.equal("mxfp8", of { type = "float", group_size = 32 })
    assert.equal("wna16", of(w4))
    assert.equal("nvfp4", of(nvfp4))
    assert.equal("nvfp4", of(nvfp4, nvfp4))
    assert.equal("fp8_w8a8", of(fp8, f8, "float-quantized"))
    assert.equal("fp8_w8a8", of(block, { type = "float", group_size = 128, dynamic = true }, "float-quantized"))
    assert.equal("int8_w8a8", of(w8, token8, "int-quantized"))
    assert.equal("w4a8_fp8", of(w4, f8, "int-quantized", 90))
    assert.equal("w4a8_int", of(w4, token8, "int-quantized"))
    local method, msg = of(w4, nil, "int-quantized")
    assert.is_nil(method)
    assert.matches("x: no method takes weights int4 group 128 symmetric with activations none in format int-quantized", msg, 1, true)
    assert.matches("weights without activations need format pack-quantized", msg, 1, true)
    method, msg = of(nvfp4, token8)
    assert.is_nil(method)
    assert.matches("activations must be NVFP4 too, or none (NVFP4A16), found int8 token dynamic symmetric", msg, 1, true)
    assert.equal("int8_w8a8", (of(w8, f8, "float-quantized", 80))) -- the peer looks at the bits only
    method, msg = of(fp8, token8, "float-quantized", 80)
    assert.is_nil(method)
    assert.matches("weights float8 channel symmetric with activations int8 token dynamic symmetric in format float%-quantized on SM 80", msg)
  end)

  it("CTM-SEL-05: NVFP4 and FP8 set up their kernel themselves; WNA16 and AWQ build experts when asked", function()
    for _, method in ipairs { "nvfp4", "fp8_w8a8" } do
      assert.has_error(function() ct.prepare_finalize(method) end,
        method .. " sets up its kernel itself when it processes weights: it has no prepare/finalize object to give")
    end
    assert.is_nil(ct.prepare_finalize "wna16")
    assert.same({ { experts = true }, { experts = true }, {} },
      { ct.kernel_setup "wna16", ct.kernel_setup "awq_marlin", ct.kernel_setup "w4a8_int" })
  end)

  it("refuses configs that say no groups, no targets, or no format", function()
    assert.matches("config_groups is missing", refused("eformat", ct.new { format = "pack-quantized" }), 1, true)
    assert.matches("config_groups.a has no list of targets", refused("eformat", ct.new(file { a = { weights = w4 } })), 1, true)
    assert.matches('"mixed-precision", so the group must name its own',
      refused("eformat", ct.new(file({ a = { targets = { "Linear" }, weights = w4 } }, nil, "mixed-precision"))), 1, true)
    assert.matches("config_groups.a: weights: num_bits = 0", refused("eformat",
      ct.new(file { a = { targets = { "Linear" }, weights = { num_bits = 0 } } })), 1, true)
    assert.matches("config_groups.a: input_activations is 8, expected a table", refused("eformat",
      ct.new(file { a = { targets = { "Linear" }, weights = w4, input_activations = 8 } })), 1, true)
    assert.equal(128, ct.new(file { W4A16 = nb.json.array { "Linear" } }):method(linear("a", 64, 128)).weights.group)
  end)
end)
