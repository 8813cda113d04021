-- Runs into float and activation schemes: written, proven, read back as they were meant; the first pass over a weight;
-- scales of inputs (FORMATS 4).
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local files = require "spec.support.files"
local command = require "spec.support.command"
local floats = require "nibble.quant_float"
local scheme = nb.scheme

local llama, moe = "spec/models/tiny-llama", "spec/models/tiny-moe"
local root, made

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

setup(function() root, made = files.temporary(), 0 end)
teardown(function() os.execute("rm -rf " .. root) end)

-- Plans and runs the recipe; -> the output opened, the source, the plan.
local function run(recipe, model, options)
  recipe.name = "t"
  local source = assert(nb.open(model or llama))
  local p = assert(nb.plan(assert(nb.recipe(recipe)), source, options))
  local dir = fresh()
  assert(p:run(dir))
  return assert(nb.open(dir)), source, p, dir
end

-- Four layers, four schemes at a time.
local every = { { "FP8_DYNAMIC", "FP8A16 tensor", "FP8_BLOCK block64x96", "NVFP4A16" }, { "MXFP4", "MXFP8A16", "W8A8", "W4A8" },
  { "W4AFP8", "FP8A16 g64", "NVFP4A16", "W8A16 channel" } }

describe("a run into", function()
  it("every scheme, and into several at once: modules hold what the method gives for the weight", function()
    for _, schemes in ipairs(every) do
      local rules = {}
      for i, words in ipairs(schemes) do
        local name, rest = words:match "^(%S+) ?(.*)$"
        rules[i] = { ("*.layers.%d.*"):format(i - 1), scheme = name, group = tonumber(rest:match "^g(%d+)"),
          strategy = (rest == "tensor" or rest == "channel") and rest or nil, block = rest:match "^block(.*)" }
      end
      local out, source, p = run { scheme = "W4A16", options = { arithmetic = "dtype" }, rules = rules }
      assert.equal("mixed-precision", out.quantization.config.format)
      for i, words in ipairs(schemes) do
        for _, leaf in ipairs { "self_attn.k_proj", "mlp.down_proj" } do
          local rec = assert(nb.formats.record(out, ("model.layers.%d.%s"):format(i - 1, leaf)))
          assert.equal(scheme.describe(scheme.parse(words)), scheme.describe(rec.scheme))
          local q, w = assert(nb.formats.quantized(out, rec.name)), assert(source:weight(rec.name))
          local want = scheme.quantized(rec.scheme, rec.n, rec.k, rec.dtype)
          local whole = q.global and { global = q.global:get(1) } or nil
          assert(nb.quant.methods.rtn.tile(want, w, rec.scheme, { arithmetic = "dtype" }, whole))
          assert.same({ true }, { q:equal(want) }, rec.name)
        end
      end
      assert.is_true(p.totals.bytes_out < p.totals.bytes_in)
    end
  end)

  it("experts, and into two formats at once", function()
    local out = run({ scheme = "NVFP4A16", rules = { { "*.self_attn.*", scheme = "FP8_DYNAMIC" } } }, moe)
    assert.equal("mixed-precision", out.quantization.config.format)
    assert.equal("FP8_DYNAMIC", scheme.describe(out:module("model.layers.0.self_attn.q_proj").scheme))
    local gate, up = "model.layers.1.mlp.experts.2.gate_proj", "model.layers.1.mlp.experts.2.up_proj"
    assert.equal("NVFP4A16", scheme.describe(out:module(gate).scheme))
    assert.equal(nb.formats.quantized(out, gate).global:get(1), nb.formats.quantized(out, up).global:get(1))
    local model = assert(nb.models.load(out))
    assert.is_truthy(model)
  end)

  it("fused siblings get one global scale, from the largest of them all", function()
    local out, source = run { scheme = "NVFP4A16" }
    local function global(name) return nb.formats.quantized(out, name).global:get(1) end
    local layer = "model.layers.1."
    for _, group in ipairs { { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj" }, { "mlp.gate_proj", "mlp.up_proj" } } do
      local most = 0
      for _, leaf in ipairs(group) do most = math.max(most, (floats.absmax(source:weight(layer .. leaf)))) end
      local want = floats.whole(scheme.parse "NVFP4A16", most, "bf16", "f8_e4m3").global
      for _, leaf in ipairs(group) do assert.equal(want, global(layer .. leaf)) end
    end
    assert.not_equal(global(layer .. "self_attn.q_proj"), global(layer .. "self_attn.o_proj"))
  end)

  it("llm-compressor's numbers with arithmetic = dtype", function()
    -- numbers of the tool's own file, which scripts/interop compares as a whole
    local out = run { scheme = "NVFP4A16", options = { arithmetic = "dtype" } }
    assert.equal(10048, nb.formats.quantized(out, "model.layers.0.self_attn.k_proj").global:get(1))
    assert.equal(9088, nb.formats.quantized(out, "model.layers.1.self_attn.o_proj").global:get(1))
    assert.equal(5760, nb.formats.quantized(out, "model.layers.3.mlp.down_proj").global:get(1))
  end)
end)

describe("scales of inputs", function()
  local function names(model)
    local scales = {}
    for i, rec in ipairs(assert(nb.open(model)):modules()) do
      if rec.kind == "linear" then scales[rec.name] = 0.01 * i end
    end
    return scales
  end

  it("are written where the plan has them, and come back", function()
    for _, case in ipairs { { "FP8", "input_scale" }, { "W8A8_STATIC", "input_scale" }, { "NVFP4", "input_global" } } do
      local scales = names(llama)
      local out = run({ scheme = case[1] }, llama, { input_scales = scales })
      local name = "model.layers.2.mlp.up_proj"
      local got = nb.formats.quantized(out, name)[case[2]]
      assert.equal(nb.tensor("f32", { 1 }, { scales[name] }):get(1), got:get(1), case[1])
      assert.is_true(assert(nb.models.load(out)) ~= nil)
    end
  end)

  it("with their zero-points, as tables", function()
    local scales = names(llama)
    for name, s in pairs(scales) do scales[name] = { scale = s, zero_point = -7 } end
    local out = run({ scheme = "W8A8_STATIC", activations = "int8:tensor:static:asym" }, llama, { input_scales = scales })
    local q = nb.formats.quantized(out, "model.layers.0.mlp.up_proj")
    assert.same({ -7, 1 }, { q.input_zero:get(1), q.input_zero:numel() })
  end)

  it("that are missing stop a run before it writes, with the key that brings them", function()
    for _, name in ipairs { "FP8", "NVFP4", "W8A8_STATIC" } do
      local p = assert(nb.plan(assert(nb.recipe { name = "t", scheme = name }), assert(nb.open(llama))))
      assert.matches("quantizes inputs by fixed scales: running needs a text to calibrate with, calibrate.text", table.concat(p.notes, "\n"))
      local dir = fresh()
      local done, msg, code = p:run(dir)
      assert.is_nil(done)
      assert.equal("einval", code)
      assert.matches(name .. ".* needs the scale of the layer's input, which comes from calibration: name a text in the recipe's `calibrate`", msg)
      assert.is_nil(checkpoint.exists(dir))
    end
    local scales = names(llama)
    scales["model.layers.3.mlp.down_proj"] = nil
    local p = assert(nb.plan(assert(nb.recipe { name = "t", scheme = "FP8" }), assert(nb.open(llama)), { input_scales = scales }))
    assert.matches("^model.layers.3.mlp.down_proj: FP8 needs", select(2, p:run(fresh())))
    assert.not_equal(p:id(), assert(nb.plan(assert(nb.recipe { name = "t", scheme = "FP8" }), assert(nb.open(llama)))):id())
  end)
end)

describe("recipes of float schemes", function()
  local function plan(recipe)
    recipe.name = "t"
    return nb.plan(assert(nb.recipe(recipe)), assert(nb.open(llama)))
  end

  it("take block and activations, and check them", function()
    local p = assert(plan { scheme = "FP8A16", block = { 64, 128 }, activations = { type = "float", group = 128, dynamic = true } })
    local job
    for _, j in ipairs(p.jobs) do if j.name == "model.layers.0.mlp.up_proj" then job = j end end
    assert.equal("FP8_BLOCK block64x128", scheme.describe(job.out.scheme))
    p = assert(plan { scheme = "NVFP4", activations = false })
    assert.matches("NVFP4A16", tostring(p))
    local none, msg = plan { scheme = "FP8_DYNAMIC", block = "64" }
    assert.is_nil(none)
    assert.matches('block = 64: expected {rows, columns}', msg)
    assert.matches("activations must be a table or a string or a boolean", select(2, nb.recipe { name = "t", scheme = "FP8", activations = 8 }))
  end)

  it("keep a recipe's group for rules that name another scheme of groups, and for no others", function()
    local p = assert(plan { scheme = "W4A16", group = 64, rules = {
      { "*.down_proj", scheme = "FP8_DYNAMIC" }, { "*.o_proj", scheme = "W8A16" }, { "*.q_proj", scheme = "MXFP4A16" },
      { "*.k_proj", scheme = "MXFP4A16" }, { "*.v_proj", scheme = "MXFP4A16" } } })
    local by = {}
    for _, m in ipairs(p:totable().modules) do by[m.name] = m.scheme end
    assert.same({ "FP8_DYNAMIC", "W8A16 g64 sym", "MXFP4A16", "W4A16 g64 sym" }, { by["model.layers.0.mlp.down_proj"],
      by["model.layers.0.self_attn.o_proj"], by["model.layers.0.self_attn.q_proj"], by["model.layers.0.mlp.up_proj"] })
  end)

  it("refuse what the shape or the format can't hold", function()
    assert.matches("k = 256 is not a multiple of the group size 48", select(2, plan { scheme = "FP8A16", group = 48 }))
    assert.matches("compressed%-tensors has groups of 16", select(2, plan { scheme = "NVFP4", group = 32 }))
    assert.matches("AWQ holds integer codes, not 8%-bit floats", select(2, plan { scheme = "FP8A16", output = { format = "awq" } }))
    assert.matches("GPTQ cannot say how activations are quantized", select(2, plan { scheme = "W4A8", output = { format = "gptq" } }))
    local r = assert(nb.recipe { name = "t", scheme = "FP8A16", method = "mse" })
    local done, msg = assert(nb.plan(r, assert(nb.open(llama)))):run(fresh())
    assert.is_nil(done)
    assert.matches("method mse searches integer grids; use rtn for FP8A16", msg)
  end)
end)

describe("what was written", function()
  it("is shown by inspect, goes on after a kill, and dequantizes exactly", function()
    local recipe = root .. "/nv.lua"
    files.write(recipe, 'return { name = "nv", scheme = "NVFP4A16", output = { shard = "600KB" } }')
    local alone, dir = fresh(), fresh()
    assert.equal(0, command.run(("run %s %s --out %s"):format(recipe, llama, alone)).status)
    for _, seconds in ipairs { 0.01, 0.03, 0.05 } do
      os.execute(("%s run %s %s --out %s >/dev/null 2>&1 & p=$!; sleep %.3f; kill -9 $p 2>/dev/null; wait $p 2>/dev/null"):format(
        command.program, recipe, llama, dir, seconds))
    end
    assert.equal(0, command.run(("run %s %s --out %s"):format(recipe, llama, dir)).status)
    assert.equal(0, os.execute(("diff -r %s %s >/dev/null"):format(alone, dir)))
    local r = command.run("inspect " .. dir)
    assert.matches("NVFP4A16", r.out)
    local plain = fresh()
    r = command.run(("convert %s --to plain --out %s"):format(dir, plain))
    assert.equal(0, r.status, r.err)
    local a, b = assert(nb.open(dir)), assert(nb.open(plain))
    local name = "model.layers.3.mlp.gate_proj"
    assert.is_true(a:weight(name, "f32"):equal(b:weight(name)))
  end)

  it("is refused by formats that can't hold it", function()
    local _, _, _, dir = run { scheme = "MXFP4" }
    local done, msg, code = nb.convert.to(assert(nb.open(dir)), "gptq", fresh())
    assert.is_nil(done)
    assert.equal("einexact", code)
    assert.matches("GPTQ holds integer codes, not 4%-bit floats", msg)
  end)
end)
