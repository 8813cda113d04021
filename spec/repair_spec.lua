-- Repairs: each kind from a broken checkpoint to a mended one whose weights are what they should be, all else the same
-- bytes; what can't be mended in one sentence; nothing half-written, the same bytes after a kill (FORMATS 1, 4, 6, 12).
-- Here: the index, configs, lists, and how repairs run; repair_modules_spec has those of modules' own tensors.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local support = require "spec.support.formats"
local repairs = require "spec.support.repairs"

local fresh, broken, without_config, folder = repairs.fresh, repairs.broken, repairs.without_config, repairs.folder
local shards, edit_index, mended, same_tensors = repairs.shards, repairs.edit_index, repairs.mended, repairs.same_tensors
local nothing_to_mend, offered, refused = repairs.nothing_to_mend, repairs.offered, repairs.refused

setup(repairs.setup)
teardown(repairs.teardown)

describe("repair: the index", function()
  local model
  setup(function() model = assert(nb.open "spec/models/tiny-llama") end)
  teardown(function() model = nil end)

  it("of stale, missing and wrong entries, and a wrong sum, becomes what the headers say", function()
    local dir = shards()
    local first, second
    edit_index(dir, function(index, map)
      first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
      map["model.layers.9.ghost.weight"] = first
      map["model.norm.weight"] = nil
      for name, file in pairs(map) do
        if name:find "layers.1.mlp.up_proj" then map[name] = file == first and second or first end
      end
      index.metadata.total_size = 17
    end)
    assert.is_nil(nb.open(dir))
    assert.is_true(offered(dir, "index"))
    local ck, result = mended(dir, nil, { "model.layers.9.ghost.weight: .* → the entry is left out", "model.norm.weight: .* → listed",
      "up_proj.weight: .* → the entry names the file that holds it" })
    same_tensors(model, ck)
    assert.equal(result.modules, result.copied)
    local index = assert(nb.json.decode(files.read(ck.path .. "/model.safetensors.index.json")))
    assert.is_nil(index.weight_map["model.layers.9.ghost.weight"])
    nothing_to_mend(ck.path)
    assert.equal(files.read(dir .. "/config.json"), files.read(ck.path .. "/config.json"))
  end)

  it("that is missing, damaged or forgets a whole shard is written again", function()
    local dir = shards()
    os.remove(dir .. "/model.safetensors.index.json")
    same_tensors(model, (mended(dir, nil, "missing beside 3 numbered shards → written from the headers")))
    dir = shards()
    files.write(dir .. "/model.safetensors.index.json", "{ not JSON")
    same_tensors(model, (mended(dir, nil, "index.json: .* → written from the headers")))
    dir = shards()
    edit_index(dir, function(index, map)
      for name, file in pairs(map) do
        if file:find "00002" then map[name] = nil end
      end
      index.metadata = nil
    end)
    same_tensors(model, (mended(dir, nil, "00002%-of%-00003.safetensors: a shard by its number, .* → its tensors are listed")))
  end)

  it("loses weights that lie beside it", function()
    local dir = shards()
    files.write(dir .. "/model.safetensors", files.read "spec/interop/ct-w4a16-g128/model.safetensors")
    local ck = mended(dir, nil, "stray%-file  model.safetensors: weights beside model.safetensors.index.json, .* → left out")
    same_tensors(model, ck)
    files.write(dir .. "/adapter_model.safetensors", "x")
    ck = mended(dir, nil, "stray")
    assert.equal("x", files.read(ck.path .. "/adapter_model.safetensors"))
  end)

  it("says what is lost: a missing shard, a damaged one, a tensor that config.json means", function()
    local dir = shards()
    os.remove(dir .. "/model-00002-of-00003.safetensors")
    refused(dir, nil, "puts %d+ tensors into model%-00002%-of%-00003.safetensors, which doesn't exist; get that file too")
    dir = shards()
    local path = dir .. "/model-00003-of-00003.safetensors"
    files.write(path, files.read(path):sub(1, -100))
    refused(dir, nil, "model%-00003%-of%-00003.safetensors: .*get the file again")
    dir = broken("models/tiny-llama", { weights = function(list) editor.remove(list, "model.layers.0.mlp.up_proj.weight") end })
    files.write(dir .. "/model.safetensors.index.json", nb.json.encode { weight_map = { ["model.layers.0.mlp.up_proj.weight"] =
      "model.safetensors", ["model.norm.weight"] = "model.safetensors" } })
    local plan = assert(nb.repair.plan(dir))
    assert.matches("model.layers.0.mlp.up_proj.weight is in no file, and config.json means model.layers.0.mlp.up_proj: its weights are lost",
      tostring(plan))
    dir = broken("interop/ct-w4a16-g128", {})
    files.write(dir .. "/model.safetensors.index.json", '{"weight_map": {"a": "../model.safetensors"}}')
    refused(dir, nil, "index.json names none of the weight files that are here; remove it")
    dir = broken("interop/ct-w4a16-g128", { config = function(c) c.quantization_config.config_groups = {} end })
    refused(dir, nil, "not mended: model.layers.0.self_attn.q_proj: no target of .* and 0 config groups fit its tensors; 1 more")
    refused(fresh(), nil, "doesn't exist; repair takes a checkpoint's folder")
  end)
end)

describe("repair: configs", function()
  for _, case in ipairs {
    { "gptq-v1-sym-w4g128", "gptq: W4A16 g128 sym %(2 modules%)" }, { "autoawq-gemm-w4g128", "awq: W4A16 g128 asym" },
    { "autoround-auto_gptq-w4g128", "gptq: W4A16 g128 sym" }, { "ct-w4a16-g128", "compressed%-tensors: W4A16 g128 sym" },
    { "gptq_v2-asym-w4g32", "gptq_v2: W4A16 g32 asym", { checkpoint_format = "gptq_v2" } },
  } do
    it("a lost quantization_config of " .. case[1] .. " comes back from the tensors", function()
      local original = assert(nb.open("spec/interop/" .. case[1]))
      local dir = broken("interop/" .. case[1], { config = without_config })
      assert.is_nil((assert(nb.open(dir)):modules()))
      assert.is_true(offered(dir, "quantization_config"))
      local ck = mended(dir, { set = case[3] }, case[2])
      same_tensors(original, ck)
      for _, rec in ipairs(assert(original:modules())) do
        if rec.scheme then
          assert.is_true(assert(original:weight(rec.name, "f32")):equal(assert(ck:weight(rec.name, "f32"))), rec.name)
        end
      end
      assert.equal(original.config.hidden_size, ck.config.hidden_size)
      nothing_to_mend(ck.path)
    end)
  end

  it("float formats say by their tensors what they are, mixtures of schemes by name", function()
    local cases = { { "compressed-tensors", "NVFP4" }, { "compressed-tensors", "NVFP4A16" }, { "modelopt", "NVFP4" },
      { "modelopt", "NVFP4A16" }, { "fp8", "FP8_BLOCK" }, { "fp8", "FP8" }, { "compressed-tensors", "MXFP4", { scheme = "MXFP4" } },
      { "compressed-tensors", "FP8_DYNAMIC", { scheme = "FP8_DYNAMIC" } }, { "compressed-tensors", "W8A8", { scheme = "W8A8" } },
      { "gptq", "W8A16" }, { "gptq_v2", "W4A16 g64" }, { "compressed-tensors", "W3A16 g64 asym" }, { "compressed-tensors", "W4A16 g32 actorder" } }
    for _, case in ipairs(cases) do
      local q = support.quantized(nb.scheme.parse(case[2]), 256, 256, "bf16")
      local tensors = assert(support.store(case[1], "model.layers.0.mlp.up_proj", q, { dtype = "bf16" }))
      tensors["model.layers.0.mlp.gate.weight"] = nb.tensor("bf16", { 8, 256 }):fill(1)
      local dir = folder(tensors, { model_type = "unheard-of" })
      local ck = mended(dir, { set = case[3] }, nb.scheme.describe(q.scheme):gsub("[^%w]", "%%%0"))
      local rec = assert(nb.formats.record(ck, "model.layers.0.mlp.up_proj"))
      assert.is_true(nb.scheme.same(q.scheme, rec.scheme), nb.scheme.describe(rec.scheme))
      assert.equal(case[1], rec.format)
      assert.is_false(assert(nb.policy(ck)):scheme "model.layers.0.mlp.gate")
    end
  end)

  it("asks by name for what the tensors don't tell", function()
    refused(broken("interop/gptq_v2-asym-w4g32", { config = without_config }), nil,
      "the tensors don't tell whether zero%-points are stored less one %(%-%-set checkpoint_format=gptq%) or as they are")
    local q = support.quantized(nb.scheme.parse "FP8_DYNAMIC", 64, 64, "bf16")
    local dir = folder(assert(support.store("compressed-tensors", "m", q, { dtype = "bf16" })), {})
    refused(dir, nil, "how inputs are quantized %(%-%-set scheme=FP8_DYNAMIC or %-%-set scheme=FP8A16%)")
    refused(dir, { set = { scheme = "W4A16" } }, "the config that the tensors seem to mean .* does not fit them")
    refused(dir, { set = { scheme = "FP9" } }, 'unknown scheme "FP9"')
    dir = broken("interop/gptq-v1-sym-w4g128", { config = without_config })
    refused(dir, { set = { scheme = "W8A16" } }, "the scheme W8A16 that %-%-set names is not what model.layers.0.self_attn.q_proj holds: W4A16")
    local function reshaped(name, shape)
      return broken("interop/gptq-v1-sym-w4g128", { config = without_config, weights = function(list)
        for _, t in ipairs(list) do
          if t.name:find(name .. "$") then t.dtype, t.shape = shape(t) end
        end
      end })
    end
    local only = { only = "quantization_config" }
    refused(reshaped("qzeros", function(t) return "I32", { t.shape[2], t.shape[1] } end), only, "don't tell .*qzeros is %[32x2%] for ")
    refused(reshaped("g_idx", function(t) return "F32", t.shape end), only, "a sound shape: .*g_idx is f32 %[256%]")
  end)

  it("a side file that contradicts config.json says the same afterwards, or is left out", function()
    local dir = broken("interop/gptq-v1-sym-w4g128", {})
    files.write(dir .. "/quantize_config.json", '{"bits": 8, "group_size": 128}')
    local ck = mended(dir, nil, "quantize_config.json: bits = 8 → bits = 4, as config.json")
    assert.equal(4, assert(nb.json.decode(files.read(ck.path .. "/quantize_config.json"))).bits)
    dir = broken("interop/autoawq-gemm-w4g128", {})
    files.write(dir .. "/quant_config.json", '{"w_bit": 4, "q_group_size": 64}')
    ck = mended(dir, nil, "quant_config.json: group_size = 64 → left out")
    assert.is_nil(checkpoint.exists(ck.path .. "/quant_config.json"))
    files.write(dir .. "/quant_config.json", '{"w_bit": 4, "q_group_size": 128}')
    refused(dir, nil, "nothing to repair")
  end)

  it("a file without a format in its metadata gets one; the rest of it stays", function()
    local dir = broken("interop/ct-w4a16-g128", { weights = function() end })
    local ck = mended(dir, nil, 'no format in __metadata__ → format "pt"')
    assert.same({ format = "pt" }, ck.metadata)
    same_tensors(assert(nb.open "spec/interop/ct-w4a16-g128"), ck)
  end)
end)

describe("repair: lists", function()
  it("act-order that is none is taken out of the config", function()
    local original = assert(nb.open "spec/interop/gptq-v1-sym-w4g128")
    local dir = broken("interop/gptq-v1-sym-w4g128", { config = function(c) c.quantization_config.desc_act = true end })
    files.write(dir .. "/quantize_config.json", nb.json.encode(assert(nb.json.decode(files.read(dir .. "/config.json"))).quantization_config))
    local ck = mended(dir, nil, { "actorder  config.json: desc_act true → false; the columns of every module are in order",
      "side%-file  quantize_config.json: desc_act = true → desc_act = false, as config.json" })
    assert.is_false(ck.quantization.config.desc_act)
    same_tensors(original, ck)
    nothing_to_mend(ck.path)
    local q = support.quantized(nb.scheme.parse "W4A16 g32", 64, 128, "bf16")
    local tensors = assert(support.store("compressed-tensors", "m.up_proj", q, { dtype = "bf16" }))
    tensors["m.up_proj.weight_g_idx"] = nb.tensor("i32", { 128 })
    for c = 0, 127 do tensors["m.up_proj.weight_g_idx"]:ptr()[c] = math.floor(c / 32) end
    local config = assert(nb.formats.get "compressed-tensors").config { { name = "m.up_proj", kind = "linear", scheme =
      nb.scheme.parse "W4A16 g32 actorder" } }
    ck = mended(folder(tensors, { quantization_config = config }), nil, "actorder group → null; .*, and 1 weight_g_idx are left out")
    assert.is_nil(ck:info "m.up_proj.weight_g_idx")
    assert.is_true(assert(ck:quantized "m.up_proj"):equal(q))
    local acts = folder(assert(support.store("gptq", "m.up_proj", support.quantized(nb.scheme.parse "W4A16 g32 actorder", 64, 128, "f16"))),
      { quantization_config = { quant_method = "gptq", bits = 4, group_size = 32, sym = true, desc_act = true } })
    refused(acts, nil, "nothing to repair")
  end)

  it("float layers that the ignore list forgets are named in it, as each dialect does", function()
    local names = { "q_proj", "k_proj", "v_proj", "o_proj" }
    for _, case in ipairs { { "compressed-tensors", "W4A16 g32" }, { "gptq", "W4A16 g32" }, { "fp8", "FP8_BLOCK" }, { "modelopt", "NVFP4A16" } } do
      local tensors, records = {}, {}
      for l = 0, 2 do
        for _, leaf in ipairs(names) do
          local name = ("model.layers.%d.self_attn.%s"):format(l, leaf)
          local scheme = l ~= 1 and nb.scheme.parse(case[2])
          if scheme then
            local q = support.quantized(scheme, 128, 128, case[1] == "gptq" and "f16" or "bf16")
            for key, t in pairs(assert(support.store(case[1], name, q, { dtype = "bf16" }))) do tensors[key] = t end
            records[#records + 1] = { name = name, kind = "linear", scheme = scheme }
          else
            tensors[name .. ".weight"] = nb.tensor("bf16", { 128, 128 }):fill(0.25)
          end
        end
      end
      local config = assert(nb.formats.get(case[1])).config(records)
      local dir = folder(tensors, { model_type = "llama", architectures = nb.json.array { "LlamaForCausalLM" }, quantization_config = config })
      assert.is_true(offered(dir, "ignore"))
      local ck = mended(dir, { only = "ignore" }, "ignore  model.layers.1.self_attn.q_proj: stored float, quantized by the config's word → named in")
      local said = assert(nb.policy.parse(nil, ck.quantization.config, ck))
      assert.is_true(assert(said:same(nb.policy(ck))), case[1])
      assert.is_false(assert(nb.policy.parse(nil, config, ck)):same(nb.policy(ck)))
      same_tensors(assert(nb.open(dir)), ck)
    end
  end)
end)

describe("repair", function()
  it("knows every kind that the check offers", function()
    local known = {}
    for _, k in ipairs(nb.repair.kinds()) do known[k.kind] = true end
    local some = 0
    for _, name in ipairs(assert(checkpoint.list "lua/nibble/check")) do
      for kind in files.read("lua/nibble/check/" .. name):gmatch 'repair = [^\n]*kind = "([^"]+)"' do
        assert.is_true(known[kind], kind)
        some = some + 1
      end
    end
    assert.is_true(some > 5)
  end)

  it("does the kinds that are asked for, and says of others that they are unknown", function()
    local dir = broken("interop/gptq-v1-sym-w4g128", { config = without_config, weights = function() end })
    local plan = assert(nb.repair.plan(dir, { only = "metadata" }))
    assert.equal(1, #plan.changes)
    local none, msg, code = nb.repair.plan(dir, { only = "metadata,indx" })
    assert.is_nil(none)
    assert.equal("einval", code)
    assert.equal('unknown kind of repair "indx"; did you mean "index"?', msg)
    assert.matches('unknown option onyl; did you mean "only"', select(2, nb.repair.plan(dir, { onyl = "index" })))
    assert.matches('set: unknown key "bit"; did you mean "bits"', select(2, nb.repair.plan(dir, { set = { bit = 4 } })))
    assert.matches("set: bits = four; expected a whole number of at least 2", select(2, nb.repair.plan(dir, { set = { bits = "four" } })))
    assert.matches("unknown consumer vllm; known: ", select(2, nb.repair.plan(dir, { tp = 2, consumer = "vllm" })))
    assert.matches("tp = 1.5: expected a whole number", select(2, nb.repair.plan(dir, { tp = 1.5 })))
    assert.has_error(function() nb.repair.plan(nb.open(dir)) end, "repair: expected a checkpoint's folder, found table")
  end)

  it("copies side files, keeps a folder that holds other things, and never writes to the model's", function()
    local dir = shards()
    files.write(dir .. "/tokenizer.json", "{}")
    edit_index(dir, function(index) index.metadata.total_size = 1 end)
    local ck = mended(dir, nil, "index")
    assert.equal("{}", files.read(ck.path .. "/tokenizer.json"))
    local certificate = assert(nb.json.decode(files.read(ck.path .. "/nibble.json")))
    assert.equal("index", certificate.repairs[1].kind)
    local plan = assert(nb.repair.plan(dir))
    assert.matches("is the model's folder", select(2, plan:run(dir)))
    assert.matches("holds other files", select(2, plan:run "spec/support"))
    assert.equal("complete", assert(plan:run(ck.path)).state)
  end)

  it("goes on after an interruption and gives the same bytes", function()
    local dir = shards()
    edit_index(dir, function(index) index.metadata.total_size = 1 end)
    local whole, parts = fresh(), fresh()
    assert(assert(nb.repair.plan(dir)):run(whole))
    local count = 0
    assert.has_error(function()
      assert(nb.repair.plan(dir)):run(parts, { ahead_bytes = 0, progress = function()
        count = count + 1
        if count == 20 then error("interrupted", 0) end
      end })
    end, "interrupted")
    assert.is_nil(checkpoint.exists(parts .. "/model.safetensors"))
    local result = assert(assert(nb.repair.plan(dir)):run(parts))
    assert.is_true(result.resumed > 0)
    for _, name in ipairs(assert(checkpoint.list(whole))) do
      assert.equal(files.read(whole .. "/" .. name), files.read(parts .. "/" .. name), name)
    end
  end)

  it("is a command: a dry run, JSON, what it could not mend as status 1, one sentence for bad use", function()
    local dir = broken("interop/gptq_v2-asym-w4g32", { config = without_config })
    local r = command.run { "repair", dir, "--dry-run" }
    assert.equal(1, r.status)
    assert.matches("^not mended: quantization_config: the tensors don't tell", r.out)
    local out = fresh()
    r = command.run { "repair", dir, "--out", out, "--set", "checkpoint_format=gptq_v2", "--json" }
    assert.equal(0, r.status, r.err)
    local document = assert(nb.json.decode(r.out))
    assert.equal("quantization_config", document.changes[1].kind)
    assert.equal(out, document.dir)
    r = command.run { "repair", out, "--out", fresh() }
    assert.equal(0, r.status)
    assert.matches("nothing to repair\n$", r.out)
    r = command.run { "repair", dir }
    assert.equal(2, r.status)
    assert.same({ "nibble: repair needs --out DIR, the folder of the mended checkpoint, or --dry-run" }, r.lines)
    assert.matches("quantization_config +a quantization config that is lost", command.run({ "repair", "--kinds" }).out)
  end)
end)
