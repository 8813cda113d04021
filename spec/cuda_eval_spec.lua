-- cuda_eval: models on a device, whole: the losses of the CPU, from weights that stay there or are streamed; calibration;
-- what is said when it cannot be.
local command = require "spec.support.command"
local files = require "spec.support.files"
local standin = require "spec.support.standin"

local root

local run = standin.with [[
  local IDS = "spec/models/eval/test_tokens.safetensors"
  local function model(path) return assert(nb.open(path)) end
  -- both(path, options) -> what eval.run gives on the CPU and on the device.
  local function both(path, o)
    local function once(device)
      local all = { model = model(path), ids = IDS, context = 24, windows = 2, device = device }
      for k, v in pairs(o or {}) do all[k] = v end
      return assert(nb.eval.run(all))
    end
    return once(), once "cuda"
  end
  local function near(path, o)
    local a, b = both(path, o)
    local off = math.abs(a.nll - b.nll)
    if off < 1e-3 and off > 0 then return "near " .. table.concat(b.through, ", ") end
    return ("%s: nll %.6f, on the CPU %.6f"):format(path, b.nll, a.nll)
  end
]]

local function made(recipe, model, more)
  local dir = root .. "/" .. recipe .. "-" .. model
  local words = { "run", recipe, "spec/models/" .. model, "--out", dir, unpack(more or {}) }
  local r = command.run(words)
  assert.equal(0, r.status, r.err)
  return dir
end

describe("eval on a device", function()
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  it("gives the CPU's losses within 0.001: float models, dense and of experts", function()
    assert.equal("near ", run 'print(near "spec/models/tiny-llama")')
    assert.equal("near reference 3 moe", run 'print(near "spec/models/tiny-moe")')
  end)

  it("gives them of quantized models", function()
    local dense, experts = made("any-w4a16", "tiny-llama"), made("any-w4a16", "tiny-moe")
    assert.equal("near marlin_cuda 28 linear", run(("print(near %q)"):format(dense)))
    assert.matches("^near .*marlin_cuda %d+ linear", run(("print(near %q)"):format(experts)))
  end)
end)
