-- What `check --values` finds in the numbers of small bad checkpoints: one of each fault, and nothing in good ones.
local nb = require "nibble"
local ffi = require "ffi"
local support = require "spec.support.formats"
local values = require "nibble.check.values"
local formats, scheme = nb.formats, nb.scheme

local function findings(ck)
  local list = {}
  local context = { ck = ck, modules = assert(formats.modules(ck)), values = true }
  for _, rule in ipairs(values) do
    rule.run(context, function(f)
      assert.equal(rule.id, f.rule)
      list[#list + 1] = f
    end)
  end
  return list
end

-- The one finding there is.
local function only(ck, rule, severity, says)
  local list = findings(ck)
  assert.equal(1, #list, list[2] and list[1].says .. "\n" .. list[2].says or "nothing was found")
  assert.same({ rule, severity }, { list[1].rule, list[1].severity }, list[1].says)
  assert.matches(says, list[1].says)
  assert.is_truthy(list[1].fix and list[1].source)
  return list[1]
end

local function w4(symmetric)
  return { quant_method = "compressed-tensors", format = "pack-quantized", ignore = {}, config_groups = { group_0 = { targets = { "Linear" },
    weights = { num_bits = 4, type = "int", symmetric = symmetric, strategy = "group", group_size = 32 } } } }
end

-- One module of a scheme in a format, and its tensors to be damaged.
local function one(format, words, config, dtype, name)
  local q = support.quantized(scheme.parse(words), 32, 64, dtype or "bf16")
  local tensors = assert(support.store(format, name or "model.layers.0.mlp.up_proj", q))
  return support.checkpoint(tensors, config), tensors, q
end

local up = "model.layers.0.mlp.up_proj"
local gptq = { quant_method = "gptq", bits = 4, group_size = 32, sym = false, desc_act = false, checkpoint_format = "gptq" }
local fp8 = { quant_method = "fp8", activation_scheme = "dynamic" }

local function plain(changes)
  local tensors = {}
  for _, name in ipairs { "q_proj", "k_proj" } do
    local t = nb.tensor("bf16", { 16, 32 })
    for i = 1, t:numel() do t:set(i, math.sin(i)) end
    tensors["model.layers.0.self_attn." .. name .. ".weight"] = t
  end
  tensors["model.layers.0.input_layernorm.weight"] = nb.tensor("bf16", { 32 }):fill(1)
  changes(tensors)
  return support.checkpoint(tensors)
end

describe("check's values", function()
  it("finds nothing in good checkpoints", function()
    for _, path in ipairs { "spec/models/tiny-moe", "spec/interop/autoawq-gemm-w4g128", "spec/interop/gptq_v2-asym-w4g32",
      "spec/interop/gptq-v1-sym-w4g128", "spec/interop/moe-ct-w4a16-g128" } do
      local ck = assert(nb.open(path))
      for _, f in ipairs(findings(ck)) do assert.equal("note", f.severity, path .. ": " .. f.says) end
    end
  end)

  it("reads nothing unless it is asked for", function()
    local context = { ck = false, modules = false, values = false }
    for _, rule in ipairs(values) do rule.run(context, error) end
  end)

  it("NaN and infinities in weights and norms, with their place", function()
    local ck = plain(function(t)
      t["model.layers.0.self_attn.q_proj.weight"]:set({ 4, 18 }, 0 / 0)
      t["model.layers.0.self_attn.q_proj.weight"]:set({ 5, 1 }, -math.huge)
    end)
    local f = only(ck, "nonfinite", "error", "q_proj.weight: 1 NaN and 1 infinite of 512 values, the first at row 3, column 17")
    assert.same({ "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight", "safetensors" },
      { f.module, f.tensor, f.source })
    only(plain(function(t) t["model.layers.0.input_layernorm.weight"]:set(3, math.huge) end), "nonfinite", "error", "element 2")
  end)

  it("the same fault in several modules is one finding", function()
    local f = only(plain(function(t)
      t["model.layers.0.self_attn.q_proj.weight"]:set(1, 0 / 0)
      t["model.layers.0.self_attn.k_proj.weight"]:set(7, 0 / 0)
    end), "nonfinite", "error", "and 1 other like it")
    assert.equal(2, f.count)
    assert.same({ "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.q_proj" }, f.modules)
  end)

  it("weights and rows of zeros", function()
    only(plain(function(t) t["model.layers.0.self_attn.q_proj.weight"]:fill(0) end), "all-zero", "warning", "all 512 values are 0")
    only(plain(function(t) t["model.layers.0.self_attn.q_proj.weight"]:rows(3, 4):fill(0) end), "zero-rows", "note",
      "2 rows of 16 are all zeros, the first is row 2")
    local ck, tensors = one("ct", "W4A16 g32 sym", w4(true))
    tensors[up .. ".weight_packed"]:fill(0)
    only(ck, "all-zero", "warning", "weight_packed: all 256 values are 0")
  end)

  it("scales: NaN, subnormal, negative", function()
    local ck, tensors = one("ct", "W4A16 g32 sym", w4(true), "f16")
    local scales = tensors[up .. ".weight_scale"]
    local before = scales:get(5)
    scales:set(5, 0 / 0)
    only(ck, "scale-nonfinite", "error", "weight_scale: 1 NaN of 64 values, the first at row 2, column 0")
    scales:set(5, 2 ^ -20)
    only(ck, "scale-subnormal", "warning", "1 scale of 64 is subnormal in f16")
    scales:set(5, -0.5)
    only(ck, "scale-negative", "note", "1 scale of 64 is below 0, the first at row 2, column 0")
    scales:set(5, before)
    assert.same({}, findings(ck))
  end)

  it("a scale of 0 is right where its group is all zeros, wrong elsewhere", function()
    local q = support.quantized(scheme.parse "W4A16 g32 sym", 32, 64, "bf16")
    q.scales:set({ 3, 2 }, 0)
    local ck = support.checkpoint(assert(support.store("ct", up, q)), w4(true))
    only(ck, "scale-zero", "error", "row 2, group 1 is zero, but column %d+ of it holds code")
    for c = 33, 64 do q.codes:set({ 3, c }, 8) end
    ck = support.checkpoint(assert(support.store("ct", up, q)), w4(true))
    only(ck, "scale-zero", "note", "their groups are all zeros, too")
  end)

  it("FP8's NaN bytes and E8M0's 255", function()
    local ck, tensors = one("fp8", "FP8_DYNAMIC tensor", fp8)
    tensors[up .. ".weight"]:as("u8", { 32 * 64 }):set(67, 0xff)
    only(ck, "fp8-nan", "error", "1 NaN of 2048 values, the first at row 1, column 2 %(from 0%) %(byte 0xff%)")
    local q = support.quantized(scheme.parse "MXFP4A16", 32, 64)
    tensors = assert(support.store("ct", up, q))
    ck = support.checkpoint(tensors, formats.get("ct").config { formats.target("ct", up, q.scheme, 32, 64) })
    assert.same({}, findings(ck))
    tensors[up .. ".weight_scale"]:set(4, 255)
    only(ck, "e8m0-nan", "error", "row 1, column 1 %(from 0%) %(byte 255%)")
  end)

  it("the scale of a whole tensor, and of the input", function()
    local q = support.quantized(scheme.parse "NVFP4", 32, 64)
    local tensors = assert(support.store("modelopt", up, q, {}))
    local rec = formats.target("modelopt", up, q.scheme, 32, 64)
    local ck = support.checkpoint(tensors, formats.get("modelopt").config { rec })
    assert.same({}, findings(ck))
    local factor = tensors[up .. ".weight_scale_2"]
    local before = factor:get(1)
    for _, bad in ipairs { { 0, "is 0" }, { math.huge, "is inf" }, { 0 / 0, "is NaN" }, { -1, "is %-1" } } do
      factor:set(1, bad[1])
      only(ck, "global-scale", "error", bad[2])
    end
    factor:set(1, before)
    tensors[up .. ".input_scale"]:set(1, 0)
    only(ck, "input-scale", "error", "the input's scale is 0; expected a finite number above 0")
    tensors[up .. ".input_scale"]:set(1, 1)
    tensors[up .. ".weight_scale"]:as("u8", { 64 }):set(1, 0x90)
    only(ck, "scale-negative", "error", "ModelOpt's scales must be 0 or more")
  end)

  it("experts that calibration never reached, all in one finding that repair can take", function()
    local tensors, records = {}, {}
    for e = 0, 2 do
      local name = ("model.layers.0.mlp.experts.%d.up_proj"):format(e)
      local q = support.quantized(scheme.parse "NVFP4", 32, 64)
      if e > 0 then q.input_global:set(1, math.huge) end
      for k, t in pairs(assert(support.store("ct", name, q))) do tensors[k] = t end
      records[e + 1] = formats.target("ct", name, q.scheme, 32, 64)
    end
    local f = only(support.checkpoint(tensors, formats.get("ct").config(records)), "dead-expert", "error",
      "input_global_scale: the input's scale is inf, so no token reached the expert")
    assert.same({ kind = "dead-expert-scale", tensors = { "model.layers.0.mlp.experts.1.up_proj.input_global_scale",
      "model.layers.0.mlp.experts.2.up_proj.input_global_scale" } }, f.repair)
  end)

  it("column groups and zero-points out of range", function()
    local ck, tensors = one("gptq", "W4A16 g32 asym", gptq, "f16")
    assert.same({}, findings(ck))
    tensors[up .. ".g_idx"]:set(10, 2)
    only(ck, "g-idx-range", "error", "g_idx%[9%] is 2, but there are 2 groups")
    tensors[up .. ".g_idx"]:set(10, 0)
    tensors[up .. ".qzeros"]:set(1, 0x000000f0)
    only(ck, "zero-points-wrapped", "warning", "1 zero%-point is stored as 15, which stands for 0 or for 16")
    gptq.sym = true
    only(one("gptq", "W4A16 g32 asym", gptq, "f16"), "zero-points", "error", "zero%-point of row %d+, group %d is")
    ck, tensors = one("gptq", "W4A16 g32 sym", gptq, "f16")
    assert.same({}, findings(ck))
    tensors[up .. ".qzeros"]:fill(-0x77777778) -- eights, as gptq_v2 stores them
    only(ck, "zero-points", "error", "zero%-point of row 0, group 0 is 9 and not 8")
    gptq.sym = false
  end)

  it("reads the zero-points of every format that has them", function()
    for _, f in ipairs { { "ct", "W4A16 g32 asym" }, { "ct", "W8A16 channel asym" }, { "ct", "W3A16 g32 asym" }, { "awq", "W4A16 g32 asym", "f16" },
      { "gptq", "W3A16 g32 sym", "f16" }, { "gptq", "W8A16 g32 asym", "f16" }, { "gptq_v2", "W4A16 g32 asym", "f16" }, { "ct", "W4A16 tensor asym" } } do
      local q = support.quantized(scheme.parse(f[2]), 32, 64, f[3] or "bf16")
      local rec = formats.target(f[1], up, q.scheme, 32, 64, { dtype = f[3] })
      assert.same({}, findings(support.checkpoint(assert(support.store(f[1], up, q)), formats.get(f[1]).config { rec })), f[2])
    end
    local s = scheme.new { bits = 8, strategy = "channel", symmetric = false, activations = scheme.parse "W8A8".activations }
    local q = support.quantized(s, 32, 64, "bf16")
    local tensors = assert(support.store("ct", up, q))
    local ck = support.checkpoint(tensors, formats.get("ct").config { formats.target("ct", up, q.scheme, 32, 64) })
    assert.is_truthy(tensors[up .. ".weight_zero_point"])
    assert.same({}, findings(ck))
  end)

  it("takes the padding of AWQ's gemv for what it is", function()
    local q = support.quantized(scheme.parse "W4A16 g32 asym", 32, 64, "f16")
    local tensors = { [up .. ".qweight"] = nb.tensor("i32", { 32, 8 }), [up .. ".qzeros"] = nb.tensor("i32", { 32, 4 }),
      [up .. ".scales"] = nb.tensor("f16", { 32, 32 }) }
    local C = require("nibble.ffi").C
    assert.equal(0, C.nb_awq_gemv_pack(tensors[up .. ".qweight"], q.codes, 4, 0))
    assert.equal(0, C.nb_awq_gemv_pack_zeros(tensors[up .. ".qzeros"], q.zeros, 4, 0))
    for r = 1, 32 do
      for g = 1, 2 do tensors[up .. ".scales"]:set({ r, g }, q.scales:get { r, g }) end
    end
    local config = { quant_method = "awq", bits = 4, group_size = 32, zero_point = true, version = "gemv" }
    assert.same({}, findings(support.checkpoint(tensors, config)))
    config.zero_point = false
    local rules = {}
    for _, f in ipairs(findings(support.checkpoint(tensors, config))) do rules[f.rule] = f.severity end
    assert.equal("error", rules["zero-points"])
  end)

  it("weight_shape that says something else", function()
    local ck, tensors = one("ct", "W4A16 g32 sym", w4(true))
    tensors[up .. ".weight_shape"]:set(2, 128)
    only(ck, "weight-shape", "error", "weight_shape says %[32x128%], the tensors say %[32x64%]")
  end)

  it("zero scales that underflowed in NVFP4", function()
    local q = support.quantized(scheme.parse "NVFP4A16", 32, 64)
    ffi.cast("uint8_t *", q.scales.data)[3] = 0
    local rec = formats.target("ct", up, q.scheme, 32, 64)
    only(support.checkpoint(assert(support.store("ct", up, q)), formats.get("ct").config { rec }), "scale-zero", "note",
      "1 scale of 128 is 0, the first at row 0, column 3 .*underflowed")
    for i = 0, 7 do ffi.cast("uint8_t *", q.scales.data)[i] = 0 end
    only(support.checkpoint(assert(support.store("ct", up, q)), formats.get("ct").config { rec }), "scale-zero", "warning", "8 scales")
  end)
end)
