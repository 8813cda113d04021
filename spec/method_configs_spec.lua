-- Quantization configs as consumers see them: what they hold, what they refuse, and which method a layer gets
-- (SYSTEMS AWQ-01 to AWQ-16, MRL-53, MRL-54, INC-01 to INC-06, INC-18 to INC-20, CTM-SEL-01 to CTM-SEL-05).
local nb = require "nibble"
local match = require "nibble.match"
local checkpoint = require "nibble.checkpoint"
local common = require "nibble.methods.config"
local awq = require "nibble.methods.awq_config"
local gptq = require "nibble.methods.gptq_config"
local inc = require "nibble.methods.inc_config"
local ct = require "nibble.methods.ct_config"
local pymllm = require "nibble.methods.pymllm_config"
local ct_args = require "nibble.formats.ct_args"
local registry = require "nibble.methods.registry"

local fused = { qkv_proj = { "q_proj", "k_proj", "v_proj" }, gate_up_proj = { "gate_proj", "up_proj" } }

local function awq_file(more)
  local t = { quant_method = "awq", bits = 4, group_size = 128, zero_point = true }
  for k, v in pairs(more or {}) do t[k] = v end
  return t
end

local function without(t, key)
  t[key] = nil
  return t
end

local function refused(code, ok, msg, found)
  assert.is_nil(ok)
  assert.equal(code, found)
  return msg
end

local function linear(name, n, k, k_full) return { name = name, kind = "linear", n = n, k = k, k_full = k_full or k } end
local function experts(name, hidden, intermediate)
  return { name = name, kind = "moe", hidden = hidden, intermediate = intermediate }
end

describe("AWQ's config", function()
  it("AWQ-01: reads its keys and aliases, and lists the keys it tried", function()
    local c = assert(awq.new(awq_file()))
    assert.same({ 4, 128, true, false, {} }, { c.bits, c.group, c.zero_point, c.lm_head, c.skip })
    c = assert(awq.new { w_bit = 4, q_group_size = 64, zero_point = true, lm_head = true, modules_to_not_convert = nb.json.null })
    assert.same({ 4, 64, true, {} }, { c.bits, c.group, c.lm_head, c.skip })
    assert.matches("none of the keys bits, w_bit is there", refused("eformat", awq.new(without(awq_file(), "bits"))), 1, true)
    assert.matches("none of the keys group_size, q_group_size is there",
      refused("eformat", awq.new(without(awq_file(), "group_size"))), 1, true)
    assert.matches("none of the keys zero_point is there", refused("eformat", awq.new(without(awq_file(), "zero_point"))), 1, true)
    assert.matches("the AWQ config: bits is four, expected a number", refused("eformat", awq.new(awq_file { bits = "four" })), 1, true)
    assert.matches("the AWQ config: modules_to_not_convert is x, expected a list of module names",
      refused("eformat", awq.new(awq_file { modules_to_not_convert = "x" })), 1, true)
    assert.matches("the AWQ config: entry 2 of modules_to_not_convert is 7, expected a module name",
      refused("eformat", awq.new(awq_file { modules_to_not_convert = { "a", 7 } })), 1, true)
  end)

  it("AWQ-02: takes 4 bits as uint4, 8 codes a word, and verifies the group size at construction", function()
    local c = assert(awq.new(awq_file()))
    assert.same({ "uint4", 8 }, { c.type, c.pack_factor })
    assert.matches("8 bits are not supported, only 4", refused("eunsupported", awq.new(awq_file { bits = 8 })), 1, true)
    local msg = refused("eunsupported", awq.new(awq_file { group_size = 16 }))
    assert.matches("group_size 16", msg, 1, true)
    assert.matches("-1, 32, 64, 128 are supported", msg, 1, true)
    assert.matches("capability 70", refused("eunsupported", awq.new(awq_file(), { capability = 70 })), 1, true)
    assert(awq.new(awq_file { group_size = 16 }, { dialect = "auto_awq" })) -- verified when a layer asks
  end)

  it("AWQ-03: refuses zero_point = false and says that it is the zero-points", function()
    local msg = refused("eunsupported", awq.new(awq_file { zero_point = false }))
    assert.matches("the AWQ config: group_size 128 with zero_point = false", msg, 1, true)
    assert.matches("uint4b8, uint8b128", msg, 1, true)
    assert.matches("zero-points no", msg, 1, true)
  end)

  it("AWQ-04: has a name, dtypes, a least capability, files and a printable form", function()
    local d = awq.dialects.awq_marlin
    assert.same({ "awq_marlin", { "f16", "bf16" }, 75, { "quantize_config.json", "quant_config.json" } },
      { d.name, d.activations, d.min_capability, d.files })
    assert.equal("AWQMarlinConfig(quant_type=uint4, group_size=64, zero_point=True, lm_head_quantized=True, "
      .. "modules_to_not_convert=['visual', 'gate'])",
      tostring(awq.new(awq_file { group_size = 64, lm_head = true, modules_to_not_convert = { "visual", "gate" } })))
  end)

  it("AWQ-05: is convertible or not, with the reason and never an error", function()
    local function reason(config, o)
      local ok, why = awq.convertible(config, o or { capability = 80 })
      assert.equal(false, ok)
      return why
    end
    assert.is_true(awq.convertible(awq_file { quant_method = "AWQ" }, { capability = 80 }))
    assert.is_true(awq.convertible(awq_file(), { platform = "cpu" }) )
    assert.matches("xpu has no awq_marlin", reason(awq_file(), { platform = "xpu" }))
    assert.matches("quant_method is gptq, not awq", reason(awq_file { quant_method = "gptq" }))
    assert.matches("quant_method is missing", reason(without(awq_file(), "quant_method")))
    assert.matches("group_size is missing", reason(without(awq_file(), "group_size")))
    assert.matches("zero_point is missing", reason(without(awq_file(), "zero_point")))
    assert.matches("8 bits are not supported, only 4", reason(awq_file { bits = 8 }))
    assert.matches("group size 16", reason(awq_file { group_size = 16 }))
    assert.matches("capability 70", reason(awq_file(), { capability = 70 }))
  end)

  it("AWQ-06: takes over by the user's choice, and says so", function()
    local o = { capability = 80 }
    for _, choice in ipairs { false, "marlin", "awq_marlin" } do
      local name, said = awq.override(awq_file(), choice or nil, o)
      assert.equal("awq_marlin", name)
      assert.matches("can be converted to awq_marlin while it is loaded: awq_marlin is used", said, 1, true)
    end
    local name, said = awq.override(awq_file(), "awq", o)
    assert.is_nil(name)
    assert.matches("could run as awq_marlin, but awq was asked for and is kept; awq_marlin would be faster", said, 1, true)
    name, said = awq.override(awq_file(), "gptq", o)
    assert.same({}, { name, said })
    name, said = awq.override(awq_file { bits = 8 }, nil, o)
    assert.same({}, { name, said })
  end)

  it("AWQ-07: rewrites a skip list that is not empty into the running model's names", function()
    local mapper = { prefix = { { "model.visual.", "visual." }, { "thinker.", false } }, substr = { { ".moe.", ".mlp." } },
      suffix = { { ".gate.wg", ".gate" } } }
    local c = assert(awq.new(awq_file { modules_to_not_convert = { "model.visual.merger", "thinker.x", "layers.0.moe.gate.wg" } }))
    c:map_names(mapper)
    assert.same({ "visual.merger", "layers.0.mlp.gate" }, c.skip)
    assert.same({}, assert(awq.new(awq_file())):map_names(mapper).skip)
    assert.same({ "A" }, common.mapped({ "a" }, string.upper))
  end)

  it("AWQ-08: lists the layers that hold floats only, when the file lists none", function()
    local tensors = { { name = "a.weight", dtype = "bf16" }, { name = "a.bias", dtype = "f16" }, { name = "b.qweight", dtype = "i32" },
      { name = "b.scales", dtype = "f16" }, { name = "c.weight", dtype = "f8_e4m3" }, { name = "d.weight", dtype = "f32" } }
    local c = assert(awq.new(awq_file())):complete { tensors = tensors }
    assert.same({ "a", "d" }, c.skip)
    assert.is_true(c.automatic)
    c = assert(awq.new(awq_file { modules_to_not_convert = { "x" } })):complete { tensors = tensors }
    assert.same({ "x" }, c.skip)
  end)

  it("AWQ-09: reads headers of a folder, of files, and of a revision in a local cache; no dtype marks nothing", function()
    assert.same({ "a" }, common.unquantized_layers { { name = "a.weight", dtype = "f16" }, { name = "a.extra" } })
    local dir = os.tmpname()
    os.remove(dir)
    local snapshot = dir .. "/models--org--tiny/snapshots/abc123"
    assert(checkpoint.mkdir(snapshot))
    assert(checkpoint.mkdir(dir .. "/models--org--tiny/refs"))
    assert(checkpoint.write_file(dir .. "/models--org--tiny/refs/main", "abc123\n"))
    local source = "spec/interop/autoawq-gemm-w4g128"
    for _, name in ipairs(assert(checkpoint.list(source))) do
      if name:match "%.safetensors" or name == "config.json" then
        assert(checkpoint.copy_file(source .. "/" .. name, snapshot .. "/" .. name))
      end
    end
    local function skip(from, o) return assert(assert(awq.new(awq_file())):complete(from, o)).skip end
    local want = skip(source)
    assert.is_true(#want > 0)
    for _, name in ipairs(want) do assert.is_nil(nb.open(source):info(name .. ".qweight")) end
    assert.same(want, skip { source .. "/model.safetensors" })
    assert.same(want, skip("org/tiny", { cache = dir }))
    assert.same(want, skip("org/tiny", { cache = dir, revision = "abc123" }))
    local c = assert(awq.new(awq_file()))
    assert.matches("the cache has no revision v9; it has abc123", refused("eio", c:complete("org/tiny", { cache = dir, revision = "v9" })),
      1, true)
    assert.matches("org/other is neither a folder nor in the cache", refused("eio", c:complete("org/other", { cache = dir })), 1, true)
    os.execute("rm -r " .. dir)
  end)
end)

describe("skip lists", function()
  it("AWQ-11: match parts of names, whole names or suffixes at a dot", function()
    local name = "model.layers.0.self_attn.kv_proj"
    assert.is_true(match.skipped(name, { "v_proj" }))
    assert.is_false(match.skipped(name, { "v_proj" }, { mode = "suffix" }))
    assert.is_true(match.skipped(name, { "kv_proj" }, { mode = "suffix" }))
    assert.is_false(match.skipped(name, { "kv_proj" }, { mode = "exact" }))
    assert.is_true(match.skipped(name, { name }, { mode = "exact" }))
    assert.matches("entry 2 is empty; it would match everything", refused("eformat", match.skipped(name, { "x", "" })), 1, true)
    assert.has_error(function() match.skipped(name, {}, { mode = "sufix" }) end, 'skip mode "sufix"; did you mean "suffix"?')
  end)

  it("AWQ-12: a fused layer's own name wins; else all shards must agree; only the last part is replaced", function()
    local name = "qkv_proj.layers.0.qkv_proj"
    assert.same({ "qkv_proj.layers.0.q_proj", "qkv_proj.layers.0.k_proj", "qkv_proj.layers.0.v_proj" }, match.shards(name, fused))
    local o = { mode = "exact", fused = fused }
    assert.is_true(match.skipped(name, { name }, o))
    assert.is_true(match.skipped(name, match.shards(name, fused), o))
    assert.is_false(match.skipped(name, {}, o))
    local msg = refused("eformat", match.skipped("l.qkv_proj", { "q_proj" }, { fused = fused }))
    assert.matches("l.qkv_proj: q_proj is skipped and k_proj is not, but a fused layer's shards must share one precision; "
      .. "name all of l.q_proj, l.k_proj, l.v_proj or none", msg, 1, true)
  end)

  it("AWQ-13: of experts look at the block's name; in exact mode at entries inside it", function()
    local block = "model.layers.1.mlp.experts"
    assert.is_true(match.skipped(block, { "mlp.experts" }, { moe = true, fused = fused }))
    assert.is_false(match.skipped(block, { block .. ".0.gate_proj" }, { moe = true }))
    assert.is_true(match.skipped(block, { block .. ".0.gate_proj" }, { moe = true, mode = "exact" }))
    assert.is_false(match.skipped(block, { block:sub(1, -9) .. ".gate" }, { moe = true, mode = "exact" }))
  end)
end)

describe("AWQ's layers", function()
  local c = assert(awq.new(awq_file { modules_to_not_convert = { "layers.0.", "mlp.experts" } }))

  it("AWQ-10: are linear layers, mixtures, and the LM head only where the config says so", function()
    assert.is_nil(c:method { name = "lm_head", kind = "lm_head", n = 512, k = 256, k_full = 256 })
    assert.is_nil(c:method { name = "embed", kind = "embedding" })
    local with = assert(awq.new(awq_file { lm_head = true }))
    assert.equal("awq_marlin", with:method({ name = "lm_head", kind = "lm_head", n = 512, k = 256, k_full = 256 }).method)
  end)

  it("AWQ-14: are unquantized where skipped, with the entry that says so", function()
    local d = c:method(linear("model.layers.0.mlp.down_proj", 256, 256), { fused = fused })
    assert.same({ "skip", "unquantized" }, { d.action, d.method })
    assert.matches('"layers.0." of modules_to_not_convert means it', d.reason, 1, true)
    d = c:method(experts("model.layers.1.mlp.experts", 256, 256))
    assert.same({ "skip", "unquantized", "AWQ-13" }, { d.action, d.method, d.requirement })
  end)

  it("AWQ-15: get Marlin, or where the shape doesn't fit plain AWQ with a warning; C-05: or a refusal", function()
    local d = c:method(linear("model.layers.1.o_proj", 256, 256))
    assert.same({ "method", "awq_marlin", "AWQ-15" }, { d.action, d.method, d.requirement })
    assert.is_nil(d.warning)
    local odd = linear("model.layers.1.o_proj", 200, 256)
    d = c:method(odd)
    assert.same({ "fallback", "awq", "AWQ-15" }, { d.action, d.method, d.requirement })
    assert.matches("N = 200 is not a multiple of 64", d.reason, 1, true)
    assert.matches("model.layers.1.o_proj: Marlin does not take it (N = 200 is not a multiple of 64", d.warning, 1, true)
    assert.matches("falling back to unoptimized AWQ", d.warning, 1, true)
    d = c:method(odd, { policy = "raise" })
    assert.equal("refuse", d.action)
    assert.matches("model.layers.1.o_proj: Marlin does not take it: N = 200", d.reason, 1, true)
    local padded = assert(awq.new(awq_file(), { dialect = "auto_awq" })) -- vLLM 0.33 pads tiles
    assert.equal("auto_awq", padded:method(odd).method)
    d = assert(awq.new(awq_file(), { dialect = "awq" })):method(odd)
    assert.same({ "method", "awq" }, { d.action, d.method })
    d = padded:method(linear("x", 256, 192, 384))
    assert.same({ "fallback", "awq" }, { d.action, d.method })
    assert.matches("K = 192 is not a multiple of the group size 128", d.reason, 1, true)
  end)

  it("AWQ-16: of experts get Marlin, or the generic WNA16 kernels with a warning", function()
    local d = c:method(experts("layers.1.experts", 256, 256))
    assert.same({ "method", "awq_marlin", "AWQ-16" }, { d.action, d.method, d.requirement })
    d = c:method(experts("layers.1.experts", 192, 256))
    assert.same({ "fallback", "moe_wna16", "AWQ-16" }, { d.action, d.method, d.requirement })
    assert.matches("hidden size 192", d.reason, 1, true)
    assert.matches("falling back to the generic WNA16 kernels", d.warning, 1, true)
  end)
end)

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

describe("pymllm", function()
  it("MRL-53: reads bits, group size and zero-points with defaults, and skips nothing", function()
    local c = assert(pymllm.new {})
    assert.same({ 4, 128, true, "uint4" }, { c.bits, c.group, c.zero_point, c.type })
    c = assert(pymllm.new { w_bit = 8, bits = nb.json.null, modules_to_not_convert = { "x" } })
    assert.same({ 8, "uint8", 4 }, { c.bits, c.type, c.pack_factor })
    assert.matches("3 bits are not supported, only 4, 8", refused("eunsupported", pymllm.new { bits = 3 }), 1, true)
    assert.same({ "awq_marlin", { "f16", "bf16" }, { "quantize_config.json" } }, { pymllm.name, pymllm.activations, pymllm.files })
    local d = c:method(linear("x", 128, 128), { capability = 80 })
    assert.same({ "method", "awq_marlin" }, { d.action, d.method })
    assert.is_nil(c:method({ name = "lm_head", kind = "lm_head" }, { capability = 80 }))
    d = c:method(linear("x", 100, 128), { capability = 80 })
    assert.equal("refuse", d.action)
    assert.matches("x: Marlin does not take it: N = 100", d.reason, 1, true)
    assert.equal("fallback", c:method(linear("x", 100, 128), { capability = 80, policy = "fallback" }).action)
    d = c:method(linear("x", 128, 128), { capability = 75 })
    assert.matches("SM 80 or above, found SM 75", d.reason, 1, true)
    assert.equal("vllm", nb.marlin.policy)
  end)

  it("MRL-54: registers names once, lists them, and has defaults", function()
    local r = registry.new()
    r.register("b", { source = "here" })
    r.register("a", { source = "there", min_capability = 75 })
    assert.same({ "a", "b" }, r.names())
    assert.has_error(function() r.register("b", { source = "elsewhere" }) end,
      'the quantization method "b" is registered already: by here, and now by elsewhere')
    assert.has_error(function() r.register("", {}) end, "a quantization method needs a name")
    assert.matches('unknown quantization method "c"; registered: a, b', refused("einval", r.get "c"), 1, true)
    local b = assert(r.get "b")
    assert.same({ { "f16", "bf16", "f32" }, 0, { "quantize_config.json" } }, { b.activations, b.min_capability, b.files })
    assert.is_nil(b.method {})
    assert.equal(75, r.get "a".min_capability)
    assert.equal(pymllm, pymllm.registry.get "awq_marlin")
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
