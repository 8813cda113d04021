-- Formats through files: written by the streaming writer tile by tile, opened again, equal.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme

local dir

-- Modules of two schemes beside plain ones, as a checkpoint folder of this format.
local function write(format, words)
  local f = formats.get(format)
  local records, tensors, held, weights = {}, {}, {}, {}
  for i, w in ipairs(words) do
    local name = ("model.layers.%d.mlp.up_proj"):format(i)
    weights[name] = support.quantized(scheme.parse(w), 64, 96, "f16", i)
    local stored, rec = assert(support.store(format, name, weights[name], { rows = 32 }))
    records[#records + 1] = rec
    for _, entry in ipairs(f.layout(rec)) do
      tensors[#tensors + 1] = { name = name .. "." .. entry.suffix, dtype = entry.dtype, shape = entry.shape }
      held[#held + 1] = stored[name .. "." .. entry.suffix]
    end
  end
  for _, name in ipairs { "model.norm", "lm_head" } do
    held[#held + 1] = nb.tensor("f16", name == "lm_head" and { 8, 96 } or { 96 })
    tensors[#tensors + 1] = { name = name .. ".weight", dtype = "f16", shape = held[#held]:size() }
    records[#records + 1] = { name = name, kind = name == "lm_head" and "linear" or "norm" }
  end
  local config = assert(f.config(records))
  local w = assert(checkpoint.writer { dir = dir, tensors = tensors, metadata = { format = "pt" } })
  for i, t in ipairs(held) do assert(w:put(tensors[i].name, t)) end
  assert(w:finish())
  assert(checkpoint.write_file(dir .. "/config.json", nb.json.encode { quantization_config = config }))
  return weights
end

describe("formats in files", function()
  before_each(function()
    dir = os.tmpname()
    os.remove(dir)
    assert(checkpoint.mkdir(dir))
  end)
  after_each(function() os.execute(("rm -rf '%s'"):format(dir)) end)

  local cases = {
    ["compressed-tensors"] = { "W4A16 g32 sym", "W3A16 g32 asym", "W8A16 channel sym", "W4A16 g32 asym actorder" },
    gptq = { "W4A16 g32 sym", "W4A16 g32 sym", "W8A16 g32 sym", "W4A16 channel sym" },
    gptq_v2 = { "W4A16 g32 asym", "W3A16 g32 asym", "W4A16 g32 asym actorder" },
    awq = { "W4A16 g32 asym", "W4A16 g32 sym" },
  }
  for format, words in pairs(cases) do
    it(format .. ": every module comes back, with its own scheme", function()
      local weights = write(format, words)
      local ck = assert(nb.open(dir))
      local quantized = 0
      for _, rec in ipairs(assert(ck:modules())) do
        if rec.scheme then
          quantized = quantized + 1
          assert.equal(format, rec.format)
          assert.is_nil(rec.variant)
          assert.same({ true }, { weights[rec.name]:equal(assert(ck:quantized(rec.name))) }, rec.name)
        end
      end
      assert.equal(#words, quantized)
      assert.equal("linear", ck["lm_head"].kind)
    end)
  end
end)

describe("plain", function()
  it("reads f32, f16 and bf16 weights, and casts", function()
    for _, dtype in ipairs { "f32", "f16", "bf16" } do
      local w = nb.tensor(dtype, { 4, 8 })
      for i = 1, 32 do w:set(i, i / 16 - 1) end
      local ck = support.checkpoint { ["m.proj.weight"] = w }
      for _, wanted in ipairs { "f32", "f16", "bf16" } do
        local t = assert(formats.weight(ck, "m.proj", wanted))
        assert.equal(wanted, t:type())
        for i = 1, 32 do assert.equal(i / 16 - 1, t:get(i)) end
      end
      assert.is_true(formats.weight(ck, "m.proj"):equal(w))
    end
  end)

  it("writes what a quantized weight dequantizes to, in tiles", function()
    local q = support.quantized(scheme.parse "W4A16 g32 asym", 16, 64, "f16")
    local f = formats.get "plain"
    local rec = formats.target(f, "m.proj", nil, 16, 64, { dtype = "bf16" })
    assert.equal(16 * 64 * 2, rec.bytes)
    local dst = { weight = nb.tensor("bf16", { 16, 64 }) }
    for a = 1, 16, 3 do
      local b = math.min(16, a + 2)
      assert(f.write(dst, rec, a, b, q:rows(a, b)))
    end
    assert.is_true(dst.weight:equal(q:dequantize "bf16"))
    assert.is_nil(f.config {})
  end)
end)
