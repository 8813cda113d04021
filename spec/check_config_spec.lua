-- check on quantization configs: lost, unusable, with keys and values that a consumer refuses, and in two places that
-- disagree; limits of consumers that have no tables of kernels.
local nb = require "nibble"
local check = require "spec.support.check"
local files = require "spec.support.files"

local LLAMA = "spec/models/parity/llama"

local bases = {}
local function base(key, recipe)
  if not bases[key] then
    bases[key] = check.fresh()
    recipe.name = key
    assert(assert(nb.plan(assert(nb.recipe(recipe)), assert(nb.open(LLAMA)))):run(bases[key]))
  end
  return bases[key]
end

local function ct() return base("ct", { scheme = "W4A16", group = 32 }) end
local function awq() return base("awq", { scheme = "W4A16_ASYM", group = 32, output = { format = "awq" } }) end
local function gptq() return base("gptq", { scheme = "W4A16", group = 32, output = { format = "gptq" } }) end
local function fp8() return base("fp8", { scheme = "FP8_BLOCK", output = { format = "fp8" } }) end

setup(check.begin)
teardown(check.finish)

local function found(from, change, options)
  return check.found(check.broken(from, { config = change and function(c) change(c.quantization_config, c) end }), options)
end

describe("check on the quantization config", function()
  it("tells one that was lost, and that alone", function()
    for _, from in ipairs { ct, awq, gptq } do
      local dir = check.broken(from(), { config = function(c) c.quantization_config = nil end })
      os.remove(dir .. "/quantize_config.json")
      local lines, list = check.found(dir)
      assert.equal(1, #lines, table.concat(lines, "\n"))
      assert.matches("^error config%-lost model.layers.0.mlp.", lines[1])
      assert.same({ kind = "quantization_config" }, list[1].repair)
    end
  end)

  it("tells what contradicts itself", function()
    local lines, list = found(ct(), function(q) q.config_groups.group_0.weights.group_size = 0 end)
    assert.same({ "error config-unusable config.json:quantization_config" }, lines)
    assert.matches("config_groups.group_0: group_size = 0", list[1].says)
    assert.same({ "error config-unusable config.json:quantization_config" }, (found(awq(), function(q) q.bits = 3 end)))
    assert.same({ "error config-unusable config.json:quantization_config" }, (found(fp8(), function(q) q.activation_scheme = "some" end)))
    assert.same({ "error config-unusable config.json:quantization_config" }, (found(ct(), function(q) q.config_groups = nil end)))
  end)

  it("tells keys that compressed-tensors forbids, each, and not what comes of them", function()
    local lines, list = found(ct(), function(q)
      q.config_groups.group_0.weights.clip = 1
      q.config_groups.group_0.comment = "mine"
    end)
    assert.same({ "error config-extra-key", "error config-extra-key" }, lines)
    assert.matches("unknown key comment", list[1].says .. list[2].says)
    assert.matches("config_groups.group_0.weights: unknown argument clip", list[1].says .. list[2].says)
    assert.same({}, (found(ct(), function(q) q.extra_at_the_top = 1 end)))
  end)

  it("tells keys that the consumer needs", function()
    local lines, list = found(fp8(), function(q) q.activation_scheme = nil end)
    assert.same({ "error config-missing-key config.json:quantization_config" }, lines)
    assert.equal("activation_scheme is missing", list[1].says)
    local dir = check.broken(gptq(), { config = function(c) c.quantization_config.desc_act = nil end })
    os.remove(dir .. "/quantize_config.json")
    assert.same({ "error config-missing-key config.json:quantization_config" }, (check.found(dir)))
    -- ModelOpt's side file needs more than config.json does.
    dir = check.broken(base("modelopt", { scheme = "NVFP4A16", output = { format = "modelopt" } }), { config = function(c)
      c.quantization_config = nil
    end })
    files.write(dir .. "/hf_quant_config.json", '{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16_NVFP4"}}')
    lines, list = check.found(dir)
    assert.same({ "error config-missing-key hf_quant_config.json", "error config-missing-key hf_quant_config.json",
      "error config-missing-key hf_quant_config.json" }, { lines[1], lines[2], lines[3] })
    assert.equal("group_size is missing", list[1].says)
  end)

  it("tells methods and widths that the consumer doesn't take", function()
    local lines, list = found(ct(), function(q) q.quant_method = "hqq" end)
    assert.same({ "error config-refused" }, lines)
    assert.matches("vllm%-0.33 has no quantization method hqq", list[1].says)
    lines, list = found("spec/interop/gptq_v2-asym-w4g32", nil)
    assert.equal("error config-refused", lines[1])
    assert.matches("sym = false is not supported", list[1].says)
    lines, list = found(awq(), nil, { consumer = "llama.cpp" })
    assert.same({ "error config-refused" }, lines)
    assert.matches("llama.cpp doesn't take quant_method awq", list[1].says)
    assert.equal("llama.cpp", list[1].source)
  end)

  it("tells what goes beyond a consumer's limits, each consumer's for itself", function()
    local asym = base("asym", { scheme = "W4A16_ASYM", group = 32 })
    local lines, list = found(asym, nil, { consumer = "all" })
    assert.same({ "error config-limits model.layers.0.mlp.down_proj ×14" }, lines)
    assert.equal("transformers-5.23", list[1].source)
    local two = base("two", { scheme = "W4A16", group = 32, rules = { { "*.o_proj", scheme = "W8A16", group = 32 } } })
    lines, list = found(two, nil, { consumer = "vllm-0.33,llama.cpp" })
    assert.same({ "error config-limits" }, lines)
    assert.matches("2 config groups, and llama.cpp takes 1", list[1].says)
    lines = found(base("mxfp4", { scheme = "MXFP4A16" }), nil, { consumer = { "llama.cpp" } })
    assert.same({ "error config-limits model.layers.0.mlp.down_proj ×14" }, lines)
    lines, list = found(base("mo", { scheme = "MXFP8", output = { format = "modelopt" } }), nil, { consumer = "llama.cpp" })
    assert.same({ "error config-limits" }, lines)
    assert.matches("quant_algo is MXFP8", list[1].says)
  end)

  it("tells two places that disagree", function()
    local dir = check.broken(gptq())
    local side = nb.json.decode(files.read(dir .. "/quantize_config.json"))
    side.group_size = 128
    files.write(dir .. "/quantize_config.json", nb.json.encode(side))
    local lines, list = check.found(dir)
    assert.same({ "warning config-disagrees quantize_config.json" }, lines)
    assert.equal("group_size is 32 in config.json and 128 in quantize_config.json", list[1].says)
  end)

  it("tells a cache's scheme without scales, and the scale that is out of use", function()
    local function scheme(q) q.kv_cache_scheme = { num_bits = 8, type = "float", strategy = "tensor", dynamic = false, symmetric = true } end
    assert.same({ "warning cache-scales" }, (found(ct(), scheme)))
    local function with(suffix)
      return (check.found(check.broken(ct(), { config = function(c) scheme(c.quantization_config) end, weights = function(w)
        table.insert(w, { name = "model.layers.0.self_attn." .. suffix, dtype = "F32", shape = { 1 }, data = "\0\0\128\63" })
      end })))
    end
    assert.same({}, with "k_scale")
    assert.equal("warning cache-scales model.layers.0.self_attn", with("kv_scale")[1])
  end)

  it("tells transforms, where a consumer passes them over", function()
    local function transforms(q) q.transform_config = { config_groups = { r1 = { type = "hadamard" } } } end
    assert.same({ "note transforms" }, (found(ct(), transforms)))
    assert.same({ "error transforms" }, (found(ct(), transforms, { consumer = "llama.cpp" })))
    assert.same({}, (found(ct(), function(q) q.transform_config = {} end)))
  end)

  it("tells sparse weights where they are not loaded", function()
    local function sparse(q) q.sparsity_config = { format = "sparse-24-bitmask" } end
    assert.same({ "error sparsity" }, (found(ct(), sparse)))
    assert.same({}, (found(ct(), sparse, { consumer = "transformers-5.23" })))
    assert.same({}, (found(ct(), function(q) q.sparsity_config = { format = "dense" } end)))
  end)

  it("tells a config.json that is damaged, and goes on without it", function()
    local dir = check.broken(ct())
    files.write(dir .. "/config.json", "{")
    assert.same({ "error config-damaged config.json" }, (check.found(dir)))
  end)
end)
