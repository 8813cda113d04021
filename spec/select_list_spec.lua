-- Lists of modules: m:grep and m:select find, narrow, print and count; mistakes are told with what was meant.
local nb = require "nibble"

local function refused(f, ...)
  local ok, msg = pcall(f, ...)
  assert.is_false(ok)
  return msg
end

describe("lists of modules", function()
  local llama, awq
  setup(function()
    llama = assert(nb.open "spec/models/tiny-llama")
    awq = assert(nb.open "spec/interop/autoawq-gemm-w4g128")
  end)

  it("are found by name, indexed, iterated and counted", function()
    local list = llama:grep "down_proj"
    assert.equal(4, #list)
    assert.equal("model.layers.2.mlp.down_proj", list[3].name)
    assert.same({ 256, 768 }, list[1].weight:size())
    local seen = {}
    for i, m in ipairs(list) do seen[i] = m.name end
    assert.same(seen, list:names())
    assert.equal(2, #llama:grep "re:layers\\.[01]\\.mlp\\.up")
    assert.equal(4, #llama:grep "*.self_attn.q_proj")
    assert.equal(0, #llama:grep "no such name")
  end)

  it("are chosen by what modules are", function()
    assert.equal(28, #llama:select { kind = "linear", name = "layers" })
    assert.equal(1, #llama:select { kind = "embedding" })
    assert.same({ "lm_head", "model.embed_tokens" }, llama:select({ min_bytes = 2 ^ 20 }):names())
    assert.same({ "lm_head", "model.embed_tokens" }, llama:select({ min_params = 2048 * 256, max_n = 2048 }):names())
    assert.equal(#llama:modules(), #llama:select { dtype = { "bf16", "f16" } })
    assert.equal(0, #llama:select { dtype = "f16" })
    assert.equal(#llama:modules(), #llama:select {})
    assert.equal(4, #llama:select { n = function(n) return n > 256 and n < 1000 end, k = 256, name = "gate_proj" })
    assert.equal(9, #llama:select { where = function(m) return m.name:find "layers%.1%." end })
    local quantized = awq:select { quantized = true }
    assert.equal(#quantized, #awq:select { bits = 4 })
    assert.equal(#quantized, #awq:select { scheme = "W4A16" })
    assert.equal(#quantized, #awq:select { scheme = "W4A16 asym", group = 128, symmetric = false })
    assert.equal(#quantized, #awq:select { scheme = "W4A16_ASYM" })
    assert.equal(#quantized, #awq:select { scheme = "g128" })
    assert.equal(0, #awq:select { scheme = { "W4A16 sym", "W8A16" } })
    assert.equal(#awq:modules(), #quantized + #awq:select { quantized = false })
    assert.equal(#quantized, #awq:select { max_bits_per_weight = 5 })
  end)

  it("are narrowed further, and keep what they are of", function()
    local list = llama:select({ kind = "linear" }):grep("mlp"):select { n = 768 }
    assert.equal(8, #list)
    assert.equal(llama, list.checkpoint)
    assert.equal(llama, list:grep("up").checkpoint)
    assert.same({ 768, 256 }, list[8].weight:size())
  end)

  it("print as a table with their totals", function()
    local text = tostring(llama:grep "layers.0.mlp")
    assert.matches("^module  ", text)
    assert.matches("\nmodel.layers.0.mlp.down_proj +bf16 +256×768 +16.00  384 KiB\n", text)
    assert.matches("\ntotal: 3 modules, 590 k params +16.00  1.1 MiB$", text)
    assert.same({ modules = 3, params = 3 * 256 * 768, bytes = 6 * 256 * 768, bits_per_weight = 16 },
      llama:grep("layers.0.mlp"):totals())
    assert.matches("{0..3}.mlp.up_proj +×4", tostring(llama:select {}))
    assert.matches("layers.3.mlp.up_proj", llama:select({}):show(), 1, true)
    assert.matches("total: 0 modules, 0 params", tostring(llama:grep "nothing"), 1, true)
    assert.matches("total: 1 module,", tostring(llama:grep "lm_head"), 1, true)
  end)

  it("say what is wrong with a question", function()
    assert.matches('select has no key "knd"; did you mean "kind"?', refused(llama.select, llama, { knd = "linear" }), 1, true)
    assert.matches('select has no key "min_byte"; did you mean "min_bytes"?', refused(llama.select, llama, { min_byte = 1 }), 1, true)
    assert.matches('did you mean "linear"?', refused(llama.select, llama, { kind = "linera" }), 1, true)
    assert.matches('no module has the dtype "bf61"; did you mean "bf16"?', refused(llama.select, llama, { dtype = { "bf61" } }), 1, true)
    assert.matches('bits is a number, found "4"', refused(llama.select, llama, { bits = "4" }), 1, true)
    assert.matches('unknown scheme "W4A61"; did you mean "W4A16"?', refused(awq.select, awq, { scheme = "W4A61 g128" }), 1, true)
    assert.matches("scheme is a text, as the table shows it, found a number", refused(awq.select, awq, { scheme = 4 }), 1, true)
    assert.matches("max_bytes is a number, found table", refused(llama.select, llama, { max_bytes = {} }), 1, true)
    assert.matches("where is a function", refused(llama.select, llama, { where = 1 }), 1, true)
    assert.matches("name is a pattern", refused(llama.select, llama, { name = 7 }), 1, true)
    assert.matches("select has no key", refused(llama.select, llama, { "linear" }), 1, true)
    assert.matches("expected a table", refused(llama.select, llama, "linear"), 1, true)
    assert.matches("expected a pattern", refused(llama.grep, llama, nil), 1, true)
    assert.matches("a group without its )", refused(llama.grep, llama, "re:("), 1, true)
    assert.matches('select has no key "knd"', refused(function() return llama:grep("mlp"):select { knd = 1 } end), 1, true)
  end)
end)
