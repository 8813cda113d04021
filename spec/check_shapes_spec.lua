-- check on shapes: modules' tensors against their scheme and against config.json; one bad thing is one finding.
local nb = require "nibble"
local check = require "spec.support.check"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local found, broken = check.found, check.broken

setup(check.begin)
teardown(check.finish)

local PLAIN, MOE = "spec/models/parity/llama", "spec/models/parity/qwen3-moe"
local AWQ = "spec/interop/autoawq-gemm-w4g128"
local UP = "model.layers.0.mlp.up_proj"

describe("check's shape rules", function()
  it("find nothing in the models of eight architectures", function()
    for _, name in ipairs { "llama", "llama-rope3", "mistral", "mistral-types", "mixtral", "qwen2", "qwen3", "qwen3-moe",
      "qwen3-moe-recent", "qwen3-moe-sharded" } do
      assert.same({}, (found(broken("spec/models/parity/" .. name))), name)
    end
  end)

  it("tell sizes that config.json has otherwise", function()
    local lines, list = found(broken(PLAIN, { weights = function(w)
      local t = w[UP .. ".weight"]
      t.shape = { t.shape[2], t.shape[1] }
    end }))
    assert.same({ "error config-shape " .. UP }, lines)
    assert.matches("config.json means %[%d+x%d+%], the tensors are %[%d+x%d+%]", list[1].says)
    lines = found(broken(PLAIN, { weights = function(w)
      local t = w["model.norm.weight"]
      t.shape[1], t.data = t.shape[1] / 2, t.data:sub(1, #t.data / 2)
    end }))
    assert.same({ "error config-shape model.norm" }, lines)
    -- One number of the config that is wrong is one finding for all that it means.
    lines = found(broken(PLAIN, { config = function(c) c.intermediate_size = c.intermediate_size * 2 end }))
    assert.equal(1, #lines, table.concat(lines, "\n"))
    assert.matches("^error config%-shape model.layers.0.mlp.gate_proj ×", lines[1])
  end)

  it("tell layers and experts that are missing, and those that are too many", function()
    local config = nb.json.decode(files.read(PLAIN .. "/config.json"))
    local layers = config.num_hidden_layers
    local lines = found(broken(PLAIN, { config = function(c) c.num_hidden_layers = layers + 1 end }))
    assert.equal(1, #lines)
    assert.matches(("^error missing%%-module model.layers.%d%%..* ×%%d+$"):format(layers), lines[1])
    lines = found(broken(PLAIN, { config = function(c) c.num_hidden_layers = layers - 1 end }))
    assert.equal(1, #lines)
    assert.matches(("^warning unexpected%%-module model.layers.%d%%."):format(layers - 1), lines[1])
    lines = found(broken(MOE, { weights = function(w)
      editor.remove(w, "model.layers.0.mlp.experts.2.up_proj.weight")
    end }))
    assert.same({ "error missing-module model.layers.0.mlp.experts.2.up_proj" }, lines)
    lines = found(broken(PLAIN, { weights = function(w) editor.remove(w, "lm_head.weight") end }))
    assert.same({ "error missing-module lm_head" }, lines)
  end)

  it("tell a bias that config.json means, and modules that the architecture lacks", function()
    local lines = found(broken(PLAIN, { config = function(c) c.mlp_bias = true end }))
    assert.equal(1, #lines)
    assert.matches("^error missing%-bias model.layers.0.mlp.gate_proj ×", lines[1])
    assert.same({ "warning unexpected-module model.layers.0.mlp.extra" }, (found(broken(PLAIN, { weights = function(w)
      local t = w[UP .. ".weight"]
      table.insert(w, { name = "model.layers.0.mlp.extra.weight", dtype = t.dtype, shape = t.shape, data = t.data })
    end }))))
  end)

  it("tell sizes that config.json lacks, and a folder without it", function()
    assert.same({ "error config-sizes config.json" }, (found(broken(PLAIN, { config = function(c) c.hidden_size = nil end }))))
    assert.same({ "warning config-missing config.json" }, (found(broken(PLAIN, { config = false }))))
  end)

  it("call a model of which most is missing a part", function()
    assert.same({ "warning partial-model" }, (found(AWQ)))
  end)

  it("tell every quantized module whose tensors are not its scheme's, and not the first only", function()
    local dir = broken(AWQ, { weights = function(w)
      local t = w["model.layers.0.self_attn.q_proj.scales"]
      t.shape = { t.shape[1] / 2, t.shape[2] * 2 }
      editor.remove(w, "model.layers.3.mlp.down_proj.qzeros")
    end })
    assert.is_nil((assert(nb.open(dir)):modules()))
    local lines, list = found(dir)
    assert.same({ "error module-tensors model.layers.0.self_attn.q_proj", "error module-tensors model.layers.3.mlp.down_proj",
      "warning partial-model" }, lines)
    assert.matches("so scales must be %[2x256%], but it is %[1x512%]", list[1].says)
    assert.matches("^the tensor qzeros is missing", list[2].says)
    assert.equal("awq", list[1].source)
  end)

  it("make one finding of a config that all modules contradict", function()
    local lines = found(broken(AWQ, { config = function(c) c.quantization_config.group_size = 64 end }))
    assert.equal(2, #lines)
    assert.matches("^error module%-tensors model.layers.0.self_attn.q_proj ×2", lines[1])
  end)

  it("tell tensors that a format doesn't know, and dtypes that loaders cast", function()
    local lines, list = found(broken(AWQ, { weights = function(w)
      local t = w["model.layers.0.self_attn.q_proj.scales"]
      table.insert(w, { name = "model.layers.0.self_attn.q_proj.bits", dtype = t.dtype, shape = t.shape, data = t.data })
      table.insert(w, { name = "model.layers.0.self_attn.q_proj.bias", dtype = "F32", shape = { 256 }, data = ("\0"):rep(1024) })
    end }))
    assert.same({ "warning partial-model", "warning extra-tensor model.layers.0.self_attn.q_proj",
      "note side-dtype model.layers.0.self_attn.q_proj" }, lines)
    assert.matches("^bits is no tensor of awq", list[2].says)
    assert.matches("its bias is f32", list[3].says)
  end)
end)
