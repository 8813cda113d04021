-- check on layers as consumers build them: fused siblings, ignore lists in five dialects, what may not be quantized,
-- tensor-parallel sizes, act-order. Every rule with a checkpoint that breaks it and nothing else.
local nb = require "nibble"
local check = require "spec.support.check"
local editor = require "spec.support.editor"

local LLAMA, MOE, TINY = "spec/models/parity/llama", "spec/models/parity/qwen3-moe", "spec/models/tiny-llama"
local L0, L1 = "model.layers.0.", "model.layers.1."

local bases = {}

-- A checkpoint that nibble wrote, by recipe; made once.
local function base(key, model, recipe)
  if not bases[key] then
    bases[key] = check.fresh()
    recipe.name = key
    assert(assert(nb.plan(assert(nb.recipe(recipe)), assert(nb.open(model)))):run(bases[key]))
  end
  return bases[key]
end

local function ct() return base("ct", LLAMA, { scheme = "W4A16", group = 32 }) end
local function awq() return base("awq", LLAMA, { scheme = "W4A16_ASYM", group = 32, output = { format = "awq" } }) end
local function gptq() return base("gptq", LLAMA, { scheme = "W4A16", group = 32, output = { format = "gptq" } }) end
local function fp8() return base("fp8", LLAMA, { scheme = "FP8_BLOCK", output = { format = "fp8" } }) end
local function moe() return base("moe", MOE, { scheme = "W4A16", group = 32 }) end
local function nvfp4() return base("nvfp4", LLAMA, { scheme = "NVFP4A16" }) end
local function modelopt() return base("modelopt", LLAMA, { scheme = "NVFP4A16", output = { format = "modelopt" } }) end

setup(check.begin)
teardown(check.finish)

-- What is found in a changed copy on one rank.
local function found(from, change, options)
  return check.found(check.broken(from, change), options)
end

local function quantization(change)
  return { config = function(c) change(c.quantization_config, c) end }
end

-- Module `name` of the list becomes a float [n,k] of zeros.
local function made_float(w, name, n, k)
  for i = #w, 1, -1 do
    if w[i].name:sub(1, #name + 1) == name .. "." then table.remove(w, i) end
  end
  table.insert(w, { name = name .. ".weight", dtype = "F32", shape = { n, k }, data = ("\1"):rep(n * k * 4) })
end

-- Module `from`'s tensors once more, as module `to`.
local function copied(w, from, to)
  for i = 1, #w do
    local t, suffix = w[i], w[i].name:match("^" .. from:gsub("%.", "%%.") .. "(%..*)$")
    if suffix then table.insert(w, { name = to .. suffix, dtype = t.dtype, shape = { unpack(t.shape) }, data = t.data }) end
  end
end

describe("check on checkpoints that nibble writes", function()
  it("finds nothing", function()
    for _, from in ipairs { ct, awq, gptq, fp8, moe, nvfp4, modelopt } do
      assert.same({}, (found(from(), {}, { values = true })))
    end
  end)
end)

describe("check on fused layers", function()
  it("tells siblings of which one stayed float, once", function()
    local lines, list = found(ct(), { weights = function(w) made_float(w, L0 .. "self_attn.k_proj", 32, 64) end })
    assert.same({ "error fused-half-quantized " .. L0 .. "self_attn.qkv_proj" }, lines)
    assert.matches("^q_proj is quantized %(W4A16 g32 sym%) and k_proj is stored as f32", list[1].says)
    assert.matches("^vllm%-0.33", list[1].source)
    -- The same in every layer is one finding.
    lines = found(ct(), { weights = function(w)
      made_float(w, L0 .. "mlp.up_proj", 128, 64)
      made_float(w, L1 .. "mlp.up_proj", 128, 64)
    end })
    assert.same({ "error fused-half-quantized " .. L0 .. "mlp.gate_up_proj ×2" }, lines)
  end)

  it("tells siblings with two schemes", function()
    local from = base("two", LLAMA, { scheme = "W4A16", group = 32, rules = { { "*.0.self_attn.o_proj", scheme = "W8A16", group = 32 } } })
    assert.same({}, (found(from)))
    local lines, list = found(from, { config = function(c)
      local groups = c.quantization_config.config_groups
      groups.group_1.targets = nb.json.array { L0 .. "self_attn.v_proj" }
      groups.group_0.targets = nb.json.array { "re:.*mlp", "re:.*1.self_attn", "re:.*0.self_attn.[qko]_proj" }
    end, weights = function(w) -- v_proj becomes what o_proj was: 8 bits
      for i = #w, 1, -1 do
        if w[i].name:find(L0 .. "self_attn.v_proj", 1, true) then table.remove(w, i) end
      end
      local q4 = editor.load(ct() .. "/model.safetensors")
      local wide = {}
      for _, t in ipairs(w) do
        if t.name:find(L0 .. "self_attn.o_proj", 1, true) then wide[#wide + 1] = t end
      end
      for _, t in ipairs(wide) do
        local suffix = t.name:match "[^.]*$"
        local rows = suffix == "weight_shape" and 2 or t.shape[1] / 2
        local data = suffix == "weight_shape" and "\32" .. ("\0"):rep(7) .. "\64" .. ("\0"):rep(7) or t.data:sub(1, #t.data / 2)
        table.insert(w, { name = L0 .. "self_attn.v_proj." .. suffix, dtype = t.dtype, shape = { rows, t.shape[2] }, data = data })
        local narrow = q4[t.name]
        t.shape, t.data = narrow.shape, narrow.data
      end
    end })
    assert.same({ "error fused-schemes " .. L0 .. "self_attn.qkv_proj" }, lines)
    assert.matches("q_proj is W4A16 g32 sym and v_proj is W8A16 g32 sym", list[1].says)
  end)

  it("tells global scales that differ, from the values", function()
    local change = { weights = function(w) editor.poke(w[L0 .. "mlp.up_proj.weight_global_scale"], 3, "\65") end }
    assert.same({}, (found(nvfp4(), change)))
    local lines, list = found(nvfp4(), change, { values = true })
    assert.same({ "error fused-global-scale " .. L0 .. "mlp.gate_up_proj" }, lines)
    assert.equal("global-scale", list[1].repair.kind)
    assert.equal("vllm-0.33 CTM-NVFP4-09", list[1].source)
  end)
end)

describe("check on ignore lists", function()
  it("tells entries that mean nothing, in each dialect", function()
    local function typo(from, change, entry)
      local lines, list = found(from, quantization(change))
      assert.same({ "warning ignore-means-nothing" }, lines, entry)
      assert.is_truthy(list[1].says:find(entry, 1, true))
    end
    typo(ct(), function(q) table.insert(q.ignore, "re:.*mlp.gaet$") end, "re:.*mlp.gaet$")
    typo(awq(), function(q) q.modules_to_not_convert = nb.json.array { "visual" } end, "visual")
    typo(gptq(), function(q) q.dynamic = { ["-:.*visual.*"] = {} } end, "-:.*visual.*")
    typo(fp8(), function(q) q.modules_to_not_convert = nb.json.array { "model.visual" } end, "model.visual")
    typo(modelopt(), function(q)
      q.exclude_modules, q.ignore = nb.json.array { "lm_head", "model.layers.9.*" }, nil
    end, "model.layers.9.*")
    typo("spec/interop/autoround-auto_gptq-w4g128", function(q, c)
      c.num_hidden_layers, q.quant_method, q.packing_format = 4, "auto-round", "auto_round:auto_gptq"
      c.model_type = "unknown"
      q.extra_config = { ["model.layers.7.mlp.gate"] = { bits = 16 } }
    end, "model.layers.7.mlp.gate")
  end)

  it("knows classes, fused names and a tied head's name", function()
    assert.same({}, (found(ct(), quantization(function(q)
      table.insert(q.ignore, "Embedding")
      table.insert(q.ignore, "lm_head")
    end))))
  end)

  it("tells a pattern that is none", function()
    local lines = found(ct(), quantization(function(q) table.insert(q.ignore, "re:(") end))
    assert.same({ "error ignore-pattern" }, lines)
  end)

  it("tells half a fused layer", function()
    local lines, list = found(ct(), quantization(function(q) table.insert(q.ignore, L0 .. "self_attn.k_proj") end))
    assert.same({ "error ignore-half-fused " .. L0 .. "self_attn.qkv_proj" }, lines)
    assert.matches("k_proj is ignored and q_proj is not", list[1].says)
    lines = found(awq(), quantization(function(q) q.modules_to_not_convert = nb.json.array { "0.mlp.up_proj" } end))
    assert.same({ "error ignore-half-fused " .. L0 .. "mlp.gate_up_proj" }, lines)
    lines = found(fp8(), quantization(function(q) q.modules_to_not_convert = nb.json.array { L0 .. "mlp.up_proj" } end))
    assert.same({ "error ignore-half-fused " .. L0 .. "mlp.gate_up_proj" }, lines)
  end)

  it("tells what is listed and quantized all the same", function()
    local lines, list = found(ct(), quantization(function(q) table.insert(q.ignore, L0 .. "mlp.down_proj") end))
    assert.same({ "error ignore-lists-quantized " .. L0 .. "mlp.down_proj" }, lines)
    assert.matches("take \"model.layers.0.mlp.down_proj\" out of the list", list[1].fix)
    lines = found(awq(), quantization(function(q) q.modules_to_not_convert = nb.json.array { "down_proj" } end))
    assert.same({ "error ignore-lists-quantized " .. L0 .. "mlp.down_proj ×2" }, lines)
    lines = found(fp8(), quantization(function(q) q.modules_to_not_convert = nb.json.array { L1 .. "mlp.down_proj" } end))
    assert.same({ "error ignore-lists-quantized " .. L1 .. "mlp.down_proj" }, lines)
    lines = found(gptq(), quantization(function(q) q.dynamic = { ["-:.*down_proj"] = {} } end))
    assert.matches("down_proj", lines[1])
    assert.equal(1, #lines)
  end)

  it("tells float layers that the config quantizes", function()
    local float = function(w) made_float(w, L0 .. "mlp.down_proj", 64, 128) end
    local lines, list = found(ct(), { weights = float })
    assert.same({ "error ignore-misses-float " .. L0 .. "mlp.down_proj" }, lines)
    assert.matches("the config quantizes it, and it is stored as f32", list[1].says)
    assert.equal("ignore", list[1].repair.kind)
    assert.same({ "error ignore-misses-float " .. L0 .. "mlp.down_proj" }, (found(fp8(), { weights = float })))
    assert.same({ "error ignore-misses-float " .. L0 .. "mlp.down_proj" }, (found(modelopt(), { weights = float })))
    assert.same({}, (found(awq(), { weights = float }))) -- whose list is made from the headers where it is empty
  end)
end)

describe("check on coverage", function()
  it("tells quantized heads, embeddings and routers", function()
    local up = L0 .. "mlp.up_proj" -- [128,64]; the head is [256,64]
    local function double(w, name)
      for i = #w, 1, -1 do
        if w[i].name == name .. ".weight" then table.remove(w, i) end
      end
      copied(w, up, name)
      for _, t in ipairs(w) do
        if t.name == name .. ".weight_shape" then t.data = "\0\1" .. t.data:sub(3)
        elseif t.name:sub(1, #name + 1) == name .. "." then t.shape[1], t.data = t.shape[1] * 2, t.data .. t.data end
      end
    end
    assert.same({ "error head-quantized lm_head" }, (found(ct(), { weights = function(w) double(w, "lm_head") end,
      config = function(c) c.quantization_config.ignore = nb.json.array {} end })))
    assert.same({ "error embedding-quantized model.embed_tokens" }, (found(ct(), { weights = function(w)
      double(w, "model.embed_tokens")
    end })))
    local lines = found(moe(), { weights = function(w)
      local name = L0 .. "mlp.gate"
      local rows = nb.open(moe()):info(name .. ".weight").shape[1]
      for i = #w, 1, -1 do
        if w[i].name == name .. ".weight" then table.remove(w, i) end
      end
      copied(w, L0 .. "self_attn.q_proj", name)
      for _, t in ipairs(w) do
        if t.name == name .. ".weight_shape" then t.data = string.char(rows) .. t.data:sub(2)
        elseif t.name:sub(1, #name + 1) == name .. "." then
          t.data = t.data:sub(1, #t.data / t.shape[1] * rows)
          t.shape[1] = rows
        end
      end
    end })
    assert.same({ "error router-quantized " .. L0 .. "mlp.gate" }, lines)
  end)

  it("tells experts that lack what others have, of architectures that it doesn't know, and towers", function()
    local unknown = function(c) c.model_type, c.architectures = "unknown_moe", nil end
    assert.same({ "error experts-incomplete " .. L0 .. "mlp.experts.2.up_proj ×2" }, (found(MOE, { config = unknown,
      weights = function(w)
        editor.remove(w, L0 .. "mlp.experts.2.up_proj.weight")
        editor.remove(w, L1 .. "mlp.experts.0.down_proj.weight")
      end })))
    assert.same({ "warning tower-quantized visual.blocks.0.mlp.up_proj" }, (found(ct(), { config = unknown, weights = function(w)
      copied(w, L0 .. "mlp.up_proj", "visual.blocks.0.mlp.up_proj")
    end })))
  end)

  it("tells layers for speculative decoding that are not there", function()
    assert.same({ "warning mtp-missing config.json" }, (found(LLAMA, { config = function(c) c.num_nextn_predict_layers = 1 end })))
  end)
end)

describe("check on ranks", function()
  it("tells layers that a tensor-parallel size splits badly, with the requirement and the padding", function()
    local lines, list = found(base("tiny", TINY, { scheme = "W4A16", group = 128 }), {}, { tp = { 1, 2, 4 } })
    assert.same({ "error ranks-refused " .. L0 .. "mlp.down_proj ×4", "error ranks-refused " .. L0 .. "self_attn.o_proj ×4" }, lines)
    assert.matches("^at tp 4 nothing takes it: marlin: .*K = 192 of this rank is not a multiple of the group size 128", list[1].says)
    assert.equal("vllm-0.33 AWQ-21", list[1].source)
    assert.matches("^tensor%-parallel size 2, or pad the intermediate size to 1024", list[1].fix)
    assert.same({ kind = "padding", tp = 4, intermediate = 1024 }, list[1].repair)
    assert.is_nil(list[2].repair)
  end)

  it("warns only, where nobody asked for the size, and tells fallbacks", function()
    local dir = base("tinyawq", TINY, { scheme = "W4A16_ASYM", group = 128, output = { format = "awq" } })
    local lines, list = check.found(dir, { tp = false })
    assert.same({ "warning ranks-fallback " .. L0 .. "mlp.down_proj ×4", "warning ranks-fallback " .. L0 .. "self_attn.o_proj ×4",
      "note ranks-heads config.json" }, lines)
    assert.matches("^at tp 4 awq runs it", list[1].says)
    assert.matches("4 attention heads don't divide among 8", list[3].says)
    assert.same({ "error ranks-heads config.json" }, (check.found(TINY, { tp = { 3 } })))
  end)

  it("tells layers that no kernel takes on the device", function()
    local lines, list = found("spec/golden/checkpoints/w3a16_g64_sym")
    assert.matches("^error kernel%-refused model.layers.0.mlp.down_proj ×2", lines[1])
    assert.matches("marlin: takes the types", list[1].says)
  end)
end)

describe("check on act-order", function()
  it("tells groups out of order where the consumer refuses them", function()
    local dir = base("act", LLAMA, { scheme = "W4A16", group = 32 })
    local lines, list = found(dir, { config = function(c)
      c.quantization_config.config_groups.group_0.weights.actorder = "group"
    end, weights = function(w)
      for i = 1, #w do
        local name, k = w[i].name:match "^(.*)%.weight_packed$", w[i].shape[2] and w[i].shape[2] * 8
        if name then
          local g = {}
          for c = 0, k - 1 do g[c + 1] = string.char((c * 7 + 3) % (k / 32), 0, 0, 0) end
          table.insert(w, { name = name .. ".weight_g_idx", dtype = "I32", shape = { k }, data = table.concat(g) })
        end
      end
    end })
    assert.same({ "error actorder-refused " .. L0 .. "mlp.down_proj ×8" }, lines)
    assert.matches("act%-order", list[1].says)
    assert.is_nil(list[1].repair)
  end)

  it("says so where the indices are trivial: then the config alone is wrong", function()
    local dir = check.broken(gptq(), quantization(function(q) q.desc_act = true end))
    assert.same({ "error actorder-refused", "warning config-disagrees quantize_config.json" }, (check.found(dir)))
    os.remove(dir .. "/quantize_config.json")
    local lines, list = check.found(dir)
    assert.same({ "error actorder-refused" }, lines)
    assert.matches("set desc_act to false, and nothing else changes", list[1].fix)
    assert.same({ kind = "actorder" }, list[1].repair)
    assert.same({ "note actorder-trivial" }, (check.found(dir, { consumer = "llama.cpp" })))
  end)
end)
