-- compressed-tensors' weights in bytes: int-, float-, naive-quantized, NVFP4, MXFP4, MXFP8; mixed precision; the
-- config; what contradicts what (FORMATS 4).
local nb = require "nibble"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme
local ct = require "nibble.formats.compressed_tensors"

local function tile_sizes(f, rec)
  local step, sizes = f.row_step(rec), {}
  for rows = step, rec.n + step - 1, step do sizes[#sizes + 1] = math.min(rows, rec.n) end
  return sizes
end

local function store(q, opts) return assert(support.store("ct", "m", q, opts)) end

local function suffixes(tensors)
  local out = {}
  for name, t in pairs(tensors) do
    out[name:match "^m%.(.*)$"] = ("%s [%s]"):format(t:type(), table.concat(t:size(), "x"))
  end
  return out
end

describe("compressed-tensors in bytes", function()
  it("round trip: every scheme, scale dtype and tile size", function()
    for _, case in ipairs { { "W8A8", 48, 96 }, { "W8A8 g32 asym", 48, 96 }, { "W4A8 g32", 37, 64 }, { "W8A8 tensor asym", 16, 33 },
        { "W8A8_STATIC", 8, 16 }, { "W4A8 g32 sym act:int8:tensor:static:asym", 8, 64 }, { "W4AFP8", 16, 128 },
        { "FP8", 9, 20 }, { "FP8_DYNAMIC", 24, 40 }, { "FP8_BLOCK block16x24", 50, 100 }, { "FP8_BLOCK", 160, 200 },
        { "FP8A16", 7, 9 }, { "FP8A16 g16", 5, 32 }, { "NVFP4", 12, 64 }, { "NVFP4A16", 5, 32 }, { "MXFP4", 6, 96 },
        { "MXFP4A16", 3, 32 }, { "MXFP8", 4, 64 }, { "MXFP8A16", 4, 64 } } do
      for _, dtype in ipairs { "bf16", "f16", "f32" } do
        local s = scheme.parse(case[1])
        assert.is_true(ct.can(s, case[2], case[3]))
        local q = support.quantized(s, case[2], case[3], dtype)
        local whole, rec = store(q, { dtype = dtype })
        local ck = support.checkpoint(whole, ct.config { rec })
        for _, rows in ipairs(tile_sizes(ct, rec)) do
          local tensors = store(q, { rows = rows, dtype = dtype })
          for name, t in pairs(whole) do assert.is_true(t:equal(tensors[name]), case[1] .. " " .. name) end
          local back, found = support.load(ck, "m", rows)
          assert.same({ true }, { q:equal(back) }, case[1])
          assert.equal(scheme.describe(s), scheme.describe(found.scheme))
          assert.is_nil(found.variant)
        end
        assert.equal(q:hash(), assert(formats.quantized(ck, "m")):hash(), case[1])
        assert.is_true(assert(formats.weight(ck, "m", "f32")):equal(q:dequantize "f32"), case[1])
      end
    end
  end)

  it("has the tensors that consumers expect", function()
    local function of(words, n, k) return suffixes((store(support.quantized(scheme.parse(words), n or 32, k or 64, "bf16"), { dtype = "bf16" }))) end
    assert.same({ weight_packed = "u8 [32x32]", weight_scale = "f8_e4m3 [32x4]", weight_global_scale = "f32 [1]",
      input_global_scale = "f32 [1]" }, of "NVFP4")
    assert.same({ weight_packed = "u8 [32x32]", weight_scale = "f8_e4m3 [32x4]", weight_global_scale = "f32 [1]" }, of "NVFP4A16")
    assert.same({ weight_packed = "u8 [32x32]", weight_scale = "u8 [32x2]" }, of "MXFP4")
    assert.same({ weight = "f8_e4m3 [32x64]", weight_scale = "u8 [32x2]" }, of "MXFP8A16")
    assert.same({ weight = "f8_e4m3 [32x64]", weight_scale = "bf16 [32x1]" }, of "FP8_DYNAMIC")
    assert.same({ weight = "f8_e4m3 [32x64]", weight_scale = "bf16 [1]", input_scale = "f32 [1]" }, of "FP8")
    assert.same({ weight = "f8_e4m3 [160x200]", weight_scale = "bf16 [2x2]" }, of("FP8_BLOCK", 160, 200))
    assert.same({ weight = "i8 [32x64]", weight_scale = "bf16 [32x1]" }, of "W8A8")
    assert.same({ weight = "i8 [32x64]", weight_scale = "bf16 [32x2]", weight_zero_point = "i8 [32x2]", input_scale = "f32 [1]",
      input_zero_point = "i8 [1]" }, of "W4A8 g32 asym act:int8:tensor:static:asym")
  end)

  it("each scheme's format is compressed-tensors' choice", function()
    for words, format in pairs { W4A16 = "pack-quantized", W4A8 = "int-quantized", W4AFP8 = "int-quantized", W8A8 = "int-quantized",
        FP8 = "float-quantized", FP8A16 = "naive-quantized", ["FP8A16 block128x128"] = "naive-quantized", NVFP4 = "nvfp4-pack-quantized",
        NVFP4A16 = "nvfp4-pack-quantized", MXFP4 = "mxfp4-pack-quantized", MXFP8A16 = "mxfp8-quantized" } do
      assert.equal(format, ct.storage(scheme.parse(words)))
    end
  end)

  it("writes the config as compressed-tensors does: activations, formats, several groups", function()
    local function rec(name, words) return { name = name, kind = "linear", scheme = words and scheme.parse(words) } end
    local null = nb.json.null
    local c = ct.config { rec("l.0.up", "NVFP4"), rec "lm_head" }
    assert.equal("nvfp4-pack-quantized", c.format)
    local group = c.config_groups.group_0
    assert.same({ num_bits = 4, type = "float", symmetric = true, strategy = "tensor_group", group_size = 16, dynamic = false,
      actorder = null, scale_dtype = "torch.float8_e4m3fn" }, group.weights)
    assert.same({ num_bits = 4, type = "float", symmetric = true, strategy = "tensor_group", group_size = 16, dynamic = "local",
      actorder = null, scale_dtype = "torch.float8_e4m3fn" }, group.input_activations)
    assert.same({ null, "nvfp4-pack-quantized" }, { group.output_activations, group.format })
    group = ct.config({ rec("l.0.up", "FP8_BLOCK") }).config_groups.group_0
    assert.equal("[128,128]", (nb.json.encode(group.weights.block_structure):gsub("%s", "")))
    assert.equal(128, group.input_activations.group_size)
    assert.equal("torch.uint8", ct.config({ rec("l.0.up", "MXFP4A16") }).config_groups.group_0.weights.scale_dtype)
    assert.equal(null, ct.config({ rec("l.0.up", "MXFP4A16") }).config_groups.group_0.input_activations)
    c = ct.config { rec("l.0.up", "FP8_DYNAMIC"), rec("l.1.up", "FP8_DYNAMIC"), rec("l.0.down", "W4A16") }
    assert.equal("mixed-precision", c.format)
    assert.same({ "float-quantized", "pack-quantized" }, { c.config_groups.group_0.format, c.config_groups.group_1.format })
    assert.same({ "l.0.down" }, setmetatable(c.config_groups.group_1.targets, nil))
    c = ct.config({ rec("l.0.up", "W4A16"), rec("l.0.down", "W8A16") }, {})
    assert.equal("pack-quantized", c.format)
  end)

  it("keeps the source's kv_cache_scheme and transform_config", function()
    local kv = { num_bits = 8, type = "float" }
    local source = support.checkpoint({}, { quant_method = "compressed-tensors", kv_cache_scheme = kv, transform_config = { x = 1 } })
    local c = ct.config({ { name = "m", kind = "linear", scheme = scheme.parse "FP8" } }, { source = source })
    assert.same({ kv, { x = 1 } }, { c.kv_cache_scheme, c.transform_config })
    source.quantization.config.quant_method = "fp8"
    assert.equal(nb.json.null, ct.config({}, { source = source }).kv_cache_scheme)
  end)

  it("reads mixed precision: each config group in its own format", function()
    local tensors, records = {}, {}
    for i, words in ipairs { "FP8_DYNAMIC", "W4A16 g32", "NVFP4", "W8A8" } do
      local name = "l." .. i .. ".up"
      local t, rec = assert(support.store("ct", name, support.quantized(scheme.parse(words), 8, 64, "bf16"), { dtype = "bf16" }))
      for key, value in pairs(t) do tensors[key] = value end
      records[i] = rec
    end
    local ck = support.checkpoint(tensors, ct.config(records))
    local seen = {}
    for i, rec in ipairs(assert(formats.modules(ck))) do
      seen[i] = scheme.describe(rec.scheme) .. " " .. rec.storage
      assert(formats.weight(ck, rec.name, "f32"))
    end
    assert.same({ "FP8_DYNAMIC float-quantized", "W4A16 g32 sym pack-quantized", "NVFP4 nvfp4-pack-quantized",
      "W8A8 channel sym int-quantized" }, seen)
  end)

  it("reads what other writers do: presets as groups, scales of other shapes, MX exponents as f8_e8m0, ints that are naive", function()
    local q = support.quantized(scheme.parse "FP8_DYNAMIC", 8, 16, "bf16")
    local tensors = store(q, { dtype = "bf16" })
    local config = { quant_method = "compressed-tensors", config_groups = { FP8_DYNAMIC = nb.json.array { "Linear" } } }
    assert.is_true(assert(formats.quantized(support.checkpoint(tensors, config), "m")):equal(q))
    tensors["m.weight_scale"] = tensors["m.weight_scale"]:reshape { 8 }
    assert.is_true(assert(formats.quantized(support.checkpoint(tensors, config), "m")):equal(q))

    q = support.quantized(scheme.parse "FP8", 8, 16, "f32")
    local rec
    tensors, rec = store(q, { dtype = "f32" })
    for _, shape in ipairs { {}, { 1 }, { 1, 1 } } do
      tensors["m.weight_scale"], tensors["m.input_scale"] = tensors["m.weight_scale"]:reshape(shape), tensors["m.input_scale"]:reshape(shape)
      assert.is_true(assert(formats.quantized(support.checkpoint(tensors, ct.config { rec }), "m")):equal(q))
    end
    tensors["m.input_scale"] = nb.tensor("bf16", { 1 }, { 0.037109375 })
    assert.equal(0.037109375, assert(formats.quantized(support.checkpoint(tensors, ct.config { rec }), "m")).input_scale:get(1))

    q = support.quantized(scheme.parse "MXFP4", 4, 64, "bf16")
    tensors, rec = store(q)
    local scales = tensors["m.weight_scale"]
    tensors["m.weight_scale"] = scales:as("f8_e8m0", scales:size())
    assert.is_true(assert(formats.quantized(support.checkpoint(tensors, ct.config { rec }), "m")):equal(q))
    config = ct.config { rec }
    config.config_groups.group_0.weights.scale_dtype = nil -- before it was written
    assert.is_true(assert(formats.quantized(support.checkpoint(tensors, config), "m")):equal(q))

    q = support.quantized(scheme.parse "W8A8", 4, 16, "bf16")
    tensors, rec = store(q)
    config = ct.config { rec }
    config.format, config.config_groups.group_0.format = "naive-quantized", "naive-quantized"
    config.config_groups.group_0.input_activations = nb.json.null
    local ck = support.checkpoint(tensors, config)
    local found = formats.record(ck, "m")
    assert.same({ "W8A16 channel sym", "naive-quantized" }, { scheme.describe(found.scheme), found.variant })
    assert.is_true(assert(formats.quantized(ck, "m")).codes:equal(q.codes))
    config = ct.config { found } -- copied as it is, its config says what it is
    assert.equal("naive-quantized", config.config_groups.group_0.format)
    assert.is_true(assert(formats.quantized(support.checkpoint(tensors, config), "m")).codes:equal(q.codes))
  end)

  it("infers the group from the tensors where no target can be read", function()
    local q = support.quantized(scheme.parse "FP8_DYNAMIC", 8, 16, "bf16")
    local tensors, rec = store(q)
    local config = ct.config { rec }
    config.config_groups.group_1 = ct.config({ { name = "x", kind = "linear", scheme = scheme.parse "NVFP4A16" } }).config_groups.group_0
    config.config_groups.group_0.targets = nb.json.array { "re:(?<=l).*up$" }
    config.config_groups.group_1.targets = nb.json.array { "re:(?<!x).*q_proj" }
    local ck = support.checkpoint(tensors, config)
    assert.matches("config group group_0 fits its tensors", formats.record(ck, "m").note)
    config.config_groups.group_0.weights.strategy = "tensor"
    local none, msg = formats.modules(support.checkpoint(tensors, config))
    assert.is_nil(none)
    assert.matches("m: no target of .* names it, and 0 config groups fit its tensors", msg)
  end)

  it("names both facts when the config contradicts the tensors", function()
    local function problem(words, change, edit)
      local tensors, rec = store(support.quantized(scheme.parse(words), 32, 64, "bf16"), { dtype = "bf16" })
      change(tensors)
      local config = ct.config { rec }
      if edit then edit(config.config_groups.group_0) end
      local list, msg, code = formats.modules(support.checkpoint(tensors, config))
      assert.is_nil(list)
      assert.equal("eformat", code)
      return msg
    end
    local function put(suffix, t) return function(tensors) tensors["m." .. suffix] = t end end
    local function nothing() end
    assert.matches("m: weight is i8, expected f8_e4m3", problem("FP8_DYNAMIC", put("weight", nb.tensor("i8", { 32, 64 }))))
    assert.matches("m: weight_packed is %[64%], expected two dimensions", problem("NVFP4", put("weight_packed", nb.tensor("u8", { 64 }))))
    assert.matches("m: weight is %[0x64%], expected at least one row and column", problem("FP8", put("weight", nb.tensor("f8_e4m3", { 0, 64 }))))
    assert.matches("m: the tensor weight_global_scale is missing", problem("NVFP4A16", put "weight_global_scale"))
    assert.matches("m: the tensor input_global_scale is missing", problem("NVFP4", put "input_global_scale"))
    assert.matches("m: the tensor input_scale is missing", problem("FP8", put "input_scale"))
    assert.matches("m: the tensor weight_scale is missing", problem("FP8", put "weight_scale"))
    assert.matches("so weight_scale must be %[32x1%], but it is %[1%]", problem("FP8_DYNAMIC", put("weight_scale", nb.tensor("bf16", { 1 }))))
    assert.matches("so weight_scale must be %[2x4%], but it is %[1x1%]", problem("FP8_BLOCK", nothing, function(g)
      g.weights.block_structure = "16x16"
    end))
    assert.matches("the config says MXFP4A16 g48 .*, but k = 64 is not a multiple of 48", problem("MXFP4A16", nothing, function(g)
      g.weights.group_size = 48
    end))
    assert.matches("m: the tensor weight_zero_point is missing", problem("W8A8", nothing, function(g) g.weights.symmetric = false end))
    assert.matches("m: the config says FP8A16, but its weight_packed is i32, which holds integer codes",
      problem("W4A16 g32", nothing, function(g)
        g.weights = { num_bits = 8, type = "float", strategy = "channel" }
      end))
    assert.matches("group_0: input_activations: actorder = weight: activations have no order of columns",
      problem("W8A8_STATIC", nothing, function(g) g.input_activations.actorder = "weight" end))
    assert.matches("group_0: input_activations: strategy = \"token\" needs dynamic = true, found dynamic = false",
      problem("W8A8", nothing, function(g) g.input_activations.dynamic = false end))
    assert.matches("group_0: input_activations: block_structure: activations have no blocks of rows",
      problem("W8A8_STATIC", nothing, function(g)
        g.input_activations.strategy, g.input_activations.block_structure = "block", "1x128"
      end))
    assert.matches("group_0: input_activations: expected an object, found yes", problem("W8A8", nothing, function(g)
      g.input_activations = "yes"
    end))
    assert.matches("group_0: dynamic = true: a stored weight has fixed scales", problem("W8A8", nothing, function(g)
      g.weights.dynamic = true
    end))
  end)

  it("CTM-NVFP4-07: a global or input scale that no number can be divided by is refused", function()
    for _, case in ipairs { { "NVFP4", "weight_global_scale" }, { "NVFP4", "input_global_scale" }, { "FP8", "input_scale" } } do
      for _, bad in ipairs { 0, -1, 1 / 0, 0 / 0 } do
        local tensors, rec = store(support.quantized(scheme.parse(case[1]), 8, 32, "bf16"), { dtype = "bf16" })
        tensors["m." .. case[2]]:set(1, bad)
        local q, msg, code = formats.quantized(support.checkpoint(tensors, ct.config { rec }), "m")
        assert.is_nil(q)
        assert.equal("eformat", code)
        assert.matches("m: " .. case[2] .. " is .*, expected a finite number above 0", msg)
      end
    end
  end)

  it("refuses codes and scales that are no numbers, ints that don't fit, and outputs that are quantized", function()
    local function read(words, suffix, at, byte, edit)
      local tensors, rec = store(support.quantized(scheme.parse(words), 8, 32, "bf16"), { dtype = "bf16" })
      if suffix then tensors["m." .. suffix]:as("u8"):set(at, byte) end
      local config = ct.config { rec }
      if edit then edit(config.config_groups.group_0) end
      local q, msg, code = formats.quantized(support.checkpoint(tensors, config), "m")
      assert.is_nil(q)
      return msg, code
    end
    assert.matches("m: the code of row 1, column 2 is 0x7f, which is NaN in f8_e4m3", (read("FP8_DYNAMIC", "weight", 35, 0x7f)))
    assert.matches("m: the scale of row 2, group 0 is NaN", (read("MXFP4A16", "weight_scale", 3, 255)))
    assert.matches("m: the weight in row 1, column 2 is 100; 4 bits hold %-8 to 7", (read("W4A8 g32", "weight", 35, 100)))
    local msg, code = read("W8A8", nil, nil, nil, function(g) g.output_activations = g.input_activations end)
    assert.equal("eunsupported", code)
    assert.matches("m: not readable yet: format quantized output activations", msg)
  end)

  it("says what it can't hold", function()
    for words, reason in pairs {
      ["NVFP4A16 g32"] = "compressed-tensors has groups of 16 for NVFP4A16 g32, not 32",
      ["MXFP4A16 g16"] = "compressed-tensors has groups of 32 for MXFP4A16 g16, not 16",
      ["W4A8 g32 sym actorder"] = "compressed-tensors has column groups (act-order) only in packed weights",
      ["W8A8 channel sym act:int8:channel:static"] = 'compressed-tensors has no activations of strategy = "channel"',
      ["W4A8 g48"] = "k = 64 is not a multiple of the group size 48",
    } do
      assert.same({ false, reason }, { ct.can(scheme.parse(words), 8, 64) })
    end
    assert.is_true(ct.can(scheme.parse "FP8_BLOCK", 100, 300))
    assert.equal("f32", ct.scale_dtype(scheme.parse("FP8_BLOCK", { scale_dtype = "e8m0" }), "bf16"))
    assert.equal("e8m0", ct.scale_dtype(scheme.parse "MXFP4", "bf16"))
    for _, format in ipairs { "awq", "gptq" } do
      assert.same({ false, format:upper() .. " holds integer codes, not 8-bit floats" }, { formats.get(format).can(scheme.parse "FP8A16", 64, 64) })
      assert.matches("cannot say how activations are quantized", select(2, formats.get(format).can(scheme.parse "W4A8", 64, 128)))
    end
  end)

  it("refuses a tile with another scale where one belongs to the tensor, and static scales that are missing", function()
    local q = support.quantized(scheme.parse "FP8", 8, 16, "bf16")
    q.scales:set(6, 7)
    local none, msg, code = support.store("ct", "m", q, { rows = 4, dtype = "bf16" })
    assert.is_nil(none)
    assert.equal("einval", code)
    assert.equal('m: strategy = "tensor", but row 5 has another scale than row 0', msg)
    for row = 5, 8 do q.scales:set(row, 7) end
    assert.matches("row 4 has another scale than row 0", select(2, support.store("ct", "m", q, { rows = 4, dtype = "bf16" })))
    q = support.quantized(scheme.parse "FP8", 8, 16, "bf16")
    q.input_scale = nil
    none, msg = support.store("ct", "m", q, { dtype = "bf16" })
    assert.is_nil(none)
    assert.matches("m: FP8 needs the scale of the layer's input, which comes from calibration: name a text in the recipe's `calibrate`", msg)
  end)

  it("notes input scales that the config has no use for", function()
    local tensors, rec = store(support.quantized(scheme.parse "FP8_DYNAMIC", 8, 16, "bf16"), { dtype = "bf16" })
    tensors["m.input_scale"] = nb.tensor("f32", { 1 }, { 1 })
    assert.matches("input_scale is there, but the config asks for none", formats.record(support.checkpoint(tensors, ct.config { rec }), "m").note)
  end)
end)
