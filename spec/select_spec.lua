-- Which method and kernel each layer gets at a consumer, from a tiny checkpoint on disk: skip, fallback, override and
-- automatic skip decisions, fused layers, experts, the user's and the recipe's words (SYSTEMS AWQ-06 to AWQ-17, INC-05,
-- INC-18 to INC-20, CTM-SEL-01, C-05, C-19, C-21; the fixture of SYSTEMS 8).
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local select_m = require "nibble.select"

local dirs = {}

-- A folder with these tensors (name -> {dtype, n, …}) and this config.json.
local function write(tensors, config, side)
  local dir = os.tmpname()
  os.remove(dir)
  dirs[#dirs + 1] = dir
  assert(checkpoint.mkdir(dir))
  local names, list = {}, {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    local t = tensors[name]
    list[i] = { name = name, dtype = t[1], shape = { unpack(t, 2) } }
  end
  local w = assert(checkpoint.writer { dir = dir, tensors = list })
  for _, t in ipairs(list) do
    local zero = nb.tensor(t.dtype, t.shape)
    assert(w:put(t.name, zero))
    zero:free()
  end
  assert(w:finish())
  assert(checkpoint.write_file(dir .. "/config.json", nb.json.encode(config)))
  if side then assert(checkpoint.write_file(dir .. "/" .. side[1], nb.json.encode(side[2]))) end
  return dir
end

local function awq(out, name, n, k, group)
  out[name .. ".qweight"] = { "i32", k, n / 8 }
  out[name .. ".qzeros"] = { "i32", k / group, n / 8 }
  out[name .. ".scales"] = { "f16", k / group, n }
end

local function plain(out, name, n, k) out[name .. ".weight"] = { "f16", n, k } end

-- Two layers of Llama, 256 wide; the intermediate size 224 is no multiple of Marlin's 128. packed(name) -> bool
local function model(packed)
  local out = { ["model.norm.weight"] = { "f16", 256 } }
  plain(out, "model.embed_tokens", 512, 256)
  local function add(name, n, k) (packed(name) and awq or plain)(out, name, n, k, 32) end
  add("lm_head", 512, 256)
  for i = 0, 1 do
    local p = "model.layers." .. i
    for leaf, size in pairs { q_proj = { 256, 256 }, k_proj = { 64, 256 }, v_proj = { 64, 256 }, o_proj = { 256, 256 } } do
      add(p .. ".self_attn." .. leaf, size[1], size[2])
    end
    for leaf, size in pairs { gate_proj = { 224, 256 }, up_proj = { 224, 256 }, down_proj = { 256, 224 } } do
      add(p .. ".mlp." .. leaf, size[1], size[2])
    end
    out[p .. ".input_layernorm.weight"] = { "f16", 256 }
  end
  return out
end

local function config(quantization)
  return { model_type = "llama", architectures = { "LlamaForCausalLM" }, hidden_size = 256, num_attention_heads = 8,
    num_key_value_heads = 2, head_dim = 32, hidden_act = "silu", torch_dtype = "float16", quantization_config = quantization }
end

local function awq_config(more)
  local t = { quant_method = "awq", bits = 4, group_size = 32, zero_point = true }
  for k, v in pairs(more or {}) do t[k] = v end
  return t
end

local function skipped(name) return name:find("layers.0.self_attn", 1, true) == nil and name ~= "lm_head" end

local listed, automatic

setup(function()
  listed = write(model(skipped), config(awq_config { modules_to_not_convert = { "layers.0.self_attn" } }))
  automatic = write(model(skipped), config(awq_config()))
end)

teardown(function()
  for _, dir in ipairs(dirs) do os.execute(("rm -rf '%s'"):format(dir)) end
end)

local function selection(dir, target) return assert(select_m.new(assert(nb.open(dir)), target)) end

local function outcome(s, name)
  local d = assert(s:of(name))
  return { d.action, d.method, d.backend }
end

local old = { consumer = "document-era", device = "sm_80" }

describe("a tiny AWQ checkpoint", function()
  it("AWQ-14 and AWQ-15: is skipped, falls back and gets Marlin layer by layer, each with its reason", function()
    local s = selection(listed, old)
    assert.same({ "skip", "unquantized" }, outcome(s, "model.layers.0.self_attn.q_proj"))
    assert.same({ "method", "awq_marlin", "awq_marlin" }, outcome(s, "model.layers.1.self_attn.q_proj"))
    assert.same({ "fallback", "awq", "awq" }, outcome(s, "model.layers.1.mlp.down_proj"))
    local d = s:of "model.layers.1.mlp.down_proj"
    assert.matches("Marlin does not take it: K = 224 is not a multiple of 128", d.reason, 1, true)
    assert.equal("AWQ-15", d.requirement)
    assert.same({ "skip", "unquantized" }, outcome(s, "lm_head"))
    assert.matches("an LM head, and the config does not say that it is quantized", s:of "lm_head".reason, 1, true)
    assert.same({ "skip", "unquantized" }, outcome(s, "model.norm"))
    assert.equal("C-21", selection("spec/models/tiny-llama", old):of("lm_head").requirement)
  end)

  it("AWQ-12: decides fused layers as the consumer sees them, and every member says so", function()
    local s = selection(listed, old)
    for _, leaf in ipairs { "q_proj", "k_proj", "v_proj", "qkv_proj" } do
      local d = s:of("model.layers.1.self_attn." .. leaf)
      assert.equal("model.layers.1.self_attn.qkv_proj", d.name)
      assert.same({ 384, 256 }, { d.layer.n_full, d.layer.k_full })
    end
    assert.equal(448, s:of "model.layers.0.mlp.up_proj".layer.n_full)
    local part = selection(write(model(skipped), config(awq_config { modules_to_not_convert = { "layers.0.self_attn.q_proj" } })), old)
    local d = part:of "model.layers.0.self_attn.v_proj"
    assert.equal("refuse", d.action)
    assert.matches("model.layers.0.self_attn.qkv_proj: q_proj is skipped and k_proj is not, but a fused layer's shards", d.reason, 1, true)
    -- nothing is fused where the consumer fuses nothing
    assert.equal("model.layers.1.self_attn.k_proj", selection(listed, { consumer = "nibble", device = "cpu" })
      :of("model.layers.1.self_attn.k_proj").name)
  end)

  it("AWQ-15: warns once a layer, however often it is asked", function()
    local said = {}
    local target = { consumer = "document-era", device = "sm_80", warn = function(text) said[#said + 1] = text end }
    local s = selection(listed, target)
    s:all()
    s:all()
    s:of "model.layers.0.mlp.down_proj"
    assert.equal(2, #said)
    assert.same(said, s.warnings)
    assert.matches("model.layers.0.mlp.down_proj: Marlin does not take it (K = 224", said[1], 1, true)
  end)

  it("C-05: refuses instead of falling back where the policy or the consumer says so", function()
    local s = selection(listed, { consumer = "document-era", device = "sm_80", policy = "raise" })
    local d = s:of "model.layers.1.mlp.down_proj"
    assert.equal("refuse", d.action)
    assert.equal(0, #s.warnings)
    d = selection(listed, { consumer = "pymllm" }):of "model.layers.1.mlp.down_proj"
    assert.equal("refuse", d.action)
    assert.equal("fallback", selection(listed, { consumer = "pymllm", policy = "fallback" }):of("model.layers.1.mlp.down_proj").action)
  end)

  it("AWQ-08: finds the skip list in the headers where the file has none", function()
    local s = selection(automatic, old)
    local d = s:of "model.layers.0.self_attn.o_proj"
    assert.same({ "skip", "unquantized", "AWQ-08" }, { d.action, d.method, d.requirement })
    assert.matches("holds floats only, the checkpoint's headers say", d.reason, 1, true)
    assert.same({ "skip", "unquantized" }, outcome(s, "model.layers.0.self_attn.qkv_proj"))
    assert.same({ "method", "awq_marlin", "awq_marlin" }, outcome(s, "model.layers.1.self_attn.o_proj"))
  end)

  it("AWQ-10 and AWQ-11: says where config and tensors contradict each other", function()
    local d = selection(write(model(skipped), config(awq_config { modules_to_not_convert = { "mlp", "layers.0.self_attn" } })), old)
      :of "model.layers.1.mlp.down_proj"
    assert.equal("refuse", d.action)
    assert.matches('"mlp" of modules_to_not_convert means it, but model.layers.1.mlp.down_proj is stored packed (W4A16 g32 asym)', d.reason,
      1, true)
    d = selection(write(model(skipped), config(awq_config { modules_to_not_convert = { "nothing" } })), old)
      :of "model.layers.0.self_attn.o_proj"
    assert.equal("refuse", d.action)
    assert.matches("is stored as f16; add it to the config's skip list", d.reason, 1, true)
    local head = selection(write(model(function() return true end), config(awq_config { lm_head = true })), old):of "lm_head"
    assert.same({ "method", "awq_marlin" }, { head.action, head.method })
  end)

  it("AWQ-06: the user's choice keeps the plain method, or doesn't go with the checkpoint", function()
    local s = selection(listed, { consumer = "document-era", device = "sm_80", method = "awq" })
    assert.equal("awq", s.method)
    assert.matches("awq was asked for and is kept; awq_marlin would be faster", s.said, 1, true)
    assert.same({ "method", "awq", "awq" }, outcome(s, "model.layers.1.self_attn.o_proj"))
    assert.equal("awq_marlin", selection(listed, { consumer = "document-era", method = "marlin" }).method)
    local ok, msg, code = select_m.new(assert(nb.open(listed)), { method = "gptq" })
    assert.same({ nil, "einval" }, { ok, code })
    assert.equal("the checkpoint's quant_method is awq and the method gptq was asked for; take auto_awq, awq, awq_marlin, marlin, "
      .. "or leave the method out", msg)
    ok, msg = select_m.new(assert(nb.open "spec/models/tiny-llama"), { method = "awq" })
    assert.is_nil(ok)
    assert.matches("tiny-llama has no quantization config", msg, 1, true)
  end)

  it("AWQ-05: is not convertible on a device that Marlin doesn't take, and says why", function()
    local s = selection(listed, { consumer = "document-era", device = "xpu" })
    assert.equal("awq", s.method)
    assert.matches("not convertible to awq_marlin (xpu has no awq_marlin method): awq is used", s.said, 1, true)
    local ok, msg = select_m.new(assert(nb.open(listed)), { consumer = "document-era", device = "sm_70", method = "awq_marlin" })
    assert.is_nil(ok)
    assert.matches("awq_marlin was asked for, but the checkpoint can't be converted to awq_marlin", msg, 1, true)
    local d = selection(listed, { consumer = "document-era", device = "sm_70" }):of "model.layers.1.self_attn.o_proj"
    assert.equal("refuse", d.action)
    assert.matches("awq needs SM 75 or above, and the device is sm_70", d.reason, 1, true)
  end)

  it("AWQ-07: reads the skip list in the running model's names", function()
    local dir = write(model(skipped), config(awq_config { modules_to_not_convert = { "old.0.attention" } }))
    local mapper = { substr = { { "old.0.attention", "layers.0.self_attn" } } }
    assert.same({ "skip", "unquantized" }, outcome(selection(dir, { consumer = "document-era", mapper = mapper }),
      "model.layers.0.self_attn.o_proj"))
  end)

  it("C-19: compares skip entries as the target or the recipe says", function()
    local dir = write(model(skipped), config(awq_config { modules_to_not_convert = { "ayers.0.self_attn" } }))
    assert.equal("skip", selection(dir, old):of("model.layers.0.self_attn.o_proj").action)
    local s = selection(dir, { consumer = "document-era", skip_mode = "suffix" })
    assert.equal("refuse", s:of("model.layers.0.self_attn.o_proj").action)
    local recipe = assert(nb.recipe { name = "r", kernels = { skip_mode = "exact" } })
    assert.equal("refuse", selection(dir, { consumer = "document-era", recipe = recipe }):of("model.layers.0.self_attn.o_proj").action)
  end)

  it("C-21: says which config was used", function()
    assert.equal("config.json:quantization_config", selection(listed, old).source)
    local function with_side(name, quantization) return write(model(skipped), config(nil), { name, quantization }) end
    local side = awq_config { modules_to_not_convert = { "layers.0.self_attn" } }
    side.quant_method = nil
    for _, name in ipairs { "quantize_config.json", "quant_config.json", "quantization_config.json" } do
      local s = selection(with_side(name, side), old)
      assert.equal(name, s.source)
      assert.same({ "method", "awq_marlin", "awq_marlin" }, outcome(s, "model.layers.1.self_attn.o_proj"))
    end
  end)
end)

describe("a recipe's word", function()
  local function forced(stage, name, target)
    target = target or { consumer = "document-era", device = "sm_80" }
    target.recipe = assert(nb.recipe { name = "r", rules = { { "*.layers.1.*", kernels = { stage = stage } } } })
    return selection(listed, target):of(name)
  end

  it("AWQ-17: forces any stage for a pattern, and the decision says so", function()
    local d = forced("plain", "model.layers.1.self_attn.o_proj")
    assert.same({ "override", "awq", "awq", "AWQ-17" }, { d.action, d.method, d.backend, d.requirement })
    assert.matches('rule 1 "*.layers.1.*" forces plain', d.reason, 1, true)
    assert.same({ "fallback", "awq" }, { forced("plain", "model.layers.0.mlp.down_proj").action, "awq" })
    d = forced("skip", "model.layers.1.self_attn.o_proj")
    assert.same({ "skip", "unquantized" }, { d.action, d.method })
    d = forced("marlin", "model.layers.1.self_attn.o_proj", { consumer = "vllm-0.33", device = "sm_90" })
    assert.same({ "override", "auto_awq", "marlin" }, { d.action, d.method, d.backend }) -- machete is first there
    d = forced("generic", "model.layers.1.self_attn.o_proj")
    assert.equal("refuse", d.action)
    assert.matches("forces generic, but model.layers.1.self_attn.o_proj, a linear layer, has no such stage", d.reason, 1, true)
    d = selection(listed, { consumer = "document-era", force = { { "*.qkv_proj", "plain" } } }):of "model.layers.1.self_attn.k_proj"
    assert.equal("awq", d.method)
  end)

  it("AWQ-17: that is not the same for all shards of a layer is refused", function()
    local d = selection(listed, { consumer = "document-era", force = { { "*.q_proj", "plain" } } }):of "model.layers.1.self_attn.k_proj"
    assert.equal("refuse", d.action)
    assert.matches("the stage plain is forced for model.layers.1.self_attn.q_proj and nil for model.layers.1.self_attn.k_proj", d.reason, 1, true)
  end)

  local function wish(kernels, target)
    target.recipe = assert(nb.recipe { name = "r", kernels = kernels })
    return selection(listed, target):of "model.layers.1.self_attn.o_proj"
  end

  it("AWQ-17: prefers kernels in order, then falls back, and keeps why the others can't", function()
    local target = { consumer = "vllm-0.33", device = "sm_90" }
    local d = wish({ prefer = { "triton" } }, target)
    assert.same({ "override", "triton_w4a16", "AWQ-17" }, { d.action, d.backend, d.requirement })
    assert.matches("the recipe prefers triton", d.reason, 1, true)
    d = wish({ prefer = { "marlin" } }, target)
    assert.same({ "method", "marlin", "AWQ-15" }, { d.action, d.backend, d.requirement }) -- the consumer's own choice
    d = wish({ prefer = { "conch" }, fallback = { "awq" } }, target)
    assert.same({ "override", "awq", "awq" }, { d.action, d.method, d.backend })
    assert.same({ "conch", "takes the group sizes -1 or 128, found 32" }, { d.rejected[1].backend, d.rejected[1].reason })
    d = wish({ prefer = { "conch" }, fallback = { "wna16" } }, target)
    assert.same({ "marlin", "method" }, { d.backend, d.action })
    d = wish({ prefer = { "conch", "no-such" } }, target)
    assert.equal("marlin", d.backend)
    assert.matches("none of the recipe's kernels can (conch: ", d.reason, 1, true)
  end)

  it("AWQ-17: is checked when the recipe is read", function()
    local function why(kernels, rule)
      local r, msg = nb.recipe { name = "r", kernels = kernels, rules = rule and { { "*", kernels = rule } } or nil }
      assert.is_nil(r)
      return msg
    end
    assert.matches('kernels: stage = "marlni"; did you mean "marlin"?', why { stage = "marlni" }, 1, true)
    assert.matches('rule 1 ("*"): kernels: stage = "no"; known: skip plain generic marlin', why(nil, { stage = "no" }), 1, true)
    assert.matches('skip_mode = "sufix"; did you mean "suffix"?', why { skip_mode = "sufix" }, 1, true)
    assert.matches("prefer must be a list of names, found 1 = 7", why { prefer = { 7 } }, 1, true)
  end)
end)

describe("a mixture of experts", function()
  local function moe(names, quantization, store)
    local out = { ["model.norm.weight"] = { "f16", 256 } }
    for e = 0, 3 do
      for i, leaf in ipairs(names) do
        local n, k = i == 3 and 256 or 128, i == 3 and 128 or 256
        store(out, ("model.layers.0.%s.experts.%d.%s"):format(names.block, e, leaf), n, k, 64)
      end
    end
    plain(out, "model.layers.0." .. names.block .. ".gate", 4, 256)
    local c = config(quantization)
    c.model_type, c.architectures, c.num_experts_per_tok = names.type, nil, 2
    return write(out, c)
  end
  local qwen = { "gate_proj", "up_proj", "down_proj", block = "mlp", type = "qwen3_moe" }
  local mixtral = { "w1", "w3", "w2", block = "block_sparse_moe", type = "mixtral" }

  it("AWQ-16: is one layer; its router is none, and TP divides its intermediate size", function()
    local dir = moe(qwen, awq_config { group_size = 64 }, awq)
    local s = selection(dir, old)
    local d = s:of "model.layers.0.mlp.experts.3.up_proj"
    assert.same({ "model.layers.0.mlp.experts", "method", "awq_marlin", "awq_marlin" }, { d.name, d.action, d.method, d.backend })
    assert.same({ 4, 256, 128, 12 }, { d.layer.experts, d.layer.hidden, d.layer.intermediate_full, #d.layer.members })
    assert.same({ "skip", "unquantized" }, outcome(s, "model.layers.0.mlp.gate"))
    for _, device in ipairs { "cpu", "sm_90" } do -- as nibble's own methods run it
      d = selection(dir, { consumer = "nibble", device = device }):of "model.layers.0.mlp.experts.3.up_proj"
      assert.same({ "model.layers.0.mlp.experts", "method", "awq_marlin_moe" }, { d.name, d.action, d.backend })
    end
    d = selection(dir, { consumer = "document-era", tp = 4 }):of "model.layers.0.mlp.experts"
    assert.same({ "fallback", "moe_wna16" }, { d.action, d.method })
    assert.matches("the intermediate size 32 is not a multiple of 64", d.reason, 1, true)
    d = selection(dir, { consumer = "document-era", tp = 3 }):of "model.layers.0.mlp.experts"
    assert.matches("the intermediate size = 128 does not divide among 3 tensor-parallel ranks", d.reason, 1, true)
    d = selection(dir, { consumer = "document-era", force = { { "*experts*", "generic" } } }):of "model.layers.0.mlp.experts"
    assert.same({ "override", "moe_wna16", "moe_wna16" }, { d.action, d.method, d.backend })
    d = selection(dir, { consumer = "vllm-0.33", force = { { "*experts*", "generic" } } }):of "model.layers.0.mlp.experts"
    assert.same({ "override", "moe_wna16", "TRITON" }, { d.action, d.method, d.backend })
  end)

  it("CTM-SEL-01: of compressed-tensors asks its own projections, whatever their names", function()
    local function packed(out, name, n, k, group)
      out[name .. ".weight_packed"] = { "i32", n, k / 8 }
      out[name .. ".weight_scale"] = { "f16", n, k / group }
      out[name .. ".weight_shape"] = { "i64", 2 }
    end
    local ct = { quant_method = "compressed-tensors", format = "pack-quantized", ignore = { "re:.*gate$" },
      config_groups = { group_0 = { targets = { "Linear" }, weights = { num_bits = 4, group_size = 64 } } } }
    for _, names in ipairs { qwen, mixtral } do
      local s = selection(moe(names, ct, packed), { device = "sm_80" })
      local d = s:of("model.layers.0." .. names.block .. ".experts")
      assert.same({ "wna16", "MARLIN", "CTM-SEL-04" }, { d.method, d.backend, d.requirement })
      assert.equal(12, #d.layer.members)
    end
  end)
end)

describe("tensor parallelism", function()
  it("AWQ-15: divides N or K by the layer's kind and keeps small heads whole", function()
    local s = selection(listed, { consumer = "vllm-0.33", device = "sm_80", tp = 4 })
    local function size(name)
      local d = s:of(name)
      return { d.layer.n, d.layer.k, d.layer.parallel }
    end
    assert.same({ 64 + 32 + 32, 256, "column" }, size "model.layers.1.self_attn.qkv_proj")
    assert.same({ 256, 64, "row" }, size "model.layers.1.self_attn.o_proj")
    assert.same({ 112, 256, "column" }, size "model.layers.1.mlp.gate_up_proj")
    local d = s:of "model.layers.1.mlp.down_proj" -- K = 56 straddles groups of 32
    assert.same({ "fallback", "awq" }, { d.action, d.method })
    d = selection(listed, { consumer = "vllm-0.33", tp = 3 }):of "model.layers.1.self_attn.o_proj"
    assert.equal("refuse", d.action)
    assert.matches("model.layers.1.self_attn.o_proj: K = 256 does not divide among 3 tensor-parallel ranks", d.reason, 1, true)
  end)
end)

describe("other systems", function()
  it("INC-05 and INC-18 to INC-20: resolve through extra_config and go by the platform", function()
    local out = {}
    for _, leaf in ipairs { "q_proj", "k_proj", "v_proj", "o_proj" } do
      local name = "model.layers.0.self_attn." .. leaf
      out[name .. ".qweight"] = { "i32", 256 / 8, 256 }
      out[name .. ".qzeros"] = { "i32", 2, 32 }
      out[name .. ".scales"] = { "f16", 2, 256 }
    end
    plain(out, "model.layers.0.mlp.down_proj", 256, 256)
    local dir = write(out, config { quant_method = "auto-round", bits = 4, group_size = 128, sym = true,
      extra_config = { ["model.layers.0.mlp.down_proj"] = { bits = 16 } } })
    local s = selection(dir, { consumer = "inc-cuda", device = "sm_80" })
    assert.same({ "method", "gptq_marlin", "marlin" }, outcome(s, "model.layers.0.self_attn.o_proj"))
    assert.same({ "skip", "unquantized" }, outcome(s, "model.layers.0.mlp.down_proj"))
    assert.equal("inc", s.method)
    s = selection(dir, { consumer = "inc-xpu", device = "xpu", backend = "w4a8" })
    assert.same({ "method", "inc_xpu_w4a8", "w4a8" }, outcome(s, "model.layers.0.self_attn.o_proj"))
    s = selection(dir, { consumer = "inc-xpu", device = "xpu", packages = { auto_round_kernel = true } })
    assert.same({ "method", "inc_ark", "ark" }, outcome(s, "model.layers.0.self_attn.o_proj"))
    s = selection(dir, { consumer = "inc-xpu", device = "xpu", backend = "ark" })
    local d = s:of "model.layers.0.self_attn.o_proj"
    assert.matches("model.layers.0.self_attn.o_proj (backend ark, 4 bits, symmetric, group 128): ark: needs the package",
      d.reason, 1, true)
    local ok, msg = select_m.new(assert(nb.open(dir)), { consumer = "inc-xpu", device = "sm_80" })
    assert.is_nil(ok)
    assert.equal("inc-xpu is on xpu only, and the device is sm_80", msg)
  end)

  it("refuses what a consumer has no method for, with what it has", function()
    local s = selection(write(model(skipped), config { quant_method = "hqq", bits = 4 }), { consumer = "vllm-0.33" })
    local d = s:of "model.layers.0.self_attn.o_proj"
    assert.same({ "refuse", "MRL-54" }, { d.action, d.requirement })
    assert.matches("vllm-0.33 has no quantization method hqq; known: ", d.reason, 1, true)
    d = selection(listed, { consumer = "llama.cpp" }):of "model.layers.1.self_attn.o_proj"
    assert.equal("refuse", d.action)
    assert.matches("convert it to GGUF first", d.rejected[1].reason, 1, true)
  end)

  it("decides for a bare config and a module that is only described", function()
    local d = assert(select_m.decide(awq_config { group_size = 128 }, { name = "a.o_proj", n = 4096, k = 4096 }, old))
    assert.same({ "method", "awq_marlin", "awq_marlin" }, { d.action, d.method, d.backend })
    d = assert(select_m.decide(awq_config(), { name = "a.experts", kind = "moe", hidden = 4096, intermediate = 1408, experts = 8, top = 2 },
      { consumer = "document-era", tp = 2 }))
    assert.same({ "method", "awq_marlin" }, { d.action, d.method })
    d = assert(select_m.decide({ quant_method = "gptq", bits = 8, group_size = -1, desc_act = false, sym = true },
      { name = "a.o_proj", n = 4096, k = 4096 }, { device = "sm_90" }))
    assert.same({ "gptq_marlin", "machete" }, { d.method, d.backend })
    local ordered = { quant_method = "compressed-tensors", format = "pack-quantized", config_groups = { g = { targets = { "Linear" },
      weights = { num_bits = 4, group_size = 128, actorder = "group" } } } }
    d = assert(select_m.decide(ordered, { name = "a.o_proj", n = 4096, k = 4096 }, { consumer = "vllm-0.33" }))
    assert.equal("refuse", d.action)
    assert.matches("a.o_proj: groups in act-order (actorder = group) are no longer supported", d.reason, 1, true)
    d = assert(select_m.decide(ordered, { name = "a.experts", kind = "moe", hidden = 512, intermediate = 512, experts = 8, top = 2 }, old))
    assert.same({ "wna16", "Marlin" }, { d.method, d.backend })
    d = assert(select_m.decide({ quant_method = "compressed-tensors", format = "float-quantized", config_groups = { g = {
      targets = { "Linear" }, weights = { type = "float", strategy = "channel" },
      input_activations = { type = "float", strategy = "token", dynamic = true } } } }, { name = "a.o_proj", n = 4096, k = 4096 },
      { device = "sm_90" }))
    assert.same({ "fp8_w8a8", "cutlass" }, { d.method, d.backend })
  end)
end)

describe("mistakes in a target", function()
  it("are told with suggestions", function()
    local ck = assert(nb.open(listed))
    local function why(target)
      local s, msg, code = select_m.new(ck, target)
      assert.same({ nil, "einval" }, { s, code })
      return msg
    end
    assert.matches('unknown consumer vlm-0.33; did you mean "vllm-0.33"?', why { consumer = "vlm-0.33" }, 1, true)
    assert.matches('device "sn_80" is unknown: expected sm_75 to sm_120', why { device = "sn_80" }, 1, true)
    assert.matches('did you mean "sm_80"?', why { device = "sn_80" }, 1, true)
    assert.matches('unknown option devise; did you mean "device"?', why { devise = "sm_80" }, 1, true)
    assert.matches("tp = 1.5: expected a whole number of at least 1", why { tp = 1.5 }, 1, true)
    assert.matches('policy = "maybe": expected raise or fallback', why { policy = "maybe" }, 1, true)
    assert.matches('skip mode "exakt"; did you mean "exact"?', why { skip_mode = "exakt" }, 1, true)
    assert.matches('stage "marlni"; did you mean "marlin"?', why { force = { { "*", "marlni" } } }, 1, true)
    local ok, msg = selection(listed, old):of "q_porj"
    assert.is_nil(ok)
    assert.matches('has no module "q_porj"; did you mean "q_proj"?', msg, 1, true)
  end)
end)

describe("explain", function()
  it("AWQ-17: is queried by name, pattern or module, and shows kernels, refusals and the change that helps", function()
    local ck = assert(nb.open(listed))
    local shown = assert(nb.explain(ck, "model.layers.1.self_attn.k_proj", { device = "sm_80" }))
    local text = tostring(shown)
    assert.matches("at vllm-0.33 on sm_80: config from config.json:quantization_config, method auto_awq", text, 1, true)
    assert.matches("model.layers.1.self_attn.qkv_proj  [384×256]  W4A16 g32 asym, awq", text, 1, true)
    assert.matches("one layer of q_proj, k_proj, v_proj", text, 1, true)
    assert.matches("kernel marlin (MarlinLinearKernel), 3 of 7 by priority", text, 1, true)
    assert.matches("no machete       needs SM 90, found SM 80  [AWQ-21]", text, 1, true)
    assert.equal("marlin", shown[1].backend)
    local all = tostring(assert(nb.explain(ck, old)))
    assert.matches("model.layers.{0..1}.mlp.down_proj", all, 1, true)
    assert.matches("\n9 layers: 4 by their method, 0 forced, 2 fall back, 3 unquantized, 0 refused", all, 1, true)
    assert.matches("and 4 modules that are no linear layers", all, 1, true)
    assert.equal(2, #assert(nb.explain(ck, "*.o_proj", old)))
    local module = ck["model.layers.1.mlp.down_proj"]
    assert.matches("awq (fallback)", tostring(assert(nb.explain(module, old))), 1, true)
    assert.has_error(function() nb.explain(7) end, "explain expects a quantized weight, a module, a checkpoint or a plan, found number")
  end)

  it("tells a quantized weight's kernel", function()
    local q = nb.tensor("f32", { 128, 256 }):fill(1):quantize { scheme = "W4A16", group = 128 }
    local e = nb.explain(q, { device = "sm_80" })
    assert.equal("marlin", e.backend)
    assert.matches("vllm-0.33, WNA16 linear, sm_80: marlin, 3rd of 7", tostring(e), 1, true)
  end)

  it("is a command, with --json, --force, --strict and clear mistakes", function()
    local r = command.run { "explain", listed, "down_proj", "--consumer", "document-era", "--json" }
    assert.same({ 0, "" }, { r.status, r.err })
    local doc = assert(nb.json.decode(r.out))
    assert.same({ 2, "fallback", "awq", "AWQ-15" }, { #doc.layers, doc.layers[1].action, doc.layers[1].method, doc.layers[1].requirement })
    assert.equal("config.json:quantization_config", doc.config)
    assert.equal(2, #doc.warnings)
    r = command.run { "explain", listed, "layers.1.self_attn.o_proj", "--force", "plain", "--consumer", "document-era" }
    assert.equal(0, r.status)
    assert.matches("awq (forced)  the user forces plain  [AWQ-17]", r.out, 1, true)
    r = command.run { "explain", listed, "--consumer", "document-era", "--strict" }
    assert.equal(0, r.status)
    assert.matches("2 refused", r.out, 1, true)
    for _, case in ipairs {
      { { "explain", listed, "--consumer", "vlm" }, "unknown consumer vlm" },
      { { "explain", listed, "--device", "sm" }, "expected sm_75 to sm_120" },
      { { "explain", listed, "o_prjo" }, 'has no module "o_prjo"; did you mean "o_proj"?' },
      { { "explain", listed, "--method", "gptq" }, "the method gptq was asked for" },
      { { "explain", listed, "--recipe", "no-such" }, "was not found" },
      { { "explain", listed, "--tp", "0" }, "--tp expects a whole number" },
      { { "explain", listed, "--consmer", "x" }, 'did you mean "--consumer"?' },
    } do
      r = command.run(case[1])
      assert.same({ 2, "" }, { r.status, r.out })
      assert.matches(case[2], r.err, 1, true)
    end
    r = command.run { "explain", "--help" }
    assert.equal(0, r.status)
    assert.matches("--backend NAME", r.out, 1, true)
    local whole = command.run { "--help" }
    assert.matches("explain%s+which method and kernel a consumer gives each layer", whole.out)
  end)
end)

describe("a plan at a consumer", function()
  it("AWQ-17: tells each written layer's kernel and why, before anything is written", function()
    local recipe = assert(nb.recipe { name = "t", scheme = "W4A16", group = 64, skip = { "*.layers.0.*" }, lm_head = false })
    local plan = assert(nb.plan(recipe, assert(nb.open "spec/models/tiny-llama")))
    assert(plan:select { device = "sm_80", tp = 2 })
    local text = tostring(plan)
    assert.matches("why at vllm-0.33 on sm_80", text, 1, true)
    assert.matches('as qkv_proj: config group group_0 targets "Linear": int4 group 64 symmetric', text, 1, true)
    local doc = plan:totable()
    assert.same({ "vllm-0.33", "sm_80", 2 }, { doc.consumer, doc.device, doc.tp })
    for _, m in ipairs(doc.modules) do
      if m.name == "model.layers.1.self_attn.k_proj" then
        assert.same({ "model.layers.1.self_attn.qkv_proj", "marlin", "wna16" }, { m.layer, m.backend, m.consumer_method })
      elseif m.name == "model.layers.0.self_attn.k_proj" then
        assert.same({ "skip" }, { m.consumer_action, m.backend })
      end
    end
  end)

  it("AWQ-08: of an AWQ output knows its skip list too, and refuses what the consumer would", function()
    local recipe = assert(nb.recipe { name = "t", scheme = "W4A16_ASYM", group = 128, output = { format = "awq" }, skip = { "*.layers.0.*" } })
    local plan = assert(nb.plan(recipe, assert(nb.open "spec/models/tiny-llama")))
    local s = assert(plan:select { consumer = "document-era", device = "sm_80" })
    assert.equal("skip", s:of("model.layers.0.mlp.down_proj").action)
    assert.equal("awq_marlin", s:of("model.layers.1.mlp.down_proj").backend)
    assert.equal("the plan's output", s.source)
  end)

  it("is a command: plan --consumer --device --tp", function()
    local r = command.run { "plan", "recipes/llama-w4a16.lua", "spec/models/tiny-llama", "--consumer", "vllm-0.33",
      "--device", "sm_90", "--tp", "2", "--json" }
    assert.equal(0, r.status)
    local doc = assert(nb.json.decode(r.out))
    local backends = {}
    for _, m in ipairs(doc.modules) do if m.backend then backends[m.backend] = true end end
    assert.same({ marlin = true }, backends) -- the recipe prefers it
    r = command.run { "plan", "recipes/llama-w4a16.lua", "spec/models/tiny-llama", "--consumer", "vllm-9" }
    assert.same({ 2, "" }, { r.status, r.out })
    assert.matches("unknown consumer vllm-9", r.err, 1, true)
  end)
end)
