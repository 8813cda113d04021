-- Repairs of modules' own tensors: lost shapes, tied heads, scales that must be shared or are dead, padding for ranks (FORMATS 4, 6).
local nb = require "nibble"
local editor = require "spec.support.editor"
local support = require "spec.support.formats"
local repairs = require "spec.support.repairs"

local fresh, broken, without_config, folder = repairs.fresh, repairs.broken, repairs.without_config, repairs.folder
local edit_index, mended, same_tensors, nothing_to_mend = repairs.edit_index, repairs.mended, repairs.same_tensors, repairs.nothing_to_mend
local offered, refused = repairs.offered, repairs.refused

setup(repairs.setup)
teardown(repairs.teardown)

describe("repair: modules", function()
  it("a lost weight_shape is what groups and words mean", function()
    local original = assert(nb.open "spec/interop/ct-w4a16-g128")
    local function lose(list)
      for i = #list, 1, -1 do
        if list[i].name:find "weight_shape" then table.remove(list, i) end
      end
    end
    local dir = broken("interop/ct-w4a16-g128", { weights = lose })
    local ck = mended(dir, nil, "weight_shape  model.layers.3.mlp.down_proj: no weight_shape → %[256x768%]")
    same_tensors(original, ck)
    ck = mended(broken("interop/ct-w4a16-g128", { weights = lose, config = without_config }), nil, "W4A16 g128 sym %(2 modules%)")
    same_tensors(original, ck)
  end)

  it("a head that repeats the embedding it is tied to is left out; another one is asked about", function()
    local function tied(c) c.tie_word_embeddings = true end
    local dir = broken("models/tiny-llama", { config = tied, weights = function(list)
      list["lm_head.weight"].data = list["model.embed_tokens.weight"].data
    end })
    local ck = mended(dir, nil, "tie  lm_head.weight: a copy of the embedding .* → left out")
    assert.is_nil(ck:info "lm_head.weight")
    dir = broken("models/tiny-llama", { config = tied, weights = function() end })
    local only = { only = "tie" }
    local plan = assert(nb.repair.plan(dir, only))
    assert.matches("lm_head.weight holds other values; say which is meant: %-%-set tie_word_embeddings=false", tostring(plan))
    ck = mended(dir, { only = "tie", set = { tie_word_embeddings = false } }, "true beside a head of its own → false")
    assert.is_false(ck.config.tie_word_embeddings)
    ck = mended(broken("models/tiny-llama", { weights = function(list) editor.remove(list, "lm_head.weight") end }), nil,
      "tie_word_embeddings false, and no lm_head is stored → true")
    assert.is_true(ck.config.tie_word_embeddings)
    dir = broken("models/tiny-llama", { weights = function(list) editor.remove(list, "lm_head.weight") end })
    edit_index(dir, function(_, map)
      for _, t in ipairs(editor.load(dir .. "/model.safetensors")) do map[t.name] = "model.safetensors" end
      map["lm_head.weight"] = "model.safetensors"
    end)
    assert.matches("lm_head.weight is in no file, and config.json means lm_head: its weights are lost", tostring(assert(nb.repair.plan(dir))))
    assert.is_nil(tostring(nb.repair.plan(dir)):match "tie_word")
  end)
end)

-- One layer's modules of NVFP4 with these global scales; module -> tensors' folder.
local function nvfp4(format, globals, extra)
  local tensors, i = {}, 0
  for name, global in pairs(globals) do
    i = i + 1
    local q = support.quantized(nb.scheme.parse "NVFP4A16", 32, 64, "bf16", #name + i)
    q.global:set(1, global)
    local stored = assert(support.store(format, name, q))
    for key, t in pairs(stored) do tensors[key] = t end
    local scales = stored[name .. ".weight_scale"]
    scales:as("u8", scales:size()):map(function(x) return x % 32 + 64 end, scales:as("u8", scales:size())) -- far from 0
  end
  local records = {}
  for name in pairs(globals) do records[#records + 1] = { name = name, kind = "linear", scheme = nb.scheme.parse "NVFP4A16" } end
  table.sort(records, function(a, b) return a.name < b.name end)
  local config = assert(nb.formats.get(format)).config(records)
  if extra then extra(tensors) end
  return folder(tensors, { quantization_config = config })
end

describe("repair: scales", function()
  for _, format in ipairs { "compressed-tensors", "modelopt" } do
    it("NVFP4's global scale in " .. format .. " is one for what is loaded as one; powers of two are exact", function()
      local p = "model.layers.0."
      local dir = nvfp4(format, { [p .. "self_attn.q_proj"] = 1024, [p .. "self_attn.k_proj"] = 4096, [p .. "self_attn.v_proj"] = 1024,
        [p .. "mlp.experts.3.w1"] = 512, [p .. "mlp.experts.3.w3"] = 2048, [p .. "mlp.experts.4.w1"] = 128, [p .. "mlp.experts.4.w3"] = 128 })
      local before = assert(nb.open(dir))
      local ck, _, plan = mended(dir, nil, {
        "global%-scale  model.layers.0.self_attn.k_proj: .*shared with q_proj; block scales times a power of two, exact",
        "global%-scale  model.layers.0.mlp.experts.3.w3: .*exact" })
      assert.equal(2, #plan.changes)
      for _, rec in ipairs(assert(before:modules())) do
        assert.is_true(assert(before:weight(rec.name, "f32")):equal(assert(ck:weight(rec.name, "f32"))), rec.name)
      end
      local suffix = format == "modelopt" and ".weight_scale_2" or ".weight_global_scale"
      assert.is_true(ck:tensor(p .. "self_attn.q_proj" .. suffix):equal(ck:tensor(p .. "self_attn.k_proj" .. suffix)))
      same_tensors(before, ck, "%.weight_.*scale")
      assert.is_true(offered(dir, "global-scale"))
      nothing_to_mend(ck.path)
    end)
  end

  it("another ratio rounds block scales, and says by how much", function()
    local p = "model.layers.0.mlp."
    local dir = nvfp4("compressed-tensors", { [p .. "gate_proj"] = 1000, [p .. "up_proj"] = 1700 })
    local before = assert(nb.open(dir))
    local ck, _, plan = mended(dir, nil, "weight_global_scale 1700 → 1000; shared with gate_proj; block scales are rounded, by at most [%d.]+ %%")
    local most = tonumber(tostring(plan):match "at most ([%d.]+) %%") / 100
    assert.is_true(most > 0 and most <= 0.0626)
    local a, b = assert(before:weight(p .. "up_proj", "f32")), assert(ck:weight(p .. "up_proj", "f32"))
    local worst = 0
    for i = 1, a:numel() do
      if a:get(i) ~= 0 then worst = math.max(worst, math.abs(b:get(i) / a:get(i) - 1)) end
    end
    assert.is_true(worst > 0 and worst <= most * 1.06, worst .. " against " .. most)
    assert.is_true(before:weight(p .. "gate_proj", "f32"):equal(ck:weight(p .. "gate_proj", "f32")))
  end)

  it("a global scale that is no number can't be shared", function()
    local p = "model.layers.0.mlp."
    local dir = nvfp4("compressed-tensors", { [p .. "gate_proj"] = 1000, [p .. "up_proj"] = 1 / 0 })
    refused(dir, nil, "up_proj: weight_global_scale is inf, so model.layers.0.mlp.gate_up_proj can't share one: quantize it again")
  end)

  it("experts that no token reached get their neighbour's scales, their codes stay", function()
    local p = "model.layers.0.mlp.experts."
    local globals = {}
    for e = 0, 3 do globals[p .. e .. ".down_proj"] = 100 * (e + 1) end
    local dir = nvfp4("compressed-tensors", globals, function(tensors)
      tensors[p .. "1.down_proj.weight_scale"]:fill(0)
      tensors[p .. "2.down_proj.weight_global_scale"]:set(1, 0 / 0)
    end)
    local before = assert(nb.open(dir))
    assert.is_true(offered(dir, "dead-expert-scale"))
    local ck = mended(dir, nil, { "experts.1.down_proj: weight_scale 0 → expert 0's; no token reached it in calibration",
      "experts.2.down_proj: weight_global_scale NaN → expert 0's" })
    assert.equal(100, ck:tensor(p .. "2.down_proj.weight_global_scale"):get(1))
    assert.is_true(ck:tensor(p .. "1.down_proj.weight_scale"):equal(before:tensor(p .. "0.down_proj.weight_scale")))
    assert.is_true(ck:tensor(p .. "1.down_proj.weight_packed"):equal(before:tensor(p .. "1.down_proj.weight_packed")))
    for e = 0, 3 do assert.equal(0, assert(ck:weight(p .. e .. ".down_proj", "f32")):scan().nan) end
    nothing_to_mend(ck.path)
    dir = nvfp4("compressed-tensors", { [p .. "0.down_proj"] = 100 }, function(t) t[p .. "0.down_proj.weight_scale"]:fill(0) end)
    refused(dir, nil, "experts.0.down_proj: weight_scale is 0, and no other expert of its layer has a sound one")
  end)
end)

describe("repair: padding", function()
  -- The first rows and columns are the weight, all others 0.
  local function grown(small, large, name)
    local a, b = assert(small:weight(name, "f32")), assert(large:weight(name, "f32"))
    local n, k, columns, p, q = a:size(1), a:size(2), b:size(2), a:ptr(), b:ptr()
    for i = 0, b:size(1) - 1 do
      for j = 0, columns - 1 do
        local wanted = i < n and j < k and p[i * k + j] or 0
        if q[i * columns + j] ~= wanted then error(("%s[%d,%d]: %g for %g"):format(name, i, j, q[i * columns + j], wanted)) end
      end
    end
    return b:size()
  end

  local function quantized(model, fields)
    local dir = fresh()
    fields.name = "padded"
    assert(assert(nb.plan(assert(nb.recipe(fields)), assert(nb.open("spec/models/parity/" .. model)))):run(dir))
    return dir
  end

  local function loss(ck)
    local ids = {}
    for i = 1, 96 do ids[i] = i * 7 % 60 + 1 end
    return assert(nb.models.load(ck)):logits(nb.tensor("i32", { 96 }, ids))
  end

  for _, case in ipairs {
    { "compressed-tensors", "W4A16 g64 sym", "llama" }, { "gptq", "W4A16 g64 asym", "llama" }, { "awq", "W4A16 g64 asym", "llama" },
    { "compressed-tensors", "NVFP4A16", "mixtral" },
    { "modelopt", "NVFP4A16", "qwen3-moe" }, { "compressed-tensors", "W8A16 channel", "mixtral" },
  } do
    it(("adds zeros alone: %s in %s of a %s"):format(case[2], case[1], case[3]), function()
      local dir = quantized(case[3], { scheme = case[2], output = { format = case[1] } })
      local before = assert(nb.open(dir))
      local key = case[3] == "qwen3-moe" and "moe_intermediate_size" or "intermediate_size"
      local size = before.config[key]
      local ck, result = mended(dir, { tp = 4, only = "padding" }, ("padding  config.json: %s %d → %%d+; 4 ranks"):format(key, size))
      local to = ck.config[key]
      assert.is_true(to > size and to % 64 == 0 and to <= 256, to .. " of " .. size)
      assert.is_true(result.copied > 0 and result.copied < result.modules)
      local some = 0
      for _, rec in ipairs(assert(before:modules())) do
        local leaf = rec.name:match "[^.]*$"
        if rec.name:find "mlp.*_proj$" or leaf:find "^w[123]$" then
          local shape = grown(before, ck, rec.name)
          assert.same((leaf == "down_proj" or leaf == "w2") and { rec.n, to } or { to, rec.k }, shape)
          some = some + 1
        end
      end
      assert.is_true(some > 2)
      for _, f in ipairs(case[1] == "compressed-tensors" and nb.check.run(ck, { tp = 4, values = false }).findings or {}) do
        assert.is_true(f.repair == nil or f.repair.kind ~= "padding", f.says)
      end
      local x, y = loss(before), loss(ck)
      for i = 1, x:numel() do assert.is_true(math.abs(x:get(i) - y:get(i)) <= 1e-4 * (1 + math.abs(x:get(i))), i) end
    end)
  end

  it("a float model is padded to whole ranks, its bias too", function()
    local function t(n, k) return nb.tensor("bf16", k and { n, k } or { n }):fill(0.5) end
    local p = "model.layers.0.mlp."
    local dir = folder({ [p .. "gate_proj.weight"] = t(10, 8), [p .. "up_proj.weight"] = t(10, 8), [p .. "down_proj.weight"] = t(8, 10),
      [p .. "gate_proj.bias"] = t(10), [p .. "up_proj.bias"] = t(10), [p .. "down_proj.bias"] = t(8) },
      { intermediate_size = 10, num_attention_heads = 8 })
    local before = assert(nb.open(dir))
    local ck = mended(dir, { tp = 4 }, { "gate_proj: %[10×8%] → %[12×8%]; rows of zeros", "down_proj: %[8×10%] → %[8×12%]; columns of zeros" })
    assert.same({ 12, 8 }, grown(before, ck, p .. "up_proj"))
    assert.same({ 8, 12 }, grown(before, ck, p .. "down_proj"))
    assert.same({ 0.5, 0, 0 }, { ck:tensor(p .. "gate_proj.bias"):get(10), ck:tensor(p .. "gate_proj.bias"):get(11), ck:tensor(p
      .. "gate_proj.bias"):get(12) })
    assert.equal(8, ck:info(p .. "down_proj.bias").shape[1])
  end)

  it("refuses heads that don't divide, other names, and sizes that config.json doesn't know", function()
    refused("spec/models/tiny-llama", { tp = 16 }, "4 attention heads don't divide among 16 ranks, and heads can't be padded")
    local dir = broken("models/tiny-llama", { config = function(c) c.intermediate_size = 700 end })
    refused(dir, { tp = 4, only = "padding" }, "its layers have 768, 768 and 768, but config.json's intermediate_size is 700")
    refused(folder({ ["h.0.mlp.fc1.weight"] = nb.tensor("bf16", { 8, 8 }) }, {}), { tp = 2 }, "no layer has gate, up and down projections")
    refused("spec/models/tiny-llama", { tp = 4 }, "nothing to repair")
  end)
end)
