-- compressed-tensors: config groups, targets, legacy files, contradictions, the config written (FORMATS 4).
local nb = require "nibble"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme
local ct = require "nibble.formats.compressed_tensors"

local function args(t) return { targets = t.targets, weights = t.weights, format = t.format } end

local function config(groups, extra)
  local c = { quant_method = "compressed-tensors", format = "pack-quantized", config_groups = groups, ignore = {} }
  for k, v in pairs(extra or {}) do c[k] = v end
  return c
end

local W4 = { num_bits = 4, type = "int", symmetric = true, strategy = "group", group_size = 32 }
local W8 = { num_bits = 8, type = "int", symmetric = true, strategy = "channel", group_size = nb.json.null }

-- modules: name -> scheme words.
local function tensors_of(modules)
  local tensors = {}
  for name, words in pairs(modules) do
    for key, t in pairs(assert(support.store("ct", name, support.quantized(scheme.parse(words), 32, 64, "bf16")))) do
      tensors[key] = t
    end
  end
  return tensors
end

local function schemes(ck)
  local out = {}
  for _, rec in ipairs(assert(formats.modules(ck))) do out[rec.name] = rec.scheme and scheme.describe(rec.scheme) or rec.kind end
  return out
end

local function problem(ck)
  local list, msg, code = formats.modules(ck)
  assert.is_nil(list)
  assert.equal("eformat", code)
  return msg
end

describe("compressed-tensors", function()
  it("CTM-SEL-02: a name or pattern wins over a class", function()
    local modules = { ["l.0.q_proj"] = "W8A16 channel sym", ["l.0.up"] = "W4A16 g32 sym", ["l.1.q_proj"] = "W8A16 channel sym" }
    local ck = support.checkpoint(tensors_of(modules), config {
      group_0 = args { targets = { "Linear" }, weights = W4 }, group_1 = args { targets = { "re:.*q_proj$" }, weights = W8 } })
    assert.same(modules, schemes(ck))
    ck = support.checkpoint(tensors_of(modules), config {
      group_0 = args { targets = { "Linear" }, weights = W4 }, group_1 = args { targets = { "l.0.q_proj", "l.1.q_proj" }, weights = W8 } })
    assert.same(modules, schemes(ck))
  end)

  it("infers the group from shapes where no target can be read, and says so", function()
    local modules = { ["l.0.q_proj"] = "W8A16 channel sym", ["l.0.up"] = "W4A16 g32 sym" }
    local ck = support.checkpoint(tensors_of(modules), config {
      group_0 = args { targets = { "re:(?<=l).*up$" }, weights = W4 }, group_1 = args { targets = { "re:(?<!x).*q_proj" }, weights = W8 } })
    assert.same(modules, schemes(ck))
    assert.matches("config group group_1 fits its tensors", formats.record(ck, "l.0.q_proj").note)
  end)

  it("reads groups that are a preset's name, and per-group formats", function()
    local ck = support.checkpoint(tensors_of { ["l.up"] = "W8A16 channel sym" },
      config { W8A16 = nb.json.array { "Linear" } })
    assert.same({ ["l.up"] = "W8A16 channel sym" }, schemes(ck))
    ck = support.checkpoint(tensors_of { ["l.up"] = "W4A16 g32 sym" },
      config({ group_0 = args { targets = { "Linear" }, weights = W4, format = "pack-quantized" } }, { format = "mixed-precision" }))
    assert.same({ ["l.up"] = "W4A16 g32 sym" }, schemes(ck))
    ck = support.checkpoint({}, config({ group_0 = args { targets = { "Linear" }, weights = W4 } }, { format = "mixed-precision" }))
    assert.matches('"mixed%-precision", so config_groups.group_0 must name its own', problem(ck))
  end)

  it("CTM-SEL-03: reads arguments with their defaults", function()
    assert.same({ type = "int", bits = 8, symmetric = true, strategy = "tensor", group = -1 }, ct.from_args {})
    assert.equal("channel", ct.from_args({ group_size = -1 }).strategy)
    assert.equal("f16", ct.from_args({ scale_dtype = "torch.float16" }).scale_dtype)
    local bad = {
      [{ strategy = "channel", group_size = 64 }] = 'strategy = "channel" contradicts group_size = 64',
      [{ strategy = "group" }] = 'strategy = "group" needs group_size above 0',
      [{ strategy = "group", group_size = 32, block_structure = "128x128" }] = 'block_structure contradicts strategy = "group"',
      [{ dynamic = true }] = "dynamic = true",
    }
    for given, msg in pairs(bad) do
      local s, why, code = ct.from_args(given)
      assert.is_nil(s)
      assert.equal("eformat", code)
      assert.matches(msg, why)
    end
  end)

  it("reads files from before dense packing, and zero-points that are not packed", function()
    for _, bits in ipairs { 3, 5, 6, 7 } do
      local q = support.quantized(scheme.parse(("W%dA16 g32 asym"):format(bits)), 32, 64, "bf16")
      local tensors, rec = assert(support.store("ct", "m", q))
      local words = nb.tensor("i32", { 32, math.ceil(64 / math.floor(32 / bits)) })
      nb.layout.ct.pack(q.codes, bits, words)
      tensors["m.weight_packed"] = words
      local zeros = nb.tensor("i8", { 32, 2 })
      for i = 1, 64 do zeros:set(i, q.zeros:get(i) - 2 ^ (bits - 1)) end
      tensors["m.weight_zero_point"] = zeros
      local ck = support.checkpoint(tensors, ct.config { rec })
      assert.is_true(q:equal(assert(formats.quantized(ck, "m"))), bits)
      zeros:set(5, -2 ^ (bits - 1) - 1)
      local none, msg = formats.quantized(ck, "m")
      assert.is_nil(none)
      assert.matches("weight_zero_point of row 2, group 0 is .* doesn't fit " .. bits .. " bits", msg)
    end
  end)

  it("takes act-order without effect as none", function()
    local q = support.quantized(scheme.parse "W4A16 g32 sym actorder", 16, 64, "bf16")
    for c = 0, 63 do q.g_idx:ptr()[c] = math.floor(c / 32) end
    local tensors, rec = assert(support.store("ct", "m", q))
    local ck = support.checkpoint(tensors, ct.config { rec })
    local back = assert(formats.quantized(ck, "m"))
    assert.is_nil(back.g_idx)
    assert.is_nil(formats.record(ck, "m").scheme.actorder)
    q.g_idx:set(7, 2) -- the first that is outside
    ck = support.checkpoint(assert(support.store("ct", "m", q)), ct.config { rec })
    assert.matches("m: g_idx%[6%] is 2, but there are 2 groups", problem(ck))
  end)

  it("names both facts when the config contradicts the tensors", function()
    local function with(change, weights)
      local tensors = tensors_of { m = "W4A16 g32 sym" }
      change(tensors)
      return problem(support.checkpoint(tensors, config { group_0 = args { targets = { "Linear" }, weights = weights or W4 } }))
    end
    local function nothing() end
    assert.matches("the config says W8A16 channel sym %(config group group_0%) and the weight is %[32x64%], so "
      .. "weight_packed must be %[32x16%], but it is %[32x8%]", with(nothing, W8))
    assert.matches("so weight_scale must be %[32x4%], but it is %[32x2%]",
      with(nothing, { num_bits = 4, strategy = "group", group_size = 16 }))
    assert.matches("the config says W4A16 g48 sym .*, but k = 64 is not a multiple of 48",
      with(nothing, { num_bits = 4, strategy = "group", group_size = 48 }))
    assert.matches("the tensor weight_zero_point is missing",
      with(nothing, { num_bits = 4, symmetric = false, strategy = "group", group_size = 32 }))
    assert.matches('says actorder = "group", but weight_g_idx is missing',
      with(nothing, { num_bits = 4, strategy = "group", group_size = 32, actorder = "group" }))
    assert.matches("the tensor weight_scale is missing", with(function(t) t["m.weight_scale"] = nil end))
    assert.matches("the tensor weight_shape is missing", with(function(t) t["m.weight_shape"] = nil end))
    assert.matches("weight_scale is u8, expected f16 or bf16 or f32",
      with(function(t) t["m.weight_scale"] = nb.tensor("u8", { 32, 2 }) end))
    assert.matches("holds both weight and weight_packed", with(function(t) t["m.weight"] = nb.tensor("bf16", { 32, 64 }) end))
    assert.matches("bias must be %[32%], but it is %[31%]", with(function(t) t["m.bias"] = nb.tensor("bf16", { 31 }) end))
  end)

  it("takes n and k from the shapes, and compares weight_shape when it reads", function()
    local tensors = tensors_of { m = "W4A16 g32 sym" }
    tensors["m.weight_shape"]:set(1, 33)
    local c = config { group_0 = args { targets = { "Linear" }, weights = W4 } }
    local ck = support.checkpoint(tensors, c)
    local rec = assert(formats.record(ck, "m"))
    assert.same({ 32, 64 }, { rec.n, rec.k })
    local q, msg, code = formats.quantized(ck, "m")
    assert.is_nil(q)
    assert.matches("m: weight_shape says %[33x64%], but weight_packed is %[32x8%]", msg)
    assert.equal("eformat", code)
    -- One scale a row says nothing of k: then weight_shape is read at once.
    tensors = tensors_of { m = "W8A16 channel sym" }
    tensors["m.weight_shape"]:set(1, 33)
    c = config { group_0 = args { targets = { "Linear" }, weights = W8 } }
    assert.matches("m: weight_shape says %[33x64%], but weight_packed is %[32x16%]", problem(support.checkpoint(tensors, c)))
  end)

  it("checks the zero-points of a weight called symmetric", function()
    local tensors, rec = assert(support.store("ct", "m", support.quantized(scheme.parse "W4A16 g32 asym", 32, 64, "bf16")))
    local c = ct.config { rec }
    c.config_groups.group_0.weights.symmetric = true
    local q, msg = formats.quantized(support.checkpoint(tensors, c), "m")
    assert.is_nil(q)
    assert.matches("the config says symmetric, but the zero%-point of row %d+, group %d is %d+ and not 8", msg)
  end)

  it("recognizes the formats it can't read", function()
    for format, tensors in pairs {
      ["marlin-24"] = { ["m.weight_packed"] = nb.tensor("i32", { 8, 8 }), ["m.weight_scale"] = nb.tensor("f32", { 8, 1 }) },
      ["sparse-bitmask"] = { ["m.weight"] = nb.tensor("f8_e4m3", { 8, 8 }), ["m.weight_scale"] = nb.tensor("f32", { 1 }) },
    } do
      local ck = support.checkpoint(tensors, config({ group_0 = args { targets = { "Linear" }, weights = W4 } }, { format = format }))
      local w, msg, code = formats.weight(ck, "m")
      assert.is_nil(w)
      assert.equal("eunsupported", code)
      assert.equal("m: not readable yet: format " .. format, msg)
    end
  end)

  it("writes a config with one group, or with patterns as targets for several", function()
    local function rec(name, words) return { name = name, kind = "linear", scheme = words and scheme.parse(words) } end
    local c = ct.config { rec("l.0.up", "W4A16 g64 asym"), rec "lm_head", rec "l.0.gate" }
    assert.same({ "Linear" }, setmetatable(c.config_groups.group_0.targets, nil))
    assert.same({ "lm_head", "l.0.gate" }, setmetatable(c.ignore, nil))
    local w = c.config_groups.group_0.weights
    assert.same({ 4, "int", false, "group", 64, false }, { w.num_bits, w.type, w.symmetric, w.strategy, w.group_size, w.dynamic })
    for key in pairs(w) do
      assert.is_truthy(({ num_bits = 1, type = 1, symmetric = 1, strategy = 1, group_size = 1, dynamic = 1, actorder = 1 })[key], key)
    end
    c = ct.config { rec("l.0.up", "W4A16"), rec("l.1.up", "W4A16"), rec("l.0.down", "W8A16 channel") }
    assert.same({ "re:^l\\.\\d+\\.up$" }, setmetatable(c.config_groups.group_0.targets, nil))
    assert.same({ "l.0.down" }, setmetatable(c.config_groups.group_1.targets, nil))
    assert.equal(nb.json.null, c.config_groups.group_1.weights.group_size)
    assert.equal("[]", nb.json.encode(c.ignore))
  end)

  it("says what it can't hold", function()
    assert.is_true(ct.can(scheme.parse "W5A16 g32 asym actorder", 7, 64))
    assert.same({ false, "k = 100 is not a multiple of the group size 32" }, { ct.can(scheme.parse "W4A16 g32", 8, 100) })
  end)
end)
