-- A forward pass with quantized activations: which layers quantize what, with which numbers, and what is said where
-- those are missing. Schemes are set by hand on a quantized checkpoint's records.
local nb = require "nibble"
local act = require "nibble.act"
local compute = require "nibble.compute"
local formats = require "nibble.formats"
local files = require "spec.support.files"
local command = require "spec.support.command"

local IDS = "spec/models/eval/test_tokens.safetensors"
local root

-- A checkpoint of 8-bit codes, made once for the model.
local made = {}
local function quantized(model)
  if not made[model] then
    local dir = root .. "/" .. model:gsub("/", "-")
    local plan = assert(nb.plan({ name = "w8", scheme = "W8A16", strategy = "channel", skip = { "*.mlp.gate" } },
      assert(nb.open("spec/models/" .. model))))
    assert(plan:run(dir))
    made[model] = dir
  end
  return assert(nb.open(made[model]))
end

-- The checkpoint with these activations where `where` (a pattern) matches.
local function with_activations(ck, activations, where)
  for _, rec in ipairs(assert(ck:modules())) do
    if rec.scheme and rec.name:find(where or "") then
      local s = {}
      for k, v in pairs(rec.scheme) do s[k] = v end
      s.activations = activations
      rec.scheme = s
    end
  end
  return ck
end

local fp8_token = { type = "float", bits = 8, symmetric = true, strategy = "token", dynamic = true }
local fp8_static = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = false }
local fp8_tensor = { type = "float", bits = 8, symmetric = true, strategy = "tensor", dynamic = true }
local nvfp4 = { type = "float", bits = 4, symmetric = true, strategy = "tensor_group", group = 16, dynamic = "local" }

local function ids_of(n)
  local ids = nb.tensor("i32", { n })
  for i = 1, n do ids:set(i, (i * 7919) % 250) end
  return ids
end

-- Every product of a pass: {x, w} as gemm got them; every quantization: {x, activations, options, out}.
local function traced(run)
  local gemm, quantize, trace = compute.gemm, act.quantize_dequantize, { products = {}, quantized = {} }
  compute.gemm = function(y, x, w, bias)
    table.insert(trace.products, { x = x:clone(), rows = w:size(1) })
    return gemm(y, x, w, bias)
  end
  act.quantize_dequantize = function(x, a, o)
    local before = x:clone()
    local out, msg, code = quantize(x, a, o)
    table.insert(trace.quantized, { x = before, a = a, o = o, out = out and out:clone() })
    return out, msg, code
  end
  local ok, err = pcall(run)
  compute.gemm, act.quantize_dequantize = gemm, quantize
  if not ok then error(err, 0) end
  return trace
end

describe("a pass with activations", function()
  setup(function() root = files.temporary() end)
  teardown(function() files.remove(root) end)

  it("CTM-FP8-02: q, k and v share one quantized input, as gate and up; each module's product gets its own", function()
    local ck = with_activations(quantized "parity/llama", fp8_token)
    local model = assert(nb.models.load(ck))
    local trace = traced(function() assert(model:hidden(ids_of(12), 6)) end)
    local c = model.c
    assert.equal(4 * c.layers, #trace.quantized)
    assert.equal(7 * c.layers, #trace.products)
    local from = { 1, 1, 1, 2, 3, 3, 4 }
    for i, product in ipairs(trace.products) do
      local q = trace.quantized[4 * math.floor((i - 1) / 7) + from[(i - 1) % 7 + 1]]
      assert.is_true(product.x:equal(q.out), "product " .. i)
      assert.is_true(assert(act.quantize_dequantize(q.x, fp8_token)):equal(q.out))
      assert.is_false(q.x:equal(q.out))
    end
  end)

  it("leaves modules without activations, and everything with activations none, alone", function()
    local function count(where, activations)
      local ck = with_activations(quantized "parity/llama", fp8_token, where)
      return #traced(function() assert(assert(nb.models.load(ck, { activations = activations })):hidden(ids_of(6), 6)) end).quantized
    end
    assert.equal(2, count "o_proj")
    assert.equal(4, count "k_proj" + count "gate_proj")
    assert.equal(0, count("", "none"))
    assert.equal(0, count "nothing")
  end)

  it("scales of a sequence don't depend on what else is in the batch", function()
    local ck = with_activations(quantized "parity/llama", fp8_tensor)
    local model = assert(nb.models.load(ck))
    local ids = ids_of(2 * 700)
    local trace = traced(function() assert(model:hidden(ids, 700)) end)
    assert.equal(6 * model.c.layers, #trace.quantized) -- the MLP in two chunks
    for _, q in ipairs(trace.quantized) do
      assert.equal(700, q.o.span)
      assert.equal(0, q.x:size(1) % 700)
    end
  end)

  it("experts quantize the rows they get, each with its own numbers", function()
    local ck = with_activations(quantized "parity/qwen3-moe", fp8_token, "experts")
    local model = assert(nb.models.load(ck))
    local trace = traced(function() assert(model:hidden(ids_of(9), 9)) end)
    assert.is_true(#trace.quantized > 0)
    for _, q in ipairs(trace.quantized) do
      assert.is_true(q.x:size(1) <= 9)
      assert.is_true(assert(act.quantize_dequantize(q.x, fp8_token)):equal(q.out))
    end
  end)

  it("quantizes what lm_head sees", function()
    local dir = root .. "/head"
    assert(assert(nb.plan({ name = "head", scheme = "W8A16", strategy = "channel", lm_head = true },
      assert(nb.open "spec/models/parity/llama"))):run(dir))
    local ck = assert(nb.open(dir))
    local plain = assert(assert(nb.models.load(ck)):hidden(ids_of(6), 6)):clone()
    local seen = assert(assert(nb.models.load(with_activations(ck, fp8_token, "lm_head"))):hidden(ids_of(6), 6))
    assert.is_true(assert(act.quantize_dequantize(plain, fp8_token)):equal(seen))
  end)

  it("CTM-NVFP4-13: static numbers come from the checkpoint's tensors, each module's own", function()
    local ck = with_activations(quantized "parity/llama", fp8_static)
    local values = {}
    for i, rec in ipairs(assert(ck:modules())) do
      if rec.scheme then
        values[rec.name] = i / 64
        rec.tensors.input_scale = { name = rec.name .. ".input_scale", dtype = "f32", shape = { 1 }, bytes = 4, params = 1 }
      end
    end
    local of = ck.tensor
    ck.tensor = function(self, name)
      local module = name:match "^(.*)%.input_scale$"
      if module then return nb.tensor("f32", { 1 }, { values[module] }) end
      return of(self, name)
    end
    local model = assert(nb.models.load(ck))
    local trace = traced(function() assert(model:hidden(ids_of(6), 6)) end)
    assert.equal(7 * model.c.layers, #trace.quantized) -- no two scales are alike, so nothing is shared
    assert.equal(values["model.layers.0.self_attn.k_proj"], trace.quantized[2].o.scale)
    local buffers = {}
    for i = 1, 3 do buffers[i] = trace.quantized[i].out end
    for i = 1, 3 do assert.is_true(trace.products[i].x:equal(buffers[i])) end
    values["model.layers.0.self_attn.k_proj"] = 0
    local x, msg, code = assert(nb.models.load(ck)):hidden(ids_of(6), 6)
    assert.is_nil(x)
    assert.matches("self_attn.k_proj: activations: the static scale is 0, expected a finite number above 0", msg)
    assert.equal("eformat", code)
  end)

  it("CTM-NVFP4-12: names the tensor of scales that is missing, and the way without it", function()
    local function refused(a, pattern, code)
      local ck = with_activations(quantized "parity/llama", a, "q_proj")
      local r, msg, why = nb.eval.run { model = ck, ids = ids_of(40), context = 8, bos = 1 }
      assert.is_nil(r)
      assert.matches(pattern, msg)
      assert.equal(code, why)
      assert.is_table((nb.eval.run { model = ck, ids = ids_of(40), context = 8, bos = 1, activations = "none" }))
    end
    refused(fp8_static, "layers.0.self_attn.q_proj: its activations are fp8 tensor static, but the tensor input_scale is "
      .. "missing; .*activations none", "eformat")
    refused(nvfp4, "q_proj: its activations are nvfp4, but the tensor input_global_scale is missing", "eformat")
    refused({ type = "int", bits = 8, symmetric = true, strategy = "channel", dynamic = false },
      'q_proj: activations: strategy = "channel", expected token', "eunsupported")
  end)

  it("a scale that is no single number is refused", function()
    local ck = with_activations(quantized "parity/llama", fp8_static, "q_proj")
    local rec = assert(formats.record(ck, "model.layers.0.self_attn.q_proj"))
    rec.tensors.input_scale = { name = "x", dtype = "f32", shape = { 2 } }
    local of = ck.tensor
    ck.tensor = function(self, name) return name == "x" and nb.tensor("f32", { 2 }) or of(self, name) end
    local x, msg = assert(nb.models.load(ck)):hidden(ids_of(6), 6)
    assert.is_nil(x)
    assert.matches("q_proj: input_scale is %[2%], expected one number", msg)
  end)
end)

describe("eval", function()
  setup(function() made, root = {}, files.temporary() end)
  teardown(function() files.remove(root) end)

  it("says what was done to inputs: stored or none", function()
    local function run(activations)
      return assert(nb.eval.run { model = with_activations(quantized "tiny-llama", fp8_token, "mlp"), ids = IDS, context = 256,
        windows = 2, activations = activations })
    end
    local stored, none = run(), run "none"
    assert.equal("stored", stored.activations)
    assert.same({ "fp8 token dynamic" }, stored.inputs)
    assert.equal("none", none.activations)
    assert.equal("[]", nb.json.encode(none.inputs))
    assert.is_true(stored.nll ~= none.nll and math.abs(stored.nll - none.nll) < 0.01)
    assert.error_matches(function() run "some" end, 'activations = "some", expected stored or none')
    local r = command.run { "eval", made["tiny-llama"], "--ids", IDS, "--context", "256", "--windows", "1",
      "--activations", "none", "--json" }
    assert.equal(0, r.status)
    assert.equal("none", nb.json.decode(r.out).activations)
    r = command.run { "eval", made["tiny-llama"], "--ids", IDS, "--activations", "non" }
    assert.same({ 2, "" }, { r.status, r.out })
    assert.matches('%-%-activations is stored or none, found "non"; did you mean "none"', r.err)
  end)
end)
