-- Models: which architectures are known, what they need of a config, and logits
-- against the reference implementation's (spec/models/parity).
local nb = require "nibble"
local C = require("nibble.ffi").C

local function parity(name) return "spec/models/parity/" .. name end

local function ids_of(file, name)
  local wide = assert(file:tensor(name))
  return nb.tensor("i32", wide:size(), wide:totable())
end

local function worst(a, b)
  local p, q, most = a:ptr(), b:ptr(), 0
  for i = 0, a:numel() - 1 do most = math.max(most, math.abs(p[i] - q[i])) end
  return most
end

-- A checkpoint with another config, and tensors that are missing or others.
local function changed(name, change, tensors)
  local ck = assert(nb.open(parity(name)))
  local config = {}
  for k, v in pairs(ck.config) do config[k] = v end
  for k, v in pairs(change) do config[k] = v end
  tensors = tensors or {}
  return {
    path = ck.path, config = config, bytes = ck.bytes,
    info = function(_, t)
      if tensors[t] == nil then return ck:info(t) end
      return tensors[t] and { dtype = tensors[t]:type(), shape = tensors[t]:size() } or nil
    end,
    tensor = function(_, t)
      if tensors[t] then return tensors[t]:reshape(tensors[t]:size()) end
      return ck:tensor(tensors[t] == false and "no" or t)
    end,
    module = function() return nil end,
    weight = function(_, t) return nil, "there is no module " .. t, "eformat" end,
  }
end

describe("models", function()
  -- The last two have configs as transformers 5 writes them: rope_parameters, num_local_experts, layer_types.
  for _, name in ipairs { "llama", "llama-rope3", "mistral", "qwen2", "qwen3", "qwen3-moe", "qwen3-moe-sharded", "mixtral",
    "mistral-types", "qwen3-moe-recent" } do
    it("gives the reference's logits: " .. name, function()
      local reference = assert(nb.open(parity(name) .. "/reference.safetensors"))
      local model = assert(nb.models.load(assert(nb.open(parity(name)))))
      for ids, logits in pairs { input_ids = "logits", batch_input_ids = "batch_logits" } do
        local found = assert(model:logits(ids_of(reference, ids)))
        assert.is_true(worst(found, assert(reference:tensor(logits))) < 1e-4)
      end
    end)
  end

  it("gives the same logits from dequantized weights, cached or streamed", function()
    local ck = assert(nb.open(parity "mixtral"))
    local want = assert(assert(nb.models.load(ck)):logits(nb.tensor("i32", { 5 }, { 1, 2, 3, 4, 5 })))
    for _, cache_bytes in ipairs { 0, 20000, 2 ^ 30 } do
      local packed = setmetatable({
        path = ck.path, config = ck.config, bytes = ck.bytes,
        -- As a quantized checkpoint looks: projections have no .weight.
        info = function(_, t) return not t:find "w%d%.weight$" and not t:find "_proj%.weight$" and ck:info(t) or nil end,
        tensor = function(_, t) return ck:tensor(t) end,
        weight = function(_, m) return nb.compute.widen(assert(ck:tensor(m .. ".weight"))) end,
      }, nil)
      local model = assert(nb.models.load(packed, { cache_bytes = cache_bytes }))
      for _ = 1, 2 do
        assert.is_true(worst(want, assert(model:logits(nb.tensor("i32", { 5 }, { 1, 2, 3, 4, 5 })))) < 1e-6)
      end
    end
  end)

  it("tells the fused groups and the routers", function()
    local arch = assert(nb.models.of { model_type = "mixtral" })
    assert.same({ "w1", "w3", as = "w13" }, arch.fused[2])
    assert.same({ "block_sparse_moe.gate" }, arch.router)
    assert.same({ "mlp.gate" }, assert(nb.models.of { model_type = "qwen3_moe" }).router)
    assert.equal("llama", assert(nb.models.of { architectures = { "LlamaForCausalLM" } }).name)
  end)

  it("names an architecture that it doesn't know, and those it does", function()
    local arch, msg, code = nb.models.of { architectures = { "GPT2LMHeadModel" }, model_type = "gpt2" }
    assert.is_nil(arch)
    assert.equal("architecture GPT2LMHeadModel (model_type gpt2) is not known; "
      .. "known: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe", msg)
    assert.equal("eunsupported", code)
    assert.matches("no config.json", select(2, nb.models.of(nil)))
  end)

  -- { what, base, config changes, sentence }
  for _, case in ipairs {
    { "an activation it lacks", "llama", { hidden_act = "gelu" }, "hidden_act gelu is not supported; expected silu" },
    { "a rope type it lacks", "llama", { rope_scaling = { type = "longrope", factor = 2 } },
      "rope type longrope is not supported; known: default, dynamic, linear, llama3, yarn" },
    { "rope settings without their factor", "llama", { rope_scaling = { rope_type = "llama3" } },
      "rope_scaling.factor must be a number above 0, found nil" },
    { "heads that don't divide", "llama", { num_key_value_heads = 3 }, "num_key_value_heads 3 does not divide num_attention_heads 4" },
    { "an odd head", "llama", { head_dim = 15 }, "head_dim 15 is odd" },
    { "a size that is no number", "llama", { hidden_size = "64" }, "hidden_size must be a whole number above 0, found 64" },
    { "negative layers", "qwen2", { num_hidden_layers = -1 }, "num_hidden_layers must be a whole number above 0, found %-1" },
    { "more experts chosen than there are", "mixtral", { num_experts_per_tok = 9 }, "the top 9 of 4 experts" },
    { "experts beyond counting", "qwen3-moe", { num_experts = 2 ^ 30 }, "at most 4096" },
    { "layer_types of another length", "qwen3", { layer_types = { "full_attention" } }, "layer_types must list all 2 layers" },
    { "layer_types of another length", "mistral", { layer_types = { "full_attention" } }, "layer_types must list all 2 layers" },
    { "part of the head turned, by rope_parameters", "llama", { rope_parameters = { partial_rotary_factor = 0.5 } },
      "rope_parameters.partial_rotary_factor 0.5 is not supported" },
    { "a trained length that is no number", "llama", { original_max_position_embeddings = "32" },
      "original_max_position_embeddings must be a number above 0, found 32" },
    { "part of the head turned", "llama", { partial_rotary_factor = 0.5 }, "partial_rotary_factor 0.5 is not supported" },
  } do
    it("refuses " .. case[1], function()
      local model, msg = nb.models.load(changed(case[2], case[3]))
      assert.is_nil(model)
      assert.matches(case[4], msg)
    end)
  end

  local function failure(ck)
    local model = assert(nb.models.load(ck))
    local found, msg, code = model:logits(nb.tensor("i32", { 3 }, { 1, 2, 3 }))
    assert.is_nil(found)
    return msg, code
  end

  it("says which tensor contradicts the config, before it takes memory for it", function()
    assert.matches("model.embed_tokens.weight is %[256×64%], expected %[256×128%] by config.json",
      failure(changed("llama", { hidden_size = 128 })))
    assert.matches("model.layers.0.self_attn.q_proj.weight is %[64×64%], expected %[1073741824×64%]",
      failure(changed("llama", { head_dim = 2 ^ 28 })))
    assert.matches("gate_proj.weight is %[128×64%], expected %[96×64%]", failure(changed("llama", { intermediate_size = 96 })))
    assert.matches("q_proj.bias, which its config.json asks for", failure(changed("llama", { attention_bias = true })))
    assert.matches("no tensor model.layers.2.input_layernorm.weight", failure(changed("llama", { num_hidden_layers = 3 })))
    assert.matches("no module lm_head", failure(changed("llama", {}, { ["lm_head.weight"] = false })))
  end)

  it("names the layer whose values are not finite", function()
    local bad = nb.tensor("f32", { 64 }, { 0 / 0 })
    local msg, code = failure(changed("llama", {}, { ["model.layers.1.post_attention_layernorm.weight"] = bad }))
    assert.matches("^model.layers.1: 192 of its 192 output values are infinite or NaN", msg)
    assert.equal("eformat", code)
  end)

  it("reads tensors that a file doesn't align", function()
    local ck, name = assert(nb.open(parity "llama")), "model.layers.0.mlp.down_proj.weight"
    local t = assert(ck:tensor(name))
    local shifted = nb.tensor("u8", { t:bytes() + 1 }):rows(2, t:bytes() + 1)
    local from, to = t:as("u8"):ptr(), shifted:ptr()
    for i = 0, t:bytes() - 1 do to[i] = from[i] end
    local ids = nb.tensor("i32", { 4 }, { 9, 8, 7, 6 })
    local odd = assert(nb.models.load(changed("llama", {}, { [name] = shifted:as("f32", t:size()) })))
    assert.is_true(assert(odd:logits(ids)):equal(assert(assert(nb.models.load(ck)):logits(ids))))
  end)

  it("gives a want of memory as a failure, wherever it strikes", function()
    local model = assert(nb.models.load(assert(nb.open(parity "mixtral"))))
    local ids, failures = nb.tensor("i32", { 3 }, { 1, 2, 3 }), 0
    for nth = 1, 12 do
      C.nb_debug_fail_alloc(nth)
      local found, msg, code = model:hidden(ids, 3)
      C.nb_debug_fail_alloc(0)
      if not found then
        failures = failures + 1
        assert.matches("^out of memory", msg)
        assert.equal("enomem", code)
      end
    end
    assert.is_true(failures >= 10)
    assert.is_truthy(model:hidden(ids, 3))
  end)

  it("uses the embedding as output layer when the config ties them", function()
    local plain = assert(nb.models.load(changed("llama", { tie_word_embeddings = true })))
    local ck = assert(nb.open(parity "llama"))
    assert.is_true(assert(plain:head()):equal(assert(ck:tensor "model.embed_tokens.weight")))
  end)
end)

describe("models.windows", function()
  local windows = require "nibble.models.windows"

  local function of(values, layers)
    local c = { layers = layers, get = function(k) return values[k] end }
    windows.check(c, function(get, k) return get(k) end, function(msg) error(msg, 0) end)
    local found = {}
    for i = 0, layers - 1 do found[i + 1] = windows.of(c, i) or 0 end
    return found
  end

  it("follows use_sliding_window, max_window_layers and layer_types", function()
    assert.same({ 0, 0, 0 }, of({ sliding_window = 8, max_window_layers = 1, use_sliding_window = false }, 3))
    assert.same({ 0, 8, 8 }, of({ sliding_window = 8, max_window_layers = 1, use_sliding_window = true }, 3))
    assert.same({ 8, 0, 8 }, of({ sliding_window = 8, max_window_layers = 9, use_sliding_window = true,
      layer_types = { "sliding_attention", "full_attention", "sliding_attention" } }, 3))
  end)
end)

describe("models.rope", function()
  local rope = require "nibble.models.rope"

  local function cosines(values, length, d)
    local r = assert(rope.rule(function(k) return values[k] end, 10000))
    local c = rope.tables(r, d, length):totable()
    return function(position, pair) return c[position * d / 2 + pair + 1] end
  end

  local function near(want, found) assert.is_true(math.abs(want - found) < 2e-6, ("%.9f, not %.9f"):format(found, want)) end

  it("turns pair i by position / theta^(2i/d)", function()
    local c = cosines({ rope_theta = 500 }, 40, 8)
    for i = 0, 3 do near(math.cos(39 / 500 ^ (2 * i / 8)), c(39, i)) end
  end)

  it("reads rope_parameters as well as rope_scaling", function()
    local c = cosines({ rope_parameters = { rope_theta = 500, rope_type = "linear", factor = 4 } }, 40, 8)
    for i = 0, 3 do near(math.cos(39 / 4 / 500 ^ (2 * i / 8)), c(39, i)) end
  end)

  it("keeps short waves, divides long ones, and goes from one to the other between (llama3)", function()
    local c = cosines({ rope_theta = 10000, rope_scaling = { rope_type = "llama3", factor = 8, low_freq_factor = 1,
      high_freq_factor = 4, original_max_position_embeddings = 64 } }, 2, 16)
    -- waves of 6.3, 19.9, 62.8 and 198.7 positions; below 64/4 kept, above 64 divided
    for i, frequency in ipairs { 1.00000000, 0.24438460, 0.01304226, 0.00395285 } do near(math.cos(frequency), c(1, i - 1)) end
  end)

  it("takes rope_scaling when both are there and it says something, else rope_parameters", function()
    local values = { rope_theta = 500, rope_parameters = { rope_theta = 900, rope_type = "default" },
      rope_scaling = { rope_type = "linear", factor = 4 } }
    near(math.cos(39 / 4 / 500 ^ (2 / 8)), cosines(values, 40, 8)(39, 1))
    values.rope_scaling = {}
    near(math.cos(39 / 900 ^ (2 / 8)), cosines(values, 40, 8)(39, 1))
  end)

  it("takes yarn's 0 for absence, and the trained length beside the settings before the one among them", function()
    local function yarn(more, outer)
      local scaling = { rope_type = "yarn", factor = 8, original_max_position_embeddings = outer and 99 or 32 }
      for k, v in pairs(more) do scaling[k] = v end
      return cosines({ rope_theta = 10000, max_position_embeddings = 256, rope_scaling = scaling,
        original_max_position_embeddings = outer }, 8, 8)
    end
    local plain = yarn {}
    for _, other in ipairs { yarn { mscale = 1, mscale_all_dim = 0 }, yarn { beta_fast = 0, beta_slow = 0 }, yarn({}, 32) } do
      for pair = 0, 3 do assert.equal(plain(7, pair), other(7, pair)) end
    end
    assert.not_equal(plain(7, 1), yarn({}, 128)(7, 1))
  end)

  it("raises theta for dynamic scaling only beyond the trained length", function()
    local values = { rope_theta = 500, max_position_embeddings = 32, rope_scaling = { type = "dynamic", factor = 2 } }
    near(math.cos(31 / 500 ^ (2 / 8)), cosines(values, 32, 8)(31, 1))
    local theta = 500 * (2 * 64 / 32 - 1) ^ (8 / 6)
    near(math.cos(31 / theta ^ (2 / 8)), cosines(values, 64, 8)(31, 1))
  end)

  it("keeps short waves and divides long ones for llama3 and yarn", function()
    local llama3 = cosines({ rope_theta = 500000, max_position_embeddings = 256, rope_scaling = { rope_type = "llama3",
      factor = 8, low_freq_factor = 1, high_freq_factor = 4, original_max_position_embeddings = 32 } }, 8, 8)
    near(math.cos(7), llama3(7, 0))
    near(math.cos(7 / 8 / 500000 ^ (6 / 8)), llama3(7, 3))
    local yarn = cosines({ rope_theta = 500000, max_position_embeddings = 256, rope_scaling = { rope_type = "yarn",
      factor = 8, original_max_position_embeddings = 32 } }, 8, 8)
    local scale = 0.1 * math.log(8) + 1
    near(math.cos(7) * scale, yarn(7, 0))
    near(math.cos(7 / 8 / 500000 ^ (6 / 8)) * scale, yarn(7, 3))
    -- The ramp: with these numbers from pair 0 to pair 5, so pair 2 is 2/5 divided by 4.
    local ramp = cosines({ rope_theta = 10000, max_position_embeddings = 256, rope_scaling = { rope_type = "yarn",
      factor = 4, attention_factor = 1, original_max_position_embeddings = 64 } }, 8, 32)
    near(math.cos(7 * 10000 ^ (-4 / 32) * (2 / 5 / 4 + 3 / 5)), ramp(7, 2))
  end)
end)
