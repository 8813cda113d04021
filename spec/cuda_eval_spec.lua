-- cuda_eval: models on a device, whole: the losses of the CPU, from weights that stay there or are streamed; calibration;
-- what is said when it cannot be.
local command = require "spec.support.command"
local files = require "spec.support.files"
local small_models = require "spec.support.small_models"
local standin = require "spec.support.standin"

local root, dense, experts
local first_layers, quantized = small_models.first_layers, small_models.quantized

local run = standin.with [[
  local IDS = "spec/models/eval/test_tokens.safetensors"
  local function model(path) return assert(nb.open(path)) end
  -- both(path, options) -> what eval.run gives on the CPU and on the device.
  local function both(path, o)
    local function once(device)
      local all = { model = model(path), ids = IDS, context = 12, windows = 2, device = device }
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

describe("eval on a device", function()
  setup(function()
    root = files.temporary()
    dense, experts = first_layers(root, "tiny-llama", 2), first_layers(root, "tiny-moe", 1)
  end)
  teardown(function() files.remove(root) end)

  it("gives the CPU's losses within 0.001: float models, dense and of experts", function()
    assert.equal("near \nnear reference 1 moe", run(("print(near %q) print(near %q)"):format(dense, experts)))
  end)

  it("gives them of quantized models", function()
    local out = run(("print(near %q) print(near %q)"):format(quantized(dense), quantized(experts)))
    assert.matches("^near marlin_cuda 14 linear\nnear .*ct_wna16_moe 1 moe", out)
    out = run(("print(near %q)"):format(quantized(experts, "any-mxfp4a16"))) -- experts that no system's method takes
    assert.equal("near marlin_float_cuda 4 linear, marlin_float_moe_cuda 1 moe", out)
  end)

  -- A code that flips moves what comes after it: in 16 bits a token's loss by some 0.02 (W8A8) to 0.1 (NVFP4), and of 23 tokens
  -- the mean by a fifth of that. In f32 only what lies on a tie flips: of int8 the largest of a row, where it is negative.
  it("gives them in f32 of models whose inputs are quantized, where none lies on a tie: FP8, NVFP4", function()
    for recipe, through in pairs { ["any-fp8"] = "fp8_cuda 28 linear", ["any-nvfp4"] = "reference 28 linear" } do
      local dir = root .. "/" .. recipe
      local r = command.run(("run %s spec/models/tiny-llama --out %s --set calibrate.samples=4 --set "
        .. "calibrate.ids=spec/models/eval/calib.safetensors"):format(recipe, dir))
      assert.equal(0, r.status, r.err)
      assert.equal("near " .. through, run(("print(near(%q, { dtype = 'f32', windows = 1 }))"):format(dir)))
    end
  end)

  it("multiplies codes of integers in 16 bits, and weights in f32, and of the same sort are the losses", function()
    local dir, moe = quantized(dense, "any-w8a8"), quantized(experts, "any-w8a8")
    local code = [[
      for i, dtype in ipairs { "f16", "f32" } do
        local a = assert(nb.eval.run { model = model(%q), ids = IDS, context = 12, windows = 1, per_token = true })
        local b = assert(nb.eval.run { model = model(%q), ids = IDS, context = 12, windows = 1, per_token = true, device = "cuda", dtype = dtype })
        local square = 0
        for t = 1, 11 do square = square + (a.per_token:get(t) - b.per_token:get(t)) ^ 2 / 11 end
        io.write(i > 1 and " " or "", table.concat(b.through, " "), " ", tostring(math.sqrt(square) < 0.04))
      end ]]
    assert.equal("marlin_a8_cuda 14 linear true reference 14 linear true", run(code:format(dir, dir)))
    assert.equal("marlin_a8_cuda 4 linear marlin_a8_moe_cuda 1 moe true reference 1 moe reference 28 linear true", run(code:format(moe, moe)))
  end)

  it("gives the same losses whether weights stay, are streamed or are given up when there is no room for more", function()
    local code = ([[
      local function nll(o)
        local all = { model = model %q, ids = IDS, context = 12, windows = 2, device = "cuda" }
        for k, v in pairs(o) do all[k] = v end
        return assert(nb.eval.run(all)).nll
      end ]]):format(quantized(dense))
    local kept = run(code .. "print(nll {})")
    assert.equal(kept, run(code .. "print(nll { cache_bytes = 0 })"))
    assert.equal(kept, run(code .. "print(nll { cache_bytes = 500000 })"))
    local crowded = run(code .. "print(nll { cache_bytes = 2 ^ 30 })", { NB_EMU_MEMORY = "3500000" })
    assert.is_true(math.abs(tonumber(crowded) - tonumber(kept)) < 1e-3, crowded) -- in other batches, whose sums have another order
  end)

  it("makes batches smaller until there is room, and else says how much there is", function()
    local code = [[
      local places = require "nibble.place"
      getmetatable(assert(places.new())).rows = function() return 1e9 end -- all windows in one batch
      print(nb.eval.run { model = model "spec/models/parity/llama", ids = nb.tensor("i32", { 24, 8 }):fill(7), device = "cuda" }) ]]
    local plenty = run(code):match "nll +%S+"
    assert.is_truthy(plenty)
    assert.equal(plenty, run(code, { NB_EMU_MEMORY = "200000" }):match "nll +%S+")
    assert.matches("^nil\tspec/models/parity/llama: .*cuda:0 is out of memory: %d+ bytes were asked for, %d+ of its 40000 are free\tenomem$",
      (run(code, { NB_EMU_MEMORY = "40000" })))
  end)

  it("begins again in bf16 where f16 can't hold a value", function()
    local out = run(([[
      local ck = model %q
      local function scaled(name, factor)
        return (assert(ck:tensor(name)):cast "f32"):map(function(v) return v * factor end):cast "bf16"
      end
      local p = "model.layers.1.mlp."
      local changed = { [p .. "up_proj.weight"] = 2 ^ 20, [p .. "down_proj.weight"] = 2 ^ -20 }
      local odd = setmetatable({ tensor = function(_, name)
        if changed[name] then return scaled(name, changed[name]) end
        return ck:tensor(name)
      end }, { __index = function(_, key)
        local v = ck[key]
        return type(v) == "function" and function(_, ...) return v(ck, ...) end or v
      end })
      local function nll(m, device) return assert(nb.eval.run { model = m, ids = IDS, context = 12, windows = 2, device = device }).nll end
      local exact, there = nll(odd), nll(odd, "cuda")
      print(math.abs(exact - nll(ck)) < 1e-5, math.abs(there - exact) < 0.01, there ~= exact)
    ]]):format(dense))
    assert.equal("true\ttrue\ttrue", out)
  end)

  it("compares two models there", function()
    assert.equal("true\ttrue\ttrue", run(([[
      local a, b = both(%q, { against = model %q })
      print(math.abs(a.kl - b.kl) < 1e-3, math.abs(a.nll_against - b.nll_against) < 1e-3, math.abs(a.top1_agreement - b.top1_agreement) < 0.05)
    ]]):format(quantized(dense), dense)))
  end)

  it("a device lost midway is one sentence", function()
    assert.matches("^nil\t[^\n]+/tiny%-llama: cuda:0 is lost: [^\n]+\teio$", (run(([[
      getmetatable(assert(require("nibble.place").new())).rows = function() return 16 end
      print(nb.eval.run { model = model %q, ids = nb.tensor("i32", { 3, 16 }):fill(7), device = "cuda",
        progress = function() assert(nb.cuda.launch("emu_copy_shifted", { grid = 1, block = 32, nb.tensor("i32", { 32 }):to "cuda",
          nb.tensor("i32", { 32 }):to "cuda", 1 })) end }) ]]):format(dense))))
  end)

  it("refuses a dtype that activations don't have", function()
    local function refused(o)
      return (select(2, pcall(require("nibble.eval").run, setmetatable(o, { __index = { model = {}, ids = "x" } }))))
    end
    assert.matches('dtype = "i8", expected f32, f16 or bf16', refused { dtype = "i8", device = "cuda" })
    assert.matches("dtype = f16 is of activations on a device; in the computer's memory they are f32", refused { dtype = "f16" })
  end)

  it("refuses a device that isn't there", function()
    local r = command.run("eval spec/models/tiny-llama --device gpu --ids spec/models/eval/test_tokens.safetensors")
    assert.matches('unknown device "gpu"; known: "cpu", "cuda"', r.err)
  end)
end)

describe("calibration on a device", function()
  it("measures the CPU's ranges and sums, kept or not", function()
    local out = run [[
      local calibrate, ck = require "nibble.calibrate", model "spec/models/tiny-llama"
      local wanted = { ["model.layers.0.self_attn.q_proj"] = true, ["model.layers.3.mlp.down_proj"] = true }
      local function measured(device)
        local sums = {}
        local ranges = assert(calibrate.ranges(ck, wanted, { ids = IDS, length = 12, samples = 1, sums = sums, of = wanted, device = device }))
        return ranges, sums
      end
      local a, a_sums = measured()
      local b, b_sums = measured "cuda"
      local worst = 0
      local function off(x, y) worst = math.max(worst, math.abs(x - y) / math.max(math.abs(x), 1e-3)) end
      for name in pairs(wanted) do
        for i = 1, 2 do off(a[name][i], b[name][i]) end
        for i = 1, a_sums[name]:numel() do off(a_sums[name]:get(i), b_sums[name]:get(i)) end
      end
      print(worst < 2e-3, worst)
    ]]
    assert.matches("^true", out)
  end)
end)
