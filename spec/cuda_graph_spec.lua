-- cuda_graph: a whole step of a model on a device (embedding, attention, MLPs or experts, losses) is one CUDA graph: nothing in
-- it waits, and each launch gives what the plain pass gives for the tokens that lie there then.
local files = require "spec.support.files"
local small_models = require "spec.support.small_models"
local standin = require "spec.support.standin"

local run = standin.with [[
  local models, compute = require "nibble.models", require "nibble.compute"
  -- What launches of the step's graph give for other tokens than it was captured with, against the plain passes'.
  local function replayed(path, sequences, length, activations)
    local ck = assert(nb.open(path))
    local place = assert(models.place(ck, { device = "cuda" }))
    local runner = assert(require("nibble.methods.runner").new(ck, { through = "auto", place = place }))
    local model = assert(models.load(ck, { place = place, runner = runner }))
    local rows, expected = sequences * length, {}
    local function tokens(seed)
      local t = nb.tensor("i32", { rows })
      for i = 1, rows do t:set(i, (i * i * 37 + seed * 101) % model.vocab) end
      return t
    end
    local targets = tokens(99)
    for seed = 1, 3 do -- after which all weights are there to stay
      expected[seed] = assert(model:score(assert(model:hidden(tokens(seed), length)), targets))[1]
    end
    local f, arch = require("nibble.models.forward").new(model, rows, length), model.arch
    local ids, targets_there = tokens(1):to "cuda", targets:to "cuda"
    f.x, f.h = f:buffer("x", rows, model.c.hidden, "f32"), f:buffer("h", rows, model.c.hidden)
    local g, nll = assert(nb.cuda.graph(function()
      compute.gather(f.x, f.weights:matrix(arch.embedding, model.vocab, model.c.hidden), ids)
      for i = 0, model.c.layers - 1 do arch.layer(f, i) end
      f:norm(arch.final_norm)
      return (compute.score(f.h, f.weights:matrix(arch.lm_head, model.vocab, model.c.hidden), targets_there))
    end))
    for _, seed in ipairs { 2, 3, 3, 1 } do
      compute.copy(ids, tokens(seed))
      assert(g())
      io.write(assert(nll:to "cpu"):equal(expected[seed]) and "same " or "other ")
    end
    io.write(table.concat(runner:summary(), ", "))
  end
]]

describe("a model's step on a device", function()
  local root
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  local function replays(model, shape)
    local out = run(("replayed(%q, %s)"):format(model, shape))
    local through = out:match "^same same same same (.*)$"
    return through or error(model .. ": " .. out, 0)
  end

  it("is a graph, of experts: one row, as when it decodes, and more", function()
    local model = small_models.first_layers(root, "tiny-moe", 1)
    assert.equal("ct_wna16_moe 1 moe, marlin_cuda 4 linear", replays(small_models.quantized(model), "1, 1"))
    assert.equal("ct_fp8_moe 1 moe, fp8_cuda 4 linear", replays(small_models.quantized(model, "any-fp8-dynamic"), "2, 9"))
  end)

  it("is a graph, of dense layers in floats and 4 bits", function()
    local model = small_models.first_layers(root, "tiny-llama", 1)
    assert.equal("", replays(model, "2, 5"))
    assert.equal("marlin_cuda 7 linear", replays(small_models.quantized(model), "1, 1"))
    assert.equal("marlin_float_cuda 7 linear", replays(small_models.quantized(model, "any-nvfp4a16"), "1, 9"))
  end)
end)
