-- Calibration: which windows of a text, what ranges the layers' inputs have, the scales that follow, and runs that need
-- them: from the beginning, from where they stopped, and refused.
local nb = require "nibble"
local act = require "nibble.act"
local calibrate = require "nibble.calibrate"
local checkpoint = require "nibble.checkpoint"
local compute = require "nibble.compute"
local files = require "spec.support.files"
local nffi = require "nibble.ffi"
local C = nffi.C

local IDS = "spec/models/eval/calib.safetensors"
local MODEL = "spec/models/parity/llama"
local root

local function f32(v) return C.nb_round_scale(v, C.NB_F32) end

local function ids_of(n, seed)
  local ids = nb.tensor("i32", { n })
  for i = 1, n do ids:set(i, (i * i * 31 + i * 7919 + (seed or 0)) % 250) end
  return ids
end

local function ids_file(name, n, seed)
  local list, ids = {}, ids_of(n, seed)
  for i = 1, n do list[i] = ids:get(i) end
  local path = root .. "/" .. name
  files.write(path, table.concat(list, " "))
  return path
end

local fp8_static = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = false }
local int8_static = { type = "int", bits = 8, symmetric = true, strategy = "tensor", dynamic = false }
local int8_asym = { type = "int", bits = 8, symmetric = false, strategy = "tensor", dynamic = false }
local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local" }

describe("act.calibrated", function()
  it("CTM-FP8-02: FP8's scale is absmax / 448, int8's absmax / 127.5", function()
    assert.same({ scale = f32(f32(3.7) / 448) }, act.calibrated(fp8_static, -1, f32(3.7)))
    assert.same({ scale = f32(f32(5.1) / 448) }, act.calibrated(fp8_static, -f32(5.1), f32(3.7)))
    assert.same({ scale = f32(f32(3.7) / 127.5) }, act.calibrated(int8_static, -1, f32(3.7)))
  end)

  it("asymmetric int8 has a zero-point; 0 belongs to the range", function()
    assert.same({ scale = 1, zero_point = -28 }, act.calibrated(int8_asym, -100, 155))
    assert.same({ scale = 1, zero_point = -128 }, act.calibrated(int8_asym, 10, 255))
    assert.same({ scale = 1, zero_point = 127 }, act.calibrated(int8_asym, -255, -3))
    assert.equal(-118, act.calibrated(int8_asym, -10.5, 244.5).zero_point) -- -117.5: half to even
  end)

  it("CTM-NVFP4-13: NVFP4's global scale is 448 * 6 / absmax", function()
    assert.same({ global = f32(2688 / f32(3.3)) }, act.calibrated(nvfp4, -f32(3.3), 1))
  end)

  it("an input of zeros has finite numbers; dynamic activations have none", function()
    assert.same({ scale = 2 ^ -23 }, act.calibrated(fp8_static, 0, 0))
    assert.same({ scale = 2 ^ -23, zero_point = 0 }, act.calibrated(int8_asym, 0, 0))
    assert.same({ global = 1 }, act.calibrated(nvfp4, 0, 0))
    assert.same({}, act.calibrated({ type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true }, -1, 1))
  end)

  it("extents grow, on each path, and refuse what is not finite", function()
    local x = nb.tensor("f32", { 3, 21 })
    for i = 1, 63 do x:set(i, math.sin(i) * i) end
    for _, limit in ipairs { 0, -1 } do
      C.nb_cpu_limit(limit)
      local r = assert(act.extent(x))
      local lo, hi = 0, 0
      for i = 1, 63 do lo, hi = math.min(lo, x:get(i)), math.max(hi, x:get(i)) end
      assert.same({ lo, hi }, { r[0], r[1] })
      r[0] = -1000
      assert(act.extent(x, r))
      assert.same({ -1000, hi }, { r[0], r[1] })
    end
    C.nb_cpu_limit(-1)
    for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
      x:set(5, bad)
      local r, msg, code = act.extent(x)
      assert.is_nil(r)
      assert.matches("NaN or infinite values", msg)
      assert.equal("eformat", code)
    end
  end)
end)

describe("calibrate", function()
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  local function model() return assert(nb.models.load(assert(nb.open(MODEL)))) end

  it("takes windows of the text, BOS in front, which ones by the seed", function()
    local m, ids = model(), ids_of(100)
    local w = assert(calibrate.windows(m.ck, m, { ids = ids, samples = 4, length = 6, seed = 3 }))
    assert.same({ 4, 6 }, w:size())
    local starts = {}
    for r = 0, 3 do
      assert.equal(m.c.get "bos_token_id", w:get(r * 6 + 1))
      for at = 0, 19 do
        local same = true
        for i = 1, 5 do same = same and w:get(r * 6 + 1 + i) == ids:get(at * 5 + i) end
        if same then starts[#starts + 1] = at end
      end
    end
    assert.equal(4, #starts)
    for i = 2, 4 do assert.is_true(starts[i] > starts[i - 1]) end
    assert.is_true(w:equal(assert(calibrate.windows(m.ck, m, { ids = ids, samples = 4, length = 6, seed = 3 }))))
    assert.is_false(w:equal(assert(calibrate.windows(m.ck, m, { ids = ids, samples = 4, length = 6, seed = 4 }))))
    assert.same({ 20, 6 }, assert(calibrate.windows(m.ck, m, { ids = ids, length = 6 })):size()) -- all there are
    assert.same({ 7, 11 }, assert(calibrate.windows(m.ck, m, { ids = ids:rows(1, 77):reshape { 7, 11 } })):size())
  end)

  -- What each product of a pass over all windows got, by the order of modules.
  local function inputs_of(ck, windows)
    local gemm, seen = compute.gemm, {}
    compute.gemm = function(y, x, w, bias)
      seen[#seen + 1] = x:clone()
      return gemm(y, x, w, bias)
    end
    local ok, err = pcall(function()
      local m = assert(nb.models.load(ck))
      assert(m:hidden(windows:reshape { windows:numel() }, windows:size(2)))
    end)
    compute.gemm = gemm
    assert(ok, err)
    return seen
  end

  it("finds the range of every layer's input; q, k and v have one", function()
    local ck, m = assert(nb.open(MODEL)), model()
    local o = { ids = ids_of(200), length = 20, samples = 10 }
    local wanted, names = {}, {}
    for l = 0, m.c.layers - 1 do
      for _, leaf in ipairs { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
        "mlp.up_proj", "mlp.down_proj" } do
        names[#names + 1] = ("model.layers.%d.%s"):format(l, leaf)
        wanted[names[#names]] = true
      end
    end
    local ranges = assert(calibrate.ranges(ck, wanted, o))
    local inputs = inputs_of(ck, assert(calibrate.windows(ck, m, o)))
    assert.equal(#names, #inputs)
    for i, name in ipairs(names) do
      local s = inputs[i]:stats()
      assert.same({ math.min(0, s.min), math.max(0, s.max) }, ranges[name], name)
    end
    assert.same(ranges[names[1]], ranges[names[3]])
    assert.is_nil(calibrate.ranges(ck, wanted, o)["lm_head"])
  end)

  it("goes on after a batch and ends with the same ranges; another text is refused", function()
    local ck, wanted = assert(nb.open(MODEL)), { ["model.layers.1.mlp.down_proj"] = true, ["model.layers.0.self_attn.k_proj"] = true }
    local o = { ids = ids_of(63 * 320), length = 64, samples = 320 } -- five batches of 4096 tokens
    local whole, lines = assert(calibrate.ranges(ck, wanted, o)), 0
    local before = { ranges = {} }
    local function after(stop)
      return function(batch, batches, changed, hash)
        lines = lines + 1
        assert.equal(5, batches)
        before.batches, before.hash = batch, hash
        for name, r in pairs(changed) do before.ranges[name] = r end
        if batch == stop then return nil, "stopped", "eio" end
        return true
      end
    end
    o.after = after(3)
    local r, msg = calibrate.ranges(ck, wanted, o)
    assert.is_nil(r)
    assert.equal("stopped", msg)
    o.after, o.before = after(), before
    assert.same(whole, assert(calibrate.ranges(ck, wanted, o)))
    assert.equal(5, lines)
    o.ids = ids_of(63 * 320, 1)
    r, msg = calibrate.ranges(ck, wanted, o)
    assert.is_nil(r)
    assert.matches("the text is not the one that the run began with", msg)
  end)

  it("says what is wrong with the text or the model", function()
    local ck = assert(nb.open(MODEL))
    local function refused(o, pattern)
      local r, msg = calibrate.ranges(ck, {}, o)
      assert.is_nil(r)
      assert.matches(pattern, msg)
    end
    refused({ ids = ids_of(5), length = 20 }, "calibrate: ids has 5 tokens, but one window of context 20 needs 19")
    refused({ ids = nb.tensor("i32", { 30 }, { 999999 }), length = 8 }, "calibrate: token id 999999 at place 1 is outside")
    refused({ text = "/nonexistent.txt" }, "calibrate: .*/nonexistent.txt")
    refused({ ids = "/nonexistent.safetensors" }, "calibrate: .*/nonexistent.safetensors")
  end)
end)

describe("a run with static activations", function()
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  local function recipe(scheme, format, ids)
    return { name = "static", scheme = scheme, output = { format = format }, calibrate = { ids = ids, samples = 8, length = 16 } }
  end

  local function one(ck, name) return assert(ck:tensor(name)):get(1) end

  it("CTM-FP8-07: writes the scale of each layer's input; those that see one input have one scale", function()
    local dir = root .. "/fp8"
    local ck = assert(nb.open(MODEL))
    local ids = ids_file("a.txt", 400)
    assert(assert(nb.plan(recipe("FP8", "fp8", ids), ck)):run(dir))
    local out = assert(nb.open(dir))
    local p = "model.layers.0."
    assert.equal(one(out, p .. "self_attn.q_proj.input_scale"), one(out, p .. "self_attn.v_proj.input_scale"))
    assert.equal(one(out, p .. "mlp.gate_proj.input_scale"), one(out, p .. "mlp.up_proj.input_scale"))
    local r = assert(calibrate.ranges(ck, { [p .. "mlp.down_proj"] = true }, { ids = ids, samples = 8, length = 16 }))
    local range = r[p .. "mlp.down_proj"]
    assert.equal(f32(math.max(-range[1], range[2]) / 448), one(out, p .. "mlp.down_proj.input_scale"))
    assert.same({ "fp8 tensor static" }, assert(nb.eval.run { model = out, ids = ids_of(40), context = 8, bos = 1 }).inputs)
  end)

  it("CTM-NVFP4-12: NVFP4's come out as ModelOpt's factors", function()
    local dir = root .. "/nvfp4"
    local ids = ids_file("b.txt", 400)
    assert(assert(nb.plan(recipe("NVFP4", "modelopt", ids), assert(nb.open(MODEL)))):run(dir))
    local out, name = assert(nb.open(dir)), "model.layers.1.self_attn.k_proj"
    local r = assert(calibrate.ranges(assert(nb.open(MODEL)), { [name] = true }, { ids = ids, samples = 8, length = 16 }))[name]
    local absmax = math.max(-r[1], r[2])
    assert.is_true(math.abs(one(out, name .. ".input_scale") / (absmax / 2688) - 1) < 1e-6)
    assert.is_true(math.abs(out:input(name).global / (2688 / absmax) - 1) < 1e-6)
  end)

  it("stopped in the text or between modules, goes on and writes the same bytes", function()
    local long = recipe("FP8", "fp8", ids_file("long.txt", 63 * 256))
    long.calibrate.length, long.calibrate.samples = 64, 256 -- four batches
    local function run(dir, stop)
      local ck, batches = assert(nb.open(MODEL)), 0
      local ok, err = pcall(function()
        assert(assert(nb.plan(long, ck)):run(dir, { progress = function(p)
          if p.name == "calibration" then batches = batches + 1 end
          if stop and stop(p, batches) then error("interrupted", 0) end
        end }))
      end)
      return ok, err, batches
    end
    assert.same({ true, nil, 4 }, { run(root .. "/whole") })
    local dir = root .. "/parts"
    local ok, err = run(dir, function(_, batches) return batches == 2 end)
    assert.same({ false, "interrupted" }, { ok, err })
    local batches
    ok, err, batches = run(dir, function(p) return p.name and p.name:find "layers.1" end)
    assert.same({ false, "interrupted", 2 }, { ok, err, batches })
    ok, err, batches = run(dir)
    assert.same({ true, nil, 0 }, { ok, err, batches })
    assert.equal(files.read(root .. "/whole/model.safetensors"), files.read(dir .. "/model.safetensors"))
  end)

  it("an expert that no token chose gets what its siblings saw", function()
    local ids = ids_file("few.txt", 12)
    local r = recipe("FP8", "fp8", ids)
    r.calibrate.length, r.calibrate.samples = 3, 1
    local ck = assert(nb.open "spec/models/parity/qwen3-moe")
    local plan = assert(nb.plan(r, ck))
    assert(plan:run(root .. "/moe"))
    local out = assert(nb.open(root .. "/moe"))
    local unseen, wanted = 0, calibrate.wanted(plan)
    local seen = assert(calibrate.ranges(ck, wanted, { ids = ids, length = 3, samples = 1 }))
    for name in pairs(wanted) do
      local scale = one(out, name .. ".input_scale")
      assert.is_true(scale > 0 and scale < math.huge)
      if not seen[name] then unseen = unseen + 1 end
    end
    assert.is_true(unseen > 0)
  end)

  it("is refused without a text, before anything is made; the plan says so", function()
    local plan = assert(nb.plan({ name = "no", scheme = "FP8", output = { format = "fp8" } }, assert(nb.open(MODEL))))
    assert.matches("running needs a text to calibrate with", table.concat(plan.notes, "\n"))
    local r, msg, code = plan:run(root .. "/refused")
    assert.is_nil(r)
    assert.matches("needs the scale of the layer's input, which comes from calibration: name a text", msg)
    assert.equal("einval", code)
    assert.is_falsy(checkpoint.exists(root .. "/refused"))
  end)

  it("takes scales that a script sets", function()
    local plan = assert(nb.plan({ name = "own", scheme = "FP8", output = { format = "fp8" } }, assert(nb.open(MODEL))))
    plan.input_scales = {}
    for _, job in ipairs(plan.jobs) do plan.input_scales[job.name] = { scale = 0.5 } end
    assert(plan:run(root .. "/own"))
    assert.equal(0.5, one(assert(nb.open(root .. "/own")), "model.layers.0.mlp.up_proj.input_scale"))
  end)

  it("says what a recipe's calibrate lacks", function()
    local function refused(c, pattern)
      local r, msg = nb.recipe { name = "x", scheme = "FP8", calibrate = c }
      assert.is_nil(r)
      assert.matches(pattern, msg)
    end
    refused({ text = "a", ids = "b" }, "calibrate: text and ids are both there; it takes one of them")
    refused({ text = "a", samples = 0 }, "calibrate: samples must be a whole number of at least 1, found 0")
    refused({ text = "a", length = 1.5 }, "calibrate: length must be a whole number of at least 2, found 1.5")
    refused({ text = "a", seed = -1 }, "calibrate: seed must be a whole number of at least 0, found %-1")
    refused({ text = "a", sample = 3 }, 'unknown key "sample"; did you mean "samples"')
  end)
end)

describe("calibration's figures", function()
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  it("tiny-llama in static FP8 by its calibration tokens: llm-compressor's divergence", function()
    local dir = root .. "/tiny"
    local plan = assert(nb.plan({ name = "tiny", scheme = "FP8", output = { format = "fp8" }, calibrate = { ids = IDS, samples = 12 } },
      assert(nb.open "spec/models/tiny-llama")))
    assert(plan:run(dir))
    local r = assert(nb.eval.run { model = assert(nb.open(dir)), against = assert(nb.open "spec/models/tiny-llama"), context = 256,
      windows = 6, ids = "spec/models/eval/test_tokens.safetensors" })
    assert.is_true(r.kl > 0.0009 and r.kl < 0.0018, r.kl) -- 0.00131 over all windows
  end)
end)
