-- The registry, module records, and what every format shares: detection, natural order, bad scales.
local nb = require "nibble"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme

local function f16(shape) return nb.tensor("f16", shape) end

-- A small quantized checkpoint: m.proj as format, beside plain modules.
local function mixed(format, words, change)
  local q = support.quantized(scheme.parse(words), 32, 64, "f16")
  local tensors, rec = assert(support.store(format, "model.layers.0.mlp.up_proj", q))
  tensors["model.norm.weight"] = f16 { 64 }
  tensors["model.embed_tokens.weight"] = f16 { 16, 64 }
  tensors["lm_head.weight"] = f16 { 16, 64 }
  local config = formats.get(format).config { rec, { name = "lm_head", kind = "linear" } }
  if change then change(tensors, config, q) end
  return support.checkpoint(tensors, config), q
end

local function problem(...)
  local list, msg, code = formats.modules(...)
  assert.is_nil(list)
  assert.equal("eformat", code)
  return msg
end

describe("formats", function()
  it("knows formats by name and alias, and suggests", function()
    assert.equal("compressed-tensors", formats.get("ct").name)
    assert.equal("gptq_v2", formats.get("gptq_v2").name)
    local f, msg = formats.get "gtpq"
    assert.is_nil(f)
    assert.matches('unknown format "gtpq"; did you mean "gptq"', msg)
  end)

  it("sorts modules naturally and says what they are", function()
    local tensors = { ["model.embed_tokens.weight"] = f16 { 8, 4 }, ["model.norm.weight"] = f16 { 4 } }
    for _, i in ipairs { 10, 2, 1 } do
      tensors[("model.layers.%d.mlp.up_proj.weight"):format(i)] = f16 { 8, 4 }
      tensors[("model.layers.%d.mlp.up_proj.bias"):format(i)] = f16 { 8 }
    end
    tensors["model.layers.1.self_attn.sinks"] = f16 { 4 }
    local ck = support.checkpoint(tensors)
    local names, kinds = {}, {}
    for i, rec in ipairs(assert(formats.modules(ck))) do names[i], kinds[i] = rec.name, rec.kind end
    assert.same({ "model.embed_tokens", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn",
      "model.layers.2.mlp.up_proj", "model.layers.10.mlp.up_proj", "model.norm" }, names)
    assert.same({ "embedding", "linear", "other", "linear", "linear", "norm" }, kinds)
    local rec = assert(formats.record(ck, "model.layers.2.mlp.up_proj"))
    assert.is_true(rec.bias)
    assert.same({ 8, 4, 40, 80, 16, "f16", "plain" },
      { rec.n, rec.k, rec.params, rec.bytes, rec.bits_per_weight, rec.dtype, rec.format })
  end)

  it("gives weights by module, by tensor, and as another dtype", function()
    local ck, q = mixed("ct", "W4A16 g32 sym")
    assert.is_true(formats.weight(ck, "model.norm"):equal(ck.held["model.norm.weight"]))
    assert.is_true(formats.weight(ck, "model.norm.weight"):equal(ck.held["model.norm.weight"]))
    local w = formats.weight(ck, "model.layers.0.mlp.up_proj", "f32")
    assert.is_true(w:equal(q:dequantize "f32"))
    assert.equal("f16", formats.weight(ck, "model.layers.0.mlp.up_proj"):type())
    local m = assert(formats.module(ck, "model.layers.0.mlp.up_proj"))
    assert.is_true(m.quantized:equal(q))
    assert.is_true(m.weight:equal(q:dequantize()))
    assert.matches("up_proj  linear %[32×64%]  W4A16 g32 sym", tostring(m))
    assert.is_nil(formats.module(ck, "model.norm").quantized)
    local none, msg = formats.weight(ck, "model.layers.0.mlp.pu_proj")
    assert.is_nil(none)
    assert.matches('no module "model.layers.0.mlp.pu_proj"; did you mean "model.layers.0.mlp.up_proj"', msg)
  end)

  it("dequantizes large modules tile by tile to the same numbers", function()
    local ck, q = mixed("gptq", "W4A16 g32 asym")
    local rec = formats.record(ck, "model.layers.0.mlp.up_proj")
    assert.equal(8, formats.tile_rows(formats.get "gptq", rec, 64 * 9))
    assert.equal(32, formats.tile_rows(formats.get "gptq", rec))
    assert.is_true(formats.weight(ck, rec.name, "f32"):equal(q:dequantize "f32"))
  end)

  it("finds modules by glob, pattern and part of the name", function()
    local ck = mixed("ct", "W4A16 g32 sym")
    local function names(pattern)
      local out = {}
      for i, rec in ipairs(assert(formats.grep(ck, pattern))) do out[i] = rec.name end
      return out
    end
    assert.same({ "model.layers.0.mlp.up_proj" }, names "*.mlp.*")
    assert.same({ "model.layers.0.mlp.up_proj" }, names "re:layers\\.\\d+")
    assert.same({ "model.norm" }, names "nor")
    assert.same({ "lm_head" }, names "lm?head")
    local none, msg = formats.grep(ck, "re:(")
    assert.is_nil(none)
    assert.matches("without its %)", msg)
  end)

  it("refuses quantized tensors without a config", function()
    local ck = mixed("ct", "W4A16 g32 sym")
    ck.quantization = nil
    assert.matches("holds model.layers.0.mlp.up_proj.weight_packed, but neither config.json nor a side file",
      problem(ck))
  end)

  it("lists the modules of methods it can't read, and refuses their weights by name", function()
    local ck = support.checkpoint({ ["m.a.weight"] = nb.tensor("u8", { 32, 1 }), ["m.a.weight.absmax"] = nb.tensor("f32", { 1 }),
      ["m.b.weight"] = f16 { 8, 8 } }, { quant_method = "bitsandbytes" })
    assert.equal(3, #assert(formats.modules(ck)))
    local w, msg, code = formats.weight(ck, "m.a")
    assert.is_nil(w)
    assert.equal("eunsupported", code)
    assert.matches("m.a: not readable yet: format bitsandbytes", msg)
    assert.equal("f16", formats.weight(ck, "m.b"):type())
  end)

  for _, format in ipairs { "compressed-tensors", "gptq", "awq" } do
    describe(format, function()
      local function with_scale(bits, change)
        return mixed(format, "W4A16 g32 asym", function(tensors, _, q)
          q.scales:as("u16"):set(2 * 4 + 2, bits) -- row 4, group 1
          if change then change(q) end
          local changed = assert(support.store(format, "model.layers.0.mlp.up_proj", q))
          for name, t in pairs(changed) do tensors[name] = t end
        end)
      end

      it("names the module, row and group of a NaN, infinite or zero scale", function()
        for what, bits in pairs { ["NaN"] = 0x7e00, infinite = 0xfc00, zero = 0x8000 } do
          local q, msg, code = formats.quantized(with_scale(bits), "model.layers.0.mlp.up_proj")
          assert.is_nil(q)
          assert.equal("eformat", code)
          assert.matches("up_proj: the scale of row 4, group 1 is " .. what, msg)
        end
      end)

      it("allows a zero scale where all codes are the zero-point, and negative scales", function()
        local ck = with_scale(0, function(q)
          for c = 32, 63 do q.codes:ptr()[4 * 64 + c] = q.zeros:get(2 * 4 + 2) end
        end)
        assert.is_truthy(formats.quantized(ck, "model.layers.0.mlp.up_proj"))
        assert.is_truthy(formats.quantized(with_scale(0xa000), "model.layers.0.mlp.up_proj"))
      end)
    end)
  end

  it("checks scales whatever their dtype", function()
    local ffi = require "nibble.ffi"
    local nan = { f32 = { "u32", 0x7fc00000 }, bf16 = { "u16", 0x7fc0 }, f16 = { "u16", 0x7c01 } }
    for dtype, bits in pairs(nan) do
      local q = support.quantized(scheme.parse "W8A16 channel sym", 3, 16, dtype)
      assert.equal(0, ffi.C.nb_scales_check(q.scales, q.codes, nil, nil, 8, 0, "m"))
      q.scales:as(bits[1]):set(3, bits[2])
      assert.equal(ffi.C.NB_EFORMAT, ffi.C.nb_scales_check(q.scales, q.codes, nil, nil, 8, 0, "m"), dtype)
    end
  end)
end)
