-- Conversions between the formats of float codes: the same codes and scales, exactly or refused by name.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local support = require "spec.support.formats"

local MODEL = "spec/models/parity/llama"
local root, made = nil, 0

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function run(scheme, format, settings)
  local dir = fresh()
  local recipe = { name = "x", scheme = scheme, output = { format = format } }
  for k, v in pairs(settings or {}) do recipe[k] = v end
  local plan = assert(nb.plan(recipe, assert(nb.open(MODEL))))
  plan.input_scales = {}
  for i, job in ipairs(plan.jobs) do
    plan.input_scales[job.name] = scheme == "NVFP4" and { global = 2 ^ (i % 5 + 4) } or { scale = 0.01 * i }
  end
  assert(plan:run(dir))
  return dir
end

local function convert(dir, format, options)
  local out = fresh()
  local r, msg, code = nb.convert.to(assert(nb.open(dir)), format, out, options)
  return r and out, msg, code
end

local function weights_of(dir) return files.read(dir .. "/model.safetensors") end

-- All tensors of dir as safetensors hold them, one f32 [1] replaced.
local function with_number(dir, name, value)
  local out = fresh()
  editor.copy(dir, out, { weights = function(list)
    local t = nb.tensor("f32", { 1 }, { value })
    local ffi = require "ffi"
    list[name].data = ffi.string(t.data, 4)
  end })
  os.remove(out .. "/nibble.json")
  return out
end

describe("conversions of float codes", function()
  setup(function() root = files.temporary() end)
  teardown(function() os.execute("rm -rf " .. root) end)

  it("FORMATS 10: FP8 blocks and tensors go to compressed-tensors and back, byte for byte", function()
    for _, scheme in ipairs { "FP8_BLOCK", "FP8" } do
      local dir = run(scheme, "fp8")
      local there = assert(convert(dir, "compressed-tensors"))
      assert.equal(weights_of(dir), weights_of(assert(convert(there, "fp8"))))
      assert.equal(scheme, nb.scheme.describe(assert(nb.open(there)):module("model.layers.0.mlp.up_proj").scheme))
    end
  end)

  it("FORMATS 10: ModelOpt's FP8, MXFP8 and blocks go to compressed-tensors and back, byte for byte", function()
    for _, scheme in ipairs { "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "MXFP8" } do
      local dir = run(scheme, "modelopt")
      assert.equal(weights_of(dir), weights_of(assert(convert(assert(convert(dir, "compressed-tensors")), "modelopt"))))
    end
  end)

  it("CTM-NVFP4-13: NVFP4's global scales, exactly where the reciprocal leads back", function()
    local name = "model.layers.0.self_attn.o_proj"
    local base = run("NVFP4", "modelopt")
    for _, which in ipairs { "weight_scale_2", "input_scale" } do
      -- 0.25 leads back; 41/40 doesn't: 1/x is 0.975609779, whose reciprocal is one unit off.
      local odd
      for i = 1, 1000 do
        local x = nb.tensor("f32", { 1 }, { 1 + i / 1024 }):get(1)
        local r = nb.tensor("f32", { 1 }, { 1 / x }):get(1)
        if nb.tensor("f32", { 1 }, { 1 / r }):get(1) ~= x then odd = x end
      end
      local dir = with_number(base, name .. "." .. which, odd)
      local out, msg, code = convert(dir, "compressed-tensors")
      assert.is_nil(out)
      assert.matches("^model.layers.0.self_attn.o_proj: the " .. (which == "input_scale" and "input" or "weight")
        .. "'s global scale is 1%.%d+, and the reciprocal that compressed%-tensors keeps, 0%.%d+, does not lead back", msg)
      assert.equal("einexact", code)
      local lossy = assert(convert(dir, "compressed-tensors", { lossy = true }))
      local stored = assert(assert(nb.open(lossy)):tensor(name .. (which == "input_scale" and ".input_global_scale"
        or ".weight_global_scale"))):get(1)
      assert.is_true(math.abs(stored * odd - 1) < 1e-7)
      dir = with_number(base, name .. "." .. which, 0.25)
      assert(convert(dir, "compressed-tensors"))
    end
  end)

  it("NVFP4 from compressed-tensors to ModelOpt: refused, or lossy and back within one unit", function()
    local name = "model.layers.1.mlp.gate_proj.weight_global_scale"
    local dir = with_number(run("NVFP4", "compressed-tensors"), name, 6752)
    local out, msg, code = convert(dir, "modelopt")
    assert.is_nil(out)
    assert.matches("global scale is %d+.*, and the reciprocal that modelopt keeps, 0%.%d+, does not lead back to it; convert lossy", msg)
    assert.equal("einexact", code)
    local there = assert(convert(dir, "modelopt", { lossy = true }))
    local back = assert(convert(there, "compressed-tensors", { lossy = true }))
    local a, b = assert(nb.open(dir)), assert(nb.open(back))
    assert.is_true(math.abs(assert(b:tensor(name)):get(1) / 6752 - 1) < 1e-6)
    for _, info in ipairs(a.tensors) do
      if not info.name:find "global_scale$" then
        assert.is_true(assert(a:tensor(info.name)):equal(assert(b:tensor(info.name))), info.name)
      end
    end
  end)

  it("FORMATS 10: GPT-OSS's experts go to compressed-tensors one by one, with their biases", function()
    local dir, list, t, p = fresh(), {}, {}, "model.layers.0.mlp.experts."
    assert(checkpoint.mkdir(dir))
    local rnd = support.random(5)
    for _, size in ipairs { { "gate_up_proj", 64, 2 }, { "down_proj", 64, 1 } } do
      t[p .. size[1] .. "_blocks"] = nb.tensor("u8", { 2, size[2], size[3], 16 })
      t[p .. size[1] .. "_scales"] = nb.tensor("u8", { 2, size[2], size[3] })
      t[p .. size[1] .. "_bias"] = nb.tensor("bf16", { 2, size[2] })
      for i = 1, t[p .. size[1] .. "_blocks"]:numel() do t[p .. size[1] .. "_blocks"]:set(i, rnd(256)) end
      for i = 1, t[p .. size[1] .. "_scales"]:numel() do t[p .. size[1] .. "_scales"]:set(i, 110 + rnd(20)) end
      for i = 1, 2 * size[2] do t[p .. size[1] .. "_bias"]:set(i, i) end
    end
    for name, tensor in pairs(t) do list[#list + 1] = { name = name, dtype = tensor:type(), shape = tensor:size() } end
    table.sort(list, function(a, b) return a.name < b.name end)
    local writer = assert(checkpoint.writer { dir = dir, tensors = list, shard_bytes = 1e9, metadata = { format = "pt" } })
    for _, entry in ipairs(list) do assert(writer:put(entry.name, t[entry.name])) end
    assert(writer:finish())
    writer:close()
    files.write(dir .. "/config.json", nb.json.encode { quantization_config = { quant_method = "mxfp4" } })
    local fused, out = assert(nb.open(dir)), assert(nb.open(assert(convert(dir, "compressed-tensors"))))
    for _, rec in ipairs(assert(fused:modules())) do
      local a, b = assert(fused:quantized(rec.name)), assert(out:quantized(rec.name))
      assert.is_true((a:equal(b)), rec.name)
      assert.is_true(a.bias:equal(b.bias))
    end
    assert.equal("MXFP4A16", nb.scheme.describe(out:module(p .. "1.up_proj").scheme))
  end)

  it("scales of the key-value cache go along", function()
    local name = "model.layers.0.self_attn.k_proj.k_scale"
    local dir = fresh()
    editor.copy(run("FP8_DYNAMIC", "modelopt"), dir, { weights = function(list)
      list[#list + 1] = { name = name, dtype = "F32", shape = { 1 }, data = "\0\0\128\63" }
    end })
    os.remove(dir .. "/nibble.json")
    local ck = assert(nb.open(dir))
    assert.equal("FP8_DYNAMIC", nb.scheme.describe(ck:module("model.layers.0.self_attn.k_proj").scheme))
    local out = assert(nb.open(assert(convert(dir, "compressed-tensors"))))
    assert.equal(1, assert(out:tensor(name)):get(1))
  end)
end)
