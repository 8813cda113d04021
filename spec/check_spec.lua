-- check as a whole: order, collapsing, text, JSON, options, exit status.
local nb = require "nibble"
local check = require "spec.support.check"
local command = require "spec.support.command"
local editor = require "spec.support.editor"

setup(check.begin)
teardown(check.finish)

local PLAIN = "spec/models/parity/llama"

describe("check", function()
  it("sorts by severity, then by module in natural order, and counts", function()
    local dir = check.broken(PLAIN, { weights = function(w)
      editor.remove(w, "model.layers.1.mlp.up_proj.weight")
      local t = w["model.norm.weight"]
      table.insert(w, { name = "model.layers.0.mlp.extra.weight", dtype = t.dtype, shape = t.shape, data = t.data })
    end })
    local result = assert(nb.check.run(dir, { values = false, tp = { 1 } }))
    assert.same({ "error missing-module model.layers.1.mlp.up_proj", "warning unexpected-module model.layers.0.mlp.extra" },
      check.lines(result))
    assert.same({ error = 1, warning = 1, note = 0 }, result.counts)
    local text = tostring(result)
    assert.matches("1 error, 1 warning\nerror    missing%-module  model.layers.1.mlp.up_proj\n", text)
    assert.matches("\n  fix: ", text)
    local plain = nb.json.decode(nb.json.encode(result:totable()))
    assert.equal("missing-module", plain.findings[1].rule)
    assert.same({ "vllm-0.33" }, { unpack(plain.consumers) })
  end)

  it("takes an open checkpoint too, and leaves it as it was", function()
    local dir = check.broken("spec/interop/autoawq-gemm-w4g128", { weights = function(w)
      editor.remove(w, "model.layers.3.mlp.down_proj.qzeros")
    end })
    local ck = assert(nb.open(dir))
    local result = assert(nb.check.run(ck, { values = false }))
    assert.equal(1, result.counts.error)
    assert.is_nil((ck:modules())) -- the strict listing still refuses
  end)

  it("refuses what it doesn't know", function()
    local function refused(options, pattern)
      local result, msg, code = nb.check.run(PLAIN, options)
      assert.is_nil(result)
      assert.matches(pattern, msg)
      assert.equal("einval", code)
    end
    refused({ consumer = "vlm-0.33" }, 'unknown consumer "vlm%-0.33"; did you mean "vllm%-0.33"')
    refused({ consumer = "inc-xpu" }, "inc%-xpu is on xpu only, and the device is sm_80")
    assert.equal(0, assert(nb.check.run(PLAIN, { consumer = "document-era", values = false })).counts.error)
    refused({ consumer = "," }, "at least one name")
    refused({ tp = { 0 } }, "tp = 0")
    refused({ tp = { 1.5 } }, "tp = 1.5")
    refused({ device = "tpu" }, "tpu")
    refused({ value = true }, 'unknown option value; did you mean "values"')
  end)

  it("lists its rules, each with a name and what it is about", function()
    local seen = {}
    for _, rule in ipairs(nb.check.rules()) do
      assert.is_string(rule.about)
      assert.is_nil(seen[rule.id], rule.id)
      seen[rule.id] = true
    end
    assert.is_true(seen["missing-module"])
  end)
end)

describe("check on what others wrote", function()
  -- What is found is true: pieces of checkpoints, one that vLLM 0.33 doesn't take, files that lie beside.
  it("has no false errors", function()
    local errors = { ["gptq_v2-asym-w4g32"] = "config-refused" }
    for _, name in ipairs { "autoawq-gemm-w4g128", "autoround-auto_gptq-w4g128", "ct-w4a16-g128", "gptq-v1-sym-w4g128",
      "gptq_v2-asym-w4g32", "moe-ct-w4a16-g128" } do
      local result = assert(nb.check.run("spec/interop/" .. name))
      assert.equal(errors[name] and 1 or 0, result.counts.error, tostring(result))
      if errors[name] then assert.equal(errors[name], result.findings[1].rule) end
    end
    for _, name in ipairs { "tiny-llama", "tiny-moe" } do
      local lines = check.lines(assert(nb.check.run("spec/models/" .. name, { consumer = "all" })))
      assert.same({ "note ranks-heads config.json" }, lines)
    end
  end)

  it("takes sizes of config.json that are none", function()
    for _, value in ipairs { nb.json.null, true, "x", -1, 0, 1e300 } do
      for _, key in ipairs { "hidden_size", "num_attention_heads", "head_dim", "num_hidden_layers", "vocab_size" } do
        local dir = check.broken("spec/interop/ct-w4a16-g128", { config = function(c) c[key] = value end })
        assert.is_table((nb.check.run(dir, { values = false })))
      end
    end
  end)
end)

describe("nibble check", function()
  it("exits with 0 where there is no error, 1 where there is one, 2 for wrong use", function()
    local r = command.run { "check", "spec/models/tiny-llama", "--headers", "--tp", "1,2" }
    assert.equal(0, r.status)
    assert.matches("nothing found in 39 modules of 39 tensors\n$", r.out)
    local dir = check.broken(PLAIN, { weights = function(w) editor.remove(w, "lm_head.weight") end })
    r = command.run { "check", dir, "--no-values", "--json" }
    assert.equal(1, r.status)
    assert.equal("missing-module", nb.json.decode(r.out).findings[1].rule)
    r = command.run { "check", "spec/models/nothing" }
    assert.equal(2, r.status)
    assert.equal("", r.out)
    assert.equal(2, command.run({ "check", PLAIN, "--consumer", "nobody" }).status)
    assert.equal(2, command.run({ "check", PLAIN, "--tp", "1,x" }).status)
    r = command.run { "check", "--rules", PLAIN }
    assert.equal(0, r.status)
    assert.matches("index%s+files%s+", r.out)
  end)
end)
