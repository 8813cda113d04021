-- pymllm's config and its registry of names (SYSTEMS MRL-53, MRL-54).
local nb = require "nibble"
local pymllm = require "nibble.methods.pymllm_config"
local registry = require "nibble.methods.registry"
local configs = require "spec.support.method_configs"

local refused, linear = configs.refused, configs.linear

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
