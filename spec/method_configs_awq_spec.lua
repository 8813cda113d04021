-- AWQ's config, its skip lists and its layers (SYSTEMS AWQ-01 to AWQ-16): what it holds, what it refuses, and which method a
-- layer gets.
local nb = require "nibble"
local match = require "nibble.match"
local checkpoint = require "nibble.checkpoint"
local common = require "nibble.methods.config"
local awq = require "nibble.methods.awq_config"
local configs = require "spec.support.method_configs"

local refused, linear, experts, fused = configs.refused, configs.linear, configs.experts, configs.fused

local function awq_file(more)
  local t = { quant_method = "awq", bits = 4, group_size = 128, zero_point = true }
  for k, v in pairs(more or {}) do t[k] = v end
  return t
end

local function without(t, key)
  t[key] = nil
  return t
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
