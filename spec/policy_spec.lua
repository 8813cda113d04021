-- Policies: what a checkpoint, a plan or a recipe says of its modules, compiled into every dialect of targets and ignore
-- lists (FORMATS 2-8), proven by the dialect's own rule, refused where two modules can't be told apart, and read back; and
-- the recipe that makes it again.
local nb = require "nibble"
local patterns = require "nibble.patterns"
local files = require "spec.support.files"

-- Entries of a decoder: {name = scheme or false}, as a checkpoint's policy has them.
local function policy_of(layers, scheme_of)
  local names = {}
  for l = 0, layers - 1 do
    for _, leaf in ipairs { "q_proj", "k_proj", "v_proj", "o_proj" } do names[#names + 1] = ("model.layers.%d.self_attn.%s"):format(l, leaf) end
    names[#names + 1] = ("model.layers.%d.mlp.gate"):format(l)
    for e = 0, 3 do
      for _, leaf in ipairs { "gate_proj", "up_proj", "down_proj" } do
        names[#names + 1] = ("model.layers.%d.mlp.experts.%d.%s"):format(l, e, leaf)
      end
    end
  end
  names[#names + 1] = "lm_head"
  local p = assert(nb.policy.parse("fp8", { quant_method = "fp8", modules_to_not_convert = nb.json.array(names) }, names))
  for _, entry in ipairs(p.entries) do
    local words = scheme_of(entry.name, tonumber(entry.name:match "layers%.(%d+)"))
    entry.n, entry.k, entry.scheme = 256, 256, words and nb.scheme.parse(words) or nil
  end
  p.format = nil
  return p
end

local function floats(name) return name == "lm_head" or name:find "mlp.gate$" ~= nil end

local function list(t) return { unpack(t) } end

-- The data means the policy again, whichever way it is laid over the modules.
local function comes_back(p, dialect, alike)
  local data = assert(p:compile(dialect))
  local text = nb.json.encode(data)
  local back = assert(nb.policy.parse(nil, assert(nb.json.decode(text)))):over(p)
  if alike then
    for _, entry in ipairs(p.entries) do assert.equal(entry.scheme ~= nil, back:scheme(entry.name) ~= false, entry.name) end
  else
    assert.is_true(assert(back:same(p)))
  end
  return data
end

describe("policy", function()
  it("is compiled into each dialect as few patterns, which mean the same when they are read", function()
    local p = policy_of(12, function(name) return not floats(name) and "W4A16" end)
    local ct = comes_back(p, "compressed-tensors")
    assert.same({ "Linear" }, list(ct.config_groups.group_0.targets))
    assert.same({ [[re:^model\.layers\.\d+\.mlp\.gate$]], "lm_head" }, list(ct.ignore))
    assert.same({ "mlp.gate" }, list(comes_back(p, "awq", true).modules_to_not_convert))
    assert.same({ [ [[-:^model\.layers\.\d+\.mlp\.gate$]] ] = {} }, comes_back(p, "gptq").dynamic)
    local inc = comes_back(p, "auto-round")
    assert.equal("model.layers", inc.block_name_to_quantize)
    assert.same({ [ [[^model\.layers\.\d+\.mlp\.gate$]] ] = { bits = 16 } }, inc.extra_config)
  end)

  it("says float schemes in FP8's exact names and ModelOpt's wildcards", function()
    local function scheme(words) return function(name) return not floats(name) and words end end
    local block = comes_back(policy_of(2, scheme "FP8_BLOCK"), "fp8")
    assert.same({ 128, 128 }, list(block.weight_block_size))
    assert.same({ "model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "lm_head" }, list(block.modules_to_not_convert))
    for _, words in ipairs { "NVFP4", "NVFP4A16", "FP8_BLOCK", "FP8", "FP8_DYNAMIC", "MXFP8" } do
      local data = comes_back(policy_of(12, scheme(words)), "modelopt")
      assert.same({ "model.layers.*.mlp.gate", "lm_head" }, list(data.ignore))
    end
    local mixed = comes_back(policy_of(2, function(name)
      return not floats(name) and (name:find "self_attn" and "FP8" or "NVFP4")
    end), "modelopt")
    assert.equal("MIXED_PRECISION", mixed.quant_algo)
    assert.equal("FP8", mixed.quantized_layers["model.layers.1.self_attn.o_proj"].quant_algo)
  end)

  it("mixes schemes: config groups, dynamic and extra_config name the layers that differ, ranges of them as one", function()
    local p = policy_of(32, function(name, l)
      if floats(name) then return false end
      return (l < 3 or l > 29) and "W8A16 g64" or "W4A16"
    end)
    local ct = comes_back(p, "ct")
    assert.same({ [[re:^model\.layers\.(?:[3-9]|1\d|2\d)\.self_attn\.(?:q_proj|k_proj|v_proj|o_proj)$]],
      [[re:^model\.layers\.(?:[3-9]|1\d|2\d)\.mlp\.experts\.\d+\.(?:gate_proj|up_proj|down_proj)$]] },
      list(ct.config_groups.group_0.targets))
    local dynamic = comes_back(p, "gptq").dynamic
    assert.same({ bits = 8, group_size = 64, sym = true },
      dynamic[ [[+:^model\.layers\.(?:[0-2]|3[01])\.self_attn\.(?:q_proj|k_proj|v_proj|o_proj|qkv_proj)$]] ])
    local extra = comes_back(p, "auto-round").extra_config
    assert.equal(8, extra[ [[^model\.layers\.(?:[0-2]|3[01])\.self_attn\.(?:q_proj|k_proj|v_proj|o_proj)$]] ].bits)
    local none, msg, code = p:compile "awq"
    assert.is_nil(none)
    assert.equal("einexact", code)
    assert.matches("^awq cannot say this policy: model.layers.0.self_attn.q_proj, W8A16 g64 sym: AWQ holds 4 bits, not 8$", msg)
  end)

  it("takes whole layers and whole parts as one pattern", function()
    local p = policy_of(32, function(name, l) return name ~= "lm_head" and l ~= 0 and l ~= 31 and not floats(name) and "W4A16" end)
    local ignore = list(comes_back(p, "ct").ignore)
    table.sort(ignore)
    assert.same({ "lm_head", [[re:^model\.layers\.(?:0|31)\..*$]], [[re:^model\.layers\.\d+\.mlp\.gate$]] }, ignore)
    assert.same({ "mlp.gate", "model.layers.0.", "model.layers.31." },
      (function(t) table.sort(t) return t end)(list(comes_back(p, "awq", true).modules_to_not_convert)))
  end)

  it("refuses what a dialect can't tell apart, and names it", function()
    local function refused(p, dialect, pattern)
      local none, msg, code = p:compile(dialect)
      assert.is_nil(none)
      assert.equal("einexact", code)
      assert.matches(pattern, msg)
    end
    local dense = { "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate" }
    local p = assert(nb.policy.parse("gptq", { quant_method = "gptq", bits = 4, group_size = 128, sym = true, desc_act = false,
      dynamic = { ["-:^.*mlp\\.gate$"] = {} } }, dense))
    for _, e in ipairs(p.entries) do e.n, e.k = 128, 128 end
    refused(p, "awq", "model.layers.0.mlp.gate stays as it is and model.layers.0.mlp.gate_proj is quantized")
    comes_back(p, "compressed-tensors")
    p = policy_of(2, function(name) return not floats(name) and (name:find "down" and "W4A16 g64" or "W4A16") end)
    refused(p, "awq", "AWQ has one group size for all modules, but .* is W4A16 g128 sym and .* is W4A16 g64 sym")
    p = policy_of(2, function(name) return not floats(name) and (name:find "down" and "FP8" or "FP8 act:fp8:token") end)
    refused(p, "fp8", "fp8 has one scheme for a checkpoint")
    refused(policy_of(2, function(name) return not floats(name) and "W4A16" end), "modelopt", "modelopt has no quant_algo for W4A16")
    refused(policy_of(2, function() return false end), "gptq", "no module is quantized")
    refused(policy_of(2, function(name) return not floats(name) and "NVFP4" end), "auto-round", "AutoRound holds integer codes")
  end)

  it("keeps ModelOpt's entries, which are parts of names too, off other names", function()
    local names = { "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate" }
    local p = assert(nb.policy.parse("fp8", { quant_method = "fp8", modules_to_not_convert = { names[3] } }, names))
    for _, e in ipairs(p.entries) do e.n, e.k, e.scheme = 128, 128, e.scheme and nb.scheme.parse "NVFP4" end
    assert.same({ "*model.layers.0.mlp.gate" }, list(comes_back(p, "modelopt").ignore))
  end)

  it("proves what it compiled: data that would mean another policy is refused", function()
    local dialect = assert(require("nibble.policy.dialects").get "awq")
    local write = dialect.write
    finally(function() dialect.write = write end)
    local p = policy_of(2, function(name) return not floats(name) and "W4A16" end)
    local function refused(change, pattern)
      dialect.write = function(...)
        local data = assert(write(...))
        change(data)
        return data
      end
      local none, msg, code = p:compile "awq"
      assert.is_nil(none)
      assert.equal("einexact", code)
      assert.matches(pattern, msg)
    end
    refused(function(data) data.modules_to_not_convert = nb.json.null end, "model.layers.0.mlp.gate would be W4A16 g128 asym there, not float")
    refused(function(data) data.modules_to_not_convert = { "gate" } end, "gate_proj would be float there, not W4A16 g128 sym")
    refused(function(data) data.group_size = 64 end, "q_proj would be W4A16 g64 asym there, not W4A16 g128 sym")
    refused(function(data) data.modules_to_not_convert = { "mlp.gate", "qkv_proj" } end,
      "the layer model.layers.0.self_attn.qkv_proj that consumers make of model.layers.0.self_attn.q_proj and 2 more would be float there")
  end)

  it("evaluates data by the dialect's own rule: substrings, the first rule that matches, names before classes", function()
    local names = { "model.layers.0.mlp.gate", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "lm_head" }
    local function quantized(dialect, data)
      local out = {}
      for _, e in ipairs(assert(nb.policy.parse(dialect, data, names)).entries) do
        if e.scheme then out[#out + 1] = e.name:match "[^.]*$" .. " " .. nb.scheme.describe(e.scheme) end
      end
      return table.concat(out, "; ")
    end
    local awq = { quant_method = "awq", bits = 4, group_size = 128, zero_point = true, modules_to_not_convert = { "mlp.gate" } }
    assert.equal("up_proj W4A16 g128 asym", quantized("awq", awq))
    awq.modules_to_not_convert, awq.lm_head = nb.json.null, true
    assert.equal("gate W4A16 g128 asym; gate_proj W4A16 g128 asym; up_proj W4A16 g128 asym; lm_head W4A16 g128 asym", quantized("awq", awq))
    local gptq = assert(nb.json.decode [[{"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false,
      "dynamic": {"-:.*gate$": {}, "+:.*gate.*": {"bits": 8}, "-:.*": {}}}]])
    assert.equal("gate_proj W8A16 g128 sym", quantized(nil, gptq))
    local fp8 = { quant_method = "fp8", ignored_layers = { "model.layers.0.mlp.gate", "lm_head" } }
    assert.equal("gate_proj FP8_DYNAMIC tensor; up_proj FP8_DYNAMIC tensor", quantized("fp8", fp8))
    local four = { num_bits = 4, group_size = 128, strategy = "group", symmetric = true, type = "int" }
    local eight = { num_bits = 8, group_size = 128, strategy = "group", symmetric = true, type = "int" }
    assert.equal("gate_proj W8A16 g128 sym; up_proj W4A16 g128 sym", quantized("ct", { quant_method = "compressed-tensors",
      format = "pack-quantized", ignore = { "lm_head", "re:.*mlp.gate$" },
      config_groups = { group_0 = { targets = { "Linear" }, weights = four }, group_1 = { targets = { "re:.*gate_proj" }, weights = eight } } }))
    assert.equal("up_proj NVFP4", quantized("modelopt", { quant_method = "modelopt", quant_algo = "NVFP4", ignore = { "lm_head", "mlp.gate" } }))
    assert.equal("up_proj W4A16 g32 sym", quantized("auto-round", { quant_method = "auto-round", bits = 4, group_size = 32,
      sym = true, extra_config = { ["gate(_proj)?$"] = { bits = 16 } } }))
  end)

  it("notices an entry that a hand has changed", function()
    local p = policy_of(4, function(name) return not floats(name) and "W4A16" end)
    local data = assert(p:compile "ct")
    data.ignore[1] = "re:.*mlp.gate"
    local same, why = assert(nb.policy.parse("ct", data, p)):same(p)
    assert.is_true(same, why)
    data.ignore[1] = "re:.*gate"
    same, why = assert(nb.policy.parse("ct", data, p)):same(p)
    assert.is_false(same)
    assert.equal("model.layers.0.mlp.experts.0.gate_proj is float and W4A16 g128 sym", why)
  end)

  it("gives a quantized LM head what each consumer needs to find it", function()
    local p = policy_of(2, function(name) return not name:find "mlp.gate$" and "W4A16" end)
    assert.same({ "Linear", "lm_head" }, list(comes_back(p, "ct").config_groups.group_0.targets))
    assert.is_true(comes_back(p, "awq", true).lm_head)
    assert.is_true(comes_back(p, "gptq").lm_head)
    assert.equal("model.layers,lm_head", comes_back(p, "auto-round").block_name_to_quantize)
  end)

  it("is told of a checkpoint, a plan and a recipe, and prints as a table", function()
    local ck = assert(nb.open "spec/models/tiny-moe")
    local recipe = assert(nb.recipe { name = "r", scheme = "W4A16", group = 64, rules = { { "*.q_proj", scheme = "W8A16" },
      { "*.k_proj", scheme = "W8A16" }, { "*.v_proj", scheme = "W8A16" } } })
    local p = assert(nb.policy(recipe, ck))
    assert.is_true(p:same(assert(nb.policy(assert(nb.plan(recipe, ck))))))
    local lines = tostring(p)
    assert.matches("^policy r: 84 of 88 linear modules quantized\n", lines)
    assert.matches("model.layers.{0..2}.mlp.experts.{0..7}.up_proj +W4A16 g64 sym +24\n", lines)
    assert.matches("model.layers.{0..2}.mlp.gate +float bf16 +3\n", lines)
    assert.has_error(function() nb.policy "recipes/llama-w4a16.lua" end, "policy: a recipe needs the model that it is for: policy(recipe, model)")
    assert.same("W8A16 g64 sym", nb.scheme.describe(p:scheme "model.layers.0.self_attn.q_proj"))
    assert.is_false(p:scheme "lm_head")
    assert.is_nil(p:scheme "model.embed_tokens")
  end)

  it("becomes a recipe whose plan is the same policy", function()
    local ck = assert(nb.open "spec/models/tiny-moe")
    local path = os.tmpname()
    local cases = {
      { scheme = "W4A16", group = 64, lm_head = "W8A16" },
      { scheme = "NVFP4A16", skip = { "*.layers.0.*", "*.experts.7.*" } },
      { scheme = "W4A16_ASYM", rules = { { "*.layers.[03].*", scheme = false }, { "*.o_proj", scheme = "W8A8" } } },
    }
    for i, case in ipairs(cases) do
      case.name = "case"
      local p = assert(nb.policy(assert(nb.recipe(case)), ck))
      files.write(path, assert(p:recipe { name = "again" }))
      local again = assert(nb.policy(assert(nb.recipe(path)), ck))
      assert.equal("again", again.name)
      assert.is_true(assert(again:same(p)), "case " .. i)
    end
    os.remove(path)
    local none, msg, code = assert(nb.policy(ck)):recipe()
    assert.is_nil(none)
    assert.equal("einval", code)
    assert.matches("quantizes nothing", msg)
  end)

  it("reads a shipped checkpoint's config into the policy that its tensors have", function()
    for _, name in ipairs { "ct-w4a16-g128", "gptq-v1-sym-w4g128", "gptq_v2-asym-w4g32", "autoawq-gemm-w4g128" } do
      local ck = assert(nb.open("spec/interop/" .. name))
      assert.is_true(assert(nb.policy.parse(nil, ck.quantization.config, ck):same(nb.policy(ck))), name)
    end
  end)

  it("says what was asked wrongly", function()
    local p = policy_of(1, function(name) return not floats(name) and "W4A16" end)
    local none, msg, code = p:compile "awk"
    assert.is_nil(none)
    assert.equal('unknown dialect "awk"; did you mean "awq"?', msg)
    assert.equal("einval", code)
    assert.matches("no quant_method; name the dialect", select(2, nb.policy.parse(nil, {})))
    for text, pattern in pairs {
      ['{"quant_method": "auto-round", "bits": 4, "group_size": 0}'] = "group = 0: expected a number above 0",
      ['{"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["re:("], "weights": {"num_bits": 4}}}}'] = 'pattern "%("',
      ['{"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "modules_to_not_convert": [""]}'] = "would match everything",
      ['{"quant_method": "modelopt", "quant_algo": "X"}'] = "modelopt's X is not known here",
      ['{"quant_method": ["awq"]}'] = "no quant_method",
    } do
      none, msg = nb.policy.parse(nil, assert(nb.json.decode(text)), p)
      assert.is_nil(none)
      assert.matches(pattern, msg)
    end
    assert.matches("config_groups is missing", select(2, nb.policy.parse("ct", {})))
    assert.has_error(function() p:compile("ct", { "model.norm" }) end, "policy:compile: the policy says nothing of model.norm")
    assert.has_error(function() nb.policy(assert(nb.open "spec/models/tiny-moe")):over {} end, "policy:over is for a policy that was parsed")
  end)
end)

describe("patterns", function()
  it("mean exactly the names, for any choice of them", function()
    local all, regex, recipe = {}, require "nibble.regex", require "nibble.recipe"
    for l = 0, 12 do
      for e = 0, 3 do
        for _, leaf in ipairs { "a", "ab", "b" } do all[#all + 1] = ("m.%d.x.%d.%s"):format(l, e, leaf) end
      end
      all[#all + 1] = ("m.%d.y"):format(l)
    end
    local x = 1
    for case = 1, 60 do
      local names, selected, others = {}, {}, {}
      for _, name in ipairs(all) do
        x = (x * 69069 + 12345) % 2 ^ 32
        local yes = case % 3 == 0 and x < 2 ^ 31 or case % 3 == 1 and name:find(("%%.%d%%."):format(case % 10)) ~= nil
          or case % 3 == 2 and (name:find("b$") ~= nil) == (x < 2 ^ 32 * 0.97)
        if yes then names[#names + 1], selected[name] = name, true else others[#others + 1] = name end
      end
      local hits = { re = {}, glob = {}, part = {} }
      local regexes, globs, parts = patterns.regexes(names, all), patterns.globs(names, all), patterns.substrings(names, others)
      for _, name in ipairs(all) do
        for _, r in ipairs(regexes) do hits.re[name] = hits.re[name] or assert(regex.compile(r.text)):match(name) or nil end
        for _, g in ipairs(globs) do hits.glob[name] = hits.glob[name] or assert(recipe.matcher(g))(name) or nil end
        for _, t in ipairs(parts or {}) do hits.part[name] = hits.part[name] or name:find(t, 1, true) and true or nil end
      end
      assert.same(selected, hits.re)
      if parts then assert.same(selected, hits.part) end
      assert.same(selected, hits.glob)
    end
  end)
end)
