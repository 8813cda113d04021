-- Plans and runs: decisions with reasons, streaming, proof, resumption (issue "First light", DESIGN 1).
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"

local model_dir = "spec/models/tiny-llama"
local scratch_dirs = {}

local function scratch()
  local dir = os.tmpname()
  os.remove(dir)
  scratch_dirs[#scratch_dirs + 1] = dir
  return dir
end

local function sh(command) return os.execute(command .. " >/dev/null 2>&1") end

local function digest(dir)
  local p = io.popen(("cd %q && find . -type f | sort | xargs sha256sum"):format(dir))
  local text = p:read "*a"
  p:close()
  return text
end

local function plan(recipe, model)
  local r, why = nb.recipe(recipe)
  assert(r, why)
  return nb.plan(r, model or assert(nb.open(model_dir)))
end

teardown(function()
  for _, dir in ipairs(scratch_dirs) do os.execute(("rm -rf %q"):format(dir)) end
end)

describe("plan", function()
  it("decides every module and says why", function()
    local p = assert(plan { name = "t", scheme = "W4A16", group = 64,
      skip = { "*.layers.0.*" }, rules = { { "*.down_proj", scheme = "W8A16" } } })
    local by = {}
    for _, m in ipairs(p:totable().modules) do by[m.name] = m end
    assert.equal('skip "*.layers.0.*"', by["model.layers.0.mlp.up_proj"].reason)
    assert.equal('rule 1 "*.down_proj"', by["model.layers.1.mlp.down_proj"].reason)
    assert.equal("W8A16 g64 sym", by["model.layers.1.mlp.down_proj"].scheme)
    assert.equal("default", by["model.layers.1.mlp.up_proj"].reason)
    assert.equal("lm_head = false", by["lm_head"].reason)
    assert.equal("copy", by["model.norm"].action)
  end)

  it("leaves a router as it is, whatever the default and the rules say", function()
    local p = assert(plan({ name = "t", scheme = "W4A16", group = 64, rules = { { "*.layers.1.*", scheme = "W8A16" } } },
      assert(nb.open "spec/models/tiny-moe")))
    local routers = 0
    for _, m in ipairs(p:totable().modules) do
      if m.name:find "%.mlp%.gate$" then
        routers = routers + 1
        assert.equal("copy", m.action)
        assert.equal("router: consumers load it unquantized", m.reason)
      end
    end
    assert.equal(3, routers)
    local ignored = { unpack(p.quantization_config.ignore) }
    table.sort(ignored)
    assert.same({ "lm_head", "re:^model\\.layers\\.\\d+\\.mlp\\.gate$" }, ignored)
  end)

  local refusals = {
    { "a linear layer that nothing names", { rules = { { "*.q_proj", scheme = "W4A16" } } },
      "model.layers.0.mlp.down_proj %[256×768%]: nothing in the recipe names this linear layer" },
    { "a group that does not divide the inputs", { scheme = "W4A16", group = 96 }, "96" },
    { "an unknown scheme", { scheme = "W4A17" }, "W4A17" },
    { "fused siblings that disagree", { scheme = "W4A16", rules = { { "*.2.self_attn.v_proj", scheme = "W8A16" } } },
      "model.layers.2.self_attn: q_proj .* and v_proj .* are fused as qkv_proj" },
    { "another model", { scheme = "W4A16", model = { model_type = "qwen3" } }, "is for model_type = qwen3; tiny%-llama has llama" },
    { "an unknown method", { scheme = "W4A16", method = "gptqq" }, "gptqq" },
    { "an unknown output", { scheme = "W4A16", output = { format = "awqq" } }, 'unknown format "awqq"; did you mean "awq"%?' },
    { "patterns that match nothing at all", { skip = { "*" }, scheme = "W4A16" }, "quantizes none" },
    { "what the format cannot hold", { scheme = "W8A16", output = { format = "awq" } }, "4 bits" },
  }
  for _, case in ipairs(refusals) do
    it("refuses " .. case[1], function()
      case[2].name = "t"
      local p, msg, code = plan(case[2])
      assert.is_nil(p)
      assert.is_string(code)
      assert.matches(case[3], msg)
    end)
  end

  it("asks `when` with the weight's statistics, and reports its mistakes", function()
    local p = assert(plan { name = "t", scheme = "W4A16", rules = {
      { "*.down_proj", scheme = "W8A16", when = function(w) return w.kurtosis > -10 and w.k == 768 end } } })
    assert.equal("W8A16 g128 sym", p:totable().modules[#p.jobs].scheme or "W8A16 g128 sym")
    local _, msg = plan { name = "t", scheme = "W4A16", rules = { { "*", when = function(w) return w.kurtosys > 1 end } } }
    assert.matches('has no "kurtosys"; did you mean "kurtosis"%?', msg)
  end)

  it("notes patterns that match nothing", function()
    local p = assert(plan { name = "t", scheme = "W4A16", skip = { "visual.*" },
      rules = { { "*.down_proj", scheme = "W8A16", when = function() return false end } } })
    assert.same({ 'pattern "visual.*" matches no module' }, p.notes)
  end)
end)

describe("run", function()
  it("writes a checkpoint that reads back as planned, side files byte for byte", function()
    local dir = scratch()
    local p = assert(plan { name = "t", scheme = "W4A16", method = "rtn" })
    local result = assert(p:run(dir))
    assert.equal(#p.jobs, result.proven)
    assert.equal(0, sh(("cmp %s/tokenizer.json %s/tokenizer.json"):format(model_dir, dir)))
    local m = assert(nb.open(dir))
    local rec = m:module "model.layers.3.mlp.gate_proj"
    assert.equal(4, rec.scheme.bits)
    local q = assert(m:quantized "model.layers.3.mlp.gate_proj")
    local direct = nb.quant.quantize(assert(assert(nb.open(model_dir)):weight "model.layers.3.mlp.gate_proj"),
      rec.scheme, { method = "rtn" })
    assert.is_true(q.codes:equal(direct.codes))
    assert.equal("compressed-tensors", m.config.quantization_config.quant_method)
    assert.is_nil(checkpoint.exists(dir .. "/.nibble-journal"))
  end)

  it("gives the same bytes for any number of threads, tile size and instruction set", function()
    local C = require("nibble.ffi").C
    local reference
    finally(function()
      C.nb_threads_set(0)
      C.nb_cpu_limit(-1)
    end)
    for _, method in ipairs { "rtn", "mse" } do
      reference = nil
      for _, way in ipairs { { 1, -1 }, { 2, -1 }, { 3, 0 }, { 2, tonumber(C.NB_CPU_AVX2) } } do
        C.nb_threads_set(way[1])
        C.nb_cpu_limit(way[2])
        local dir = scratch()
        assert(assert(plan { name = "t", scheme = "W4A16", group = 64, method = method }):run(dir, { ahead_bytes = way[1] * 10000 }))
        reference = reference or digest(dir)
        assert.equal(reference, digest(dir))
      end
    end
  end)

  it("writes the same plan into another folder as well", function()
    local one, two = scratch(), scratch()
    local p = assert(plan { name = "t", scheme = "W4A16", method = "rtn" })
    assert(p:run(one))
    assert(p:run(two))
    assert.equal(digest(one), digest(two))
  end)

  -- A writer that damages one byte of the tensors whose names match, on their way to the file or in it.
  local function damaging(pattern)
    local whole = checkpoint.writer
    finally(function() checkpoint.writer = whole end)
    checkpoint.writer = function(options)
      local w = assert(whole(options))
      local put = function(_, name, t)
        if name:match(pattern) then
          t = t:clone()
          local bytes = t:as("u8", { t:bytes() })
          bytes:set(1, (bytes:get(1) + 1) % 256)
        end
        return w:put(name, t)
      end
      local repack = function(_, name, ...)
        if name:match(pattern) then require("nibble.ffi").C.nb_debug_damage_write(1) end
        return w:repack(name, ...)
      end
      return setmetatable({ put = put, repack = repack }, { __index = function(_, key)
        local value = w[key]
        return type(value) == "function" and function(_, ...) return value(w, ...) end or value
      end })
    end
  end

  for what, pattern in pairs { codes = "1.mlp.up_proj.weight_packed$", scales = "1.mlp.up_proj.weight_scale$",
                               ["a copied tensor"] = "model.norm.weight$" } do
    it("finds " .. what .. " that were written wrong, and leaves no output", function()
      damaging(pattern)
      local dir = scratch()
      local ok, msg, code = assert(plan { name = "t", scheme = "W4A16", method = "rtn" }):run(dir)
      assert.is_nil(ok)
      assert.equal("eformat", code)
      assert.matches("what was written does not decode to what was meant", msg)
      assert.is_nil(checkpoint.exists(dir))
    end)
  end

  for _, part in ipairs { "weight_packed", "weight_scale", "weight_zero_point" } do
    it("finds a converted " .. part .. " that was written wrong", function()
      damaging("q_proj." .. part .. "$")
      local dir = scratch()
      local ok, msg = nb.convert.to(assert(nb.open "spec/interop/autoawq-gemm-w4g128"), "compressed-tensors", dir)
      assert.is_nil(ok)
      assert.matches("q_proj: what was written does not decode", msg)
      assert.is_nil(checkpoint.exists(dir))
    end)
  end

  it("is done at once when it was done before, and refuses another's folder", function()
    local dir = scratch()
    local p = assert(plan { name = "t", scheme = "W4A16", method = "rtn" })
    assert(p:run(dir))
    local before = digest(dir)
    assert.equal("complete", assert(p:run(dir)).state)
    assert.equal(before, digest(dir))
    local other = assert(plan { name = "t", scheme = "W8A16", method = "rtn" })
    local ok, msg = other:run(dir)
    assert.is_nil(ok)
    assert.matches("holds the finished output of another plan", msg)
    assert.equal(before, digest(dir))
  end)

  it("says again that a bound was missed when the output is already complete", function()
    local dir = scratch()
    local recipe = { name = "t", scheme = "W4A16", method = "rtn", accept = { sqnr_db = 60 } }
    local first = assert(assert(plan(recipe)):run(dir))
    local again = assert(assert(plan(recipe)):run(dir))
    assert.same({ false, "complete", false }, { first.accepted, again.state, again.accepted })
    assert.equal(first.why, again.why)
    assert.matches("complete already, and every module was proven when it was written; worst model", tostring(again))
  end)

  it("accepts a weight that loses nothing", function()
    local model, dir = scratch(), scratch()
    local name = "model.layers.0.mlp.up_proj.weight"
    local w = assert(checkpoint.writer { dir = model, tensors = { { name = name, dtype = "bf16", shape = { 64, 64 } } } })
    assert(w:put(name, nb.tensor("bf16", { 64, 64 })))
    assert(w:finish())
    assert(checkpoint.write_file(model .. "/config.json", '{"model_type": "llama"}'))
    local recipe = { name = "t", scheme = "W4A16", group = 32, method = "rtn", accept = { sqnr_db = 10 } }
    local result = assert(assert(plan(recipe, assert(nb.open(model)))):run(dir))
    assert.is_true(result.accepted)
    assert.is_nil(result.worst)
  end)

  it("refuses a folder with other files and leaves them alone", function()
    local dir = scratch()
    os.execute(("mkdir -p %s && echo mine > %s/notes.txt"):format(dir, dir))
    local ok, msg = assert(plan { name = "t", scheme = "W4A16" }):run(dir)
    assert.is_nil(ok)
    assert.matches("exists and holds other files %(notes.txt%)", msg)
    assert.equal("mine\n", io.open(dir .. "/notes.txt"):read "*a")
  end)

  it("leaves no folder behind when the weights cannot be quantized", function()
    local bad, dir = scratch(), scratch()
    os.execute(("cp -r %s %s && chmod -R u+w %s"):format(model_dir, bad, bad))
    local info = assert(nb.open(bad)):info "model.layers.2.mlp.up_proj.weight"
    collectgarbage()
    -- one bf16 NaN in the middle of the weight
    local f = assert(io.open(bad .. "/model.safetensors", "r+b"))
    local header = f:read(8)
    local n = 0
    for i = 8, 1, -1 do n = n * 256 + header:byte(i) end
    local begin = f:read(n):match('"model%.layers%.2%.mlp%.up_proj%.weight":%b{}'):match '"data_offsets":%s*%[(%d+)'
    f:seek("set", 8 + n + tonumber(begin) + 2 * (5 * 256 + 7))
    f:write "\192\127"
    f:close()
    local ok, msg, code = assert(plan({ name = "t", scheme = "W4A16" }, assert(nb.open(bad)))):run(dir)
    assert.is_nil(ok)
    assert.equal("eformat", code)
    assert.matches("model%.layers%.2%.mlp%.up_proj", msg)
    assert.matches("[Nn]a[Nn]", msg)
    assert.is_nil(checkpoint.exists(dir))
    assert.equal(256 * 768 * 2, info.bytes)
  end)

  it("goes on after kill -9 at any moment, to the same bytes", function()
    local script = scratch() .. ".lua"
    local f = assert(io.open(script, "w"))
    f:write(([[
      local nb = require "nibble"
      local p = assert(nb.plan(assert(nb.recipe { name = "kill", scheme = "W4A16", group = 32, method = "mse" }), assert(nb.open %q)))
      assert(p:run(arg[1], { ahead_bytes = 1 }))]]):format(model_dir))
    f:close()
    local build = os.getenv "NIBBLE_BUILD" or "build"
    local run = ("%s/nibble %s "):format(build, script)
    local whole, dir = scratch(), scratch()
    assert.equal(0, os.execute(run .. whole))
    local expected, finished = digest(whole), 0
    math.randomseed(20)
    for i = 1, 20 do
      local wait = math.random() * 0.35
      os.execute(("%s %s >/dev/null 2>&1 & p=$!; sleep %.3f; kill -9 $p 2>/dev/null; wait $p 2>/dev/null"):format(run, dir, wait))
      if checkpoint.exists(dir .. "/nibble.json") and not checkpoint.exists(dir .. "/.nibble-journal") then
        finished = finished + 1
        assert.equal(expected, digest(dir))
        if i < 20 then os.execute("rm -rf " .. dir) end
      end
    end
    assert.equal(0, os.execute(run .. dir))
    assert.equal(expected, digest(dir))
    os.remove(script)
  end)
end)
