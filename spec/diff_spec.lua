-- Two checkpoints compared after dequantization: figures against those of whole dequantized weights for every form of a
-- weight, on every instruction set and number of threads; names that are reconciled; what is only in one; the command.
local ffi = require "ffi"
local nb = require "nibble"
local nffi = require "nibble.ffi"
local C = nffi.C
local command = require "spec.support.command"
local files = require "spec.support.files"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme

local up = "model.layers.0.mlp.up_proj"

local function checkpoint(tensors, config, name)
  local ck = support.checkpoint(tensors, config)
  ck.modules, ck.name = formats.modules, name or "fake"
  return ck
end

-- A float weight near another one, with room for a large error.
local function near(w, dtype)
  local t = nb.tensor(dtype or "bf16", w:size())
  for i = 1, w:numel() do t:set(i, w:get(i) * (1 + math.sin(i) * 0.05) + 1e-4 * math.cos(i * 3)) end
  return t
end

local function plain(w, name) return checkpoint({ [(name or up) .. ".weight"] = w }) end

-- A quantized module in a format, alone in a checkpoint; -> checkpoint, its weight as float32
local function stored(format, words, n, k, dtype, seed)
  local q = support.quantized(scheme.parse(words), n, k, dtype or "bf16", seed)
  if q.scales:type() == "f32" then -- far from one another
    for i = 1, q.scales:numel() do q.scales:set(i, 0.01 * (1 + i * 7 % 5)) end
  end
  local tensors = assert(support.store(format, up, q))
  local rec = formats.target(format, up, q.scheme, n, k, { dtype = dtype })
  local ck = checkpoint(tensors, assert(formats.get(format).config { rec }))
  ck.quantization.config.quant_method = ck.quantization.config.quant_method or format
  return ck, q:dequantize "f32", tensors
end

local function close(want, got, tolerance, what)
  assert.is_true(math.abs(want - got) <= (tolerance or 1e-5) * math.abs(want), ("%s: %.9g, expected %.9g"):format(what, got, want))
end

-- The entry of the one module, against the comparison of two whole float32 weights in doubles.
local function agrees(entry, a, b)
  local want = nb.compare(a, b)
  close(want.mse, entry.mse, nil, "mse")
  close(want.sqnr_db, entry.sqnr_db, nil, "sqnr")
  assert.is_true(math.abs(want.cosine - entry.cosine) < 1e-6, ("cosine: %.9f, expected %.9f"):format(entry.cosine, want.cosine))
  close(want.max_abs, entry.max_abs, nil, "max")
  assert.equal(want.worst_row, entry.worst_row)
  local at = { entry.max_row, entry.max_column }
  close(entry.max_abs, math.abs(a:get(at) - b:get(at)), 1e-6, "where the maximum is")
end

local function each_path(fn)
  for _, features in ipairs { 0, tonumber(C.NB_CPU_AVX2), -1 } do
    for _, threads in ipairs { 1, 3 } do
      C.nb_cpu_limit(features)
      C.nb_threads_set(threads)
      fn()
    end
  end
end

local function bits(e)
  return ("%a %a %a %a %d %d %d"):format(e.mse, e.sqnr_db, e.cosine, e.max_abs, e.max_row, e.max_column, e.worst_row)
end

-- format, scheme, n, k, dtype of scales: every form that C unpacks itself, and those that are read by tiles.
local forms = {
  { "ct", "W4A16 g128 sym", 72, 1280 }, { "ct", "W4A16 g32 asym", 264, 2080 }, { "ct", "W4A16 channel sym", 40, 100 },
  { "ct", "W3A16 g32 sym", 40, 96 }, { "ct", "W8A16 channel asym", 64, 160 }, { "ct", "W4A16 tensor sym", 24, 96 },
  { "ct", "W4A16 g32 sym actorder", 48, 256 }, { "ct", "W4A16 g128 sym", 40, 384, "f32" }, { "ct", "W8A8", 32, 96 }, { "ct", "W4A16 g96 sym", 24, 1152 },
  { "gptq", "W4A16 g128 asym", 328, 1152, "f16" }, { "gptq", "W3A16 g32 sym", 64, 96, "f16" }, { "gptq_v2", "W8A16 g64 asym", 32, 192, "f16" },
  { "gptq", "W4A16 g64 sym actorder", 64, 512, "f16" }, { "awq", "W4A16 g128 asym", 136, 4224, "f16" }, { "awq", "W4A16 channel asym", 24, 72, "f16" },
  { "fp8", "FP8_BLOCK", 160, 264, "f32" }, { "fp8", "FP8_DYNAMIC tensor", 32, 96, "f32" }, { "ct", "NVFP4A16", 48, 96 },
  { "ct", "MXFP4A16", 48, 96 }, { "modelopt", "NVFP4A16", 48, 96 },
}

describe("diff", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  for _, f in ipairs(forms) do
    it(("compares floats with %s %s [%d×%d], the same bits on every path"):format(f[1], f[2], f[3], f[4]), function()
      local words, actorder = f[2]:gsub(" actorder", "")
      local s = scheme.parse(words, actorder > 0 and { actorder = "group" } or nil)
      local q = support.quantized(s, f[3], f[4], f[5] or "bf16")
      local rec = formats.target(f[1], up, q.scheme, f[3], f[4], { dtype = f[5] })
      local b = checkpoint(assert(support.store(f[1], up, q, { dtype = f[5] })), assert(formats.get(f[1]).config { rec }))
      local weight = q:dequantize "f32"
      local w = near(weight)
      local a, seen = plain(w), nil
      each_path(function()
        local r = assert(nb.diff(a, b))
        seen = seen or bits(r[1])
        assert.equal(seen, bits(r[1]))
        local back = assert(nb.diff(b, a))[1]
        assert.same({ r[1].mse, r[1].max_abs }, { back.mse, back.max_abs })
      end)
      local r = assert(nb.diff(a, b))
      assert.equal(1, #r)
      agrees(r[1], w:cast "f32", weight)
      agrees(assert(nb.diff(b, a))[1], weight, w:cast "f32")
    end)
  end

  -- What the kernels are given: values, scales and blocks of any size, straight to C.
  local function weight(values, scales, rows, columns)
    local w = ffi.new "nb_weight"
    w.n, w.k, w.rows, w.columns, w.values, w.scales = values:size(1), values:size(2), rows or 1, columns or 1, values, scales
    return w
  end

  local function sums_of(a, b)
    local c = ffi.new "nb_comparison"
    nffi.must(C.nb_weight_compare(c, a, b))
    local text = ("%a %a %a %a %a"):format(c.error2, c.a2, c.b2, c.dot, c.max_abs)
    return ("%s %d %d %d"):format(text, tonumber(c.max_at), tonumber(c.odd), tonumber(c.worst_row)), c
  end

  -- n, k, rows and columns of a block, dtype of scales, of floats; what is in the codes and scales.
  local e4m3 = {
    { 5, 4128, 1, 48, "f32", "bf16" }, { 130, 272, 128, 128, "bf16", "bf16" }, { 9, 64, 9, 64, "f32", "f16" }, { 3, 2064, 1, 2064, "f16", "f32" },
    { 4, 100, 2, 16, "f32", "bf16" }, { 4, 96, 2, 24, "f32", "bf16" }, -- no whole steps
    { 4, 96, 1, 96, "f32", "bf16", nan = { 1, 17 }, code = 0x7f },
    { 4, 96, 1, 96, "f32", "bf16", nan = { 3, 96 }, code = 0xff }, { 4, 96, 1, 32, "f32", "bf16", factor = 0.3 },
    { 4, 96, 1, 32, "f32", "f32", scale = 2 ^ -127 }, { 4, 96, 1, 32, "f32", "f32", scale = 2 ^ -141 },
    { 4, 96, 1, 32, "f32", "f32", scale = 2 ^ 125 }, { 4, 96, 1, 32, "f32", "f32", scale = 0 / 0 }, { 4, 96, 1, 32, "f32", "f32", scale = math.huge },
    { 4, 96, 1, 32, "f32", "f32", scale = 2 ^ 125, zeros = true },
  }
  it("decodes every FP8 code under any scale, the same bits on every path", function()
    for i, case in ipairs(e4m3) do
      local n, k, rows, columns, scale_dtype, dtype = unpack(case)
      local rnd, codes = support.random(i), nb.tensor("u8", { n, k })
      for j = 1, n * k do
        local code = rnd(256)
        codes:set(j, case.zeros and j > 32 and j <= 64 and code % 2 * 128 or code % 128 == 127 and code - 1 or code)
      end
      if case.nan then codes:set(case.nan, case.code) end
      codes = codes:as("f8_e4m3", { n, k })
      local scales = nb.tensor(scale_dtype, { math.ceil(n / rows), math.ceil(k / columns) })
      for j = 1, scales:numel() do scales:set(j, (1 + rnd(100) / 64) * 0.01) end
      if case.scale then scales:set(2, case.scale) end
      local decoded = nb.tensor("f32", { n, k })
      nffi.must(C.nb_dequantize_float(decoded, codes, scales, nil, rows, columns))
      if case.factor then nffi.must(C.nb_scales_multiply(decoded, decoded, case.factor)) end
      local w, first, back = near(decoded, dtype), nil, nil
      if case.nan then w:set(case.nan, 1) end
      local x, y = weight(w), weight(codes, scales, rows, columns)
      y.factor = case.factor or 0
      each_path(function()
        first, back = first or (sums_of(x, y)), back or (sums_of(y, x))
        assert.same({ i, first, back }, { i, (sums_of(x, y)), (sums_of(y, x)) })
      end)
      local want, _, c = nb.compare(w, decoded), sums_of(x, y)
      close(want.mse * n * k, c.error2, nil, "case " .. i)
      close(want.max_abs, c.max_abs, 1e-6, "case " .. i)
      assert.equal(want.odd, tonumber(c.odd))
    end
  end)

  it("compares quantized weights of two formats with each other", function()
    local a, wa = stored("ct", "W4A16 g32 sym", 64, 256, "f16", 3)
    local b, wb = stored("awq", "W4A16 g128 asym", 64, 256, "f16", 4)
    agrees(assert(nb.diff(a, b))[1], wa, wb)
    local c, wc = stored("fp8", "FP8_BLOCK", 64, 256, "f32", 5)
    agrees(assert(nb.diff(b, c))[1], wb, wc)
    local d, wd = stored("ct", "W8A8", 1100, 1152, "bf16", 6) -- in tiles, which cut no block of the other's
    local e, we = stored("fp8", "FP8_BLOCK", 1100, 1152, "f32", 7)
    agrees(assert(nb.diff(d, e))[1], wd, we)
  end)

  it("finds the same codes in another format the same, and the same bytes equal", function()
    local q = support.quantized(scheme.parse "W4A16 g32 asym", 64, 128, "f16")
    local function as(format)
      local rec = formats.target(format, up, q.scheme, 64, 128, { dtype = "f16" })
      return checkpoint(assert(support.store(format, up, q, { dtype = "f16" })), assert(formats.get(format).config { rec }))
    end
    local r = assert(nb.diff(as "awq", as "gptq_v2"))
    assert.same({ true, nil, 0, 1 }, { r[1].same, r[1].equal, r[1].mse, r[1].cosine })
    assert.is_nil(r:missed { equal = true, sqnr_db = 100 })
    r = assert(nb.diff(as "awq", as "awq"))
    assert.is_true(r[1].equal)
    assert.same({ 1, 1, 1 }, { r.totals.compared, r.totals.equal, r.totals.same })
  end)

  it("sums very large and very small numbers in doubles, and counts NaN apart", function()
    for _, scale in ipairs { 1e-30, 1e30, 1 } do
      local a, b = nb.tensor("f32", { 20, 300 }), nb.tensor("f32", { 20, 300 })
      for i = 1, a:numel() do
        a:set(i, math.sin(i) * scale)
        b:set(i, a:get(i) + math.cos(i * i) * scale * 1e-3)
      end
      agrees(assert(nb.diff(plain(a), plain(b)))[1], a, b)
      a:set({ 3, 7 }, 0 / 0)
      b:set({ 4, 8 }, math.huge)
      b:set({ 5, 9 }, 0 / 0)
      a:set({ 5, 9 }, 0 / 0)
      local e = assert(nb.diff(plain(a), plain(b)))[1]
      assert.equal(2, e.odd)
      local r = assert(nb.diff(plain(a), plain(b)))
      assert.matches(" 2 NaN/inf ", tostring(r), 1, true)
      assert.equal(up .. ": 2 values differ by a NaN or an infinity", r:missed { sqnr_db = 1 })
      agrees(e, a, b)
    end
  end)

  it("loses no small error beside a large weight, no small weight beside a large error", function()
    local a, b = nb.tensor("f32", { 2, 64 }), nb.tensor("f32", { 2, 64 })
    for _, v in ipairs { { 1, 2 ^ -75 }, { 2 ^ -75, 1 } } do
      for _, t in ipairs { a, b } do t:fill(0):set({ 1, 1 }, v[1]) end
      b:set({ 1, 5 }, v[2])
      agrees(assert(nb.diff(plain(a), plain(b)))[1], a, b)
    end
  end)

  it("names the first of equal largest differences, whatever the order of the work", function()
    local q = support.quantized(scheme.parse "W4A16 g128 asym", 136, 4224, "f16")
    q.scales:fill(0.5) -- so that sums and differences are exact
    local rec = formats.target("awq", up, q.scheme, 136, 4224, { dtype = "f16" })
    local b = checkpoint(assert(support.store("awq", up, q, { dtype = "f16" })), assert(formats.get("awq").config { rec }))
    local w = q:dequantize "f32"
    for _, at in ipairs { { 9, 10 }, { 5, 4200 }, { 131, 7 }, { 5, 4201 } } do w:set(at, w:get(at) + 64) end
    each_path(function()
      local e = assert(nb.diff(plain(w), b))[1]
      assert.same({ 64, 5, 4200 }, { e.max_abs, e.max_row, e.max_column })
    end)
  end)

  it("keeps the cosine of weights of another size", function()
    local a, b = nb.tensor("f32", { 8, 2048 }), nb.tensor("f32", { 8, 2048 })
    for i = 1, a:numel() do
      a:set(i, math.sin(i))
      b:set(i, math.sin(i + 1) * 1e-6)
    end
    agrees(assert(nb.diff(plain(a), plain(b)))[1], a, b)
  end)

  it("compares norms, biases and odd dtypes, too", function()
    local function with(v)
      local t = { ["model.norm.weight"] = nb.tensor("bf16", { 64 }):fill(v), [up .. ".weight"] = nb.tensor("bf16", { 8, 64 }):fill(1),
        [up .. ".bias"] = nb.tensor("f32", { 8 }):fill(v), ["position.ids"] = nb.tensor("i64", { 5 }):fill(v),
        ["scalar.scale"] = nb.tensor("f32", {}):fill(v) }
      return checkpoint(t)
    end
    local r = assert(nb.diff(with(1), with(3), { sort = "name" }))
    local seen = {}
    for i, e in ipairs(r) do seen[i] = ("%s.%s %g %s"):format(e.module, e.tensor, e.mse, tostring(e.equal)) end
    assert.same({ up .. ".bias 4 nil", up .. ".weight 0 true", "model.norm.weight 4 nil", "position.ids 4 nil", "scalar.scale 4 nil" }, seen)
  end)

  it("says what is only in one, of another shape, or can't be read, and goes on", function()
    local function tensors(n) return { [up .. ".weight"] = nb.tensor("bf16", { n, 64 }):fill(n), ["model.norm.weight"] = nb.tensor("bf16", { 64 }) } end
    local a, b = tensors(8), tensors(16)
    a["model.layers.0.mlp.gate_proj.weight"] = nb.tensor("bf16", { 8, 64 })
    b["model.layers.0.mlp.down_proj.weight"] = nb.tensor("bf16", { 8, 64 })
    local r = assert(nb.diff(checkpoint(a, nil, "one"), checkpoint(b, nil, "two")))
    assert.same({ "model.layers.0.mlp.gate_proj" }, r.only_a)
    assert.same({ "model.layers.0.mlp.down_proj" }, r.only_b)
    assert.same({ { module = up, tensor = "weight", why = "[8x64] and [16x64]" } }, r.skipped)
    local text = tostring(r)
    assert.matches("only in one: model.layers.0.mlp.gate_proj", text, 1, true)
    assert.matches("not compared: " .. up .. ": [8x64] and [16x64]", text, 1, true)
    assert.matches("3 modules could not be compared", r:missed { equal = true })
    local q, _, broken = stored("ct", "W4A16 g32 sym", 64, 128, "bf16")
    broken[up .. ".weight_shape"]:set(2, 96)
    r = assert(nb.diff(plain(nb.tensor("bf16", { 64, 128 })), q))
    assert.matches("weight_shape says", r.skipped[1].why)
  end)

  it("reconciles the names of exporters, and a tied head, and says so", function()
    local w = near(nb.tensor("f32", { 8, 64 }):fill(1))
    local a = checkpoint { ["model.layers.0.mlp.up_proj.weight"] = w, ["model.embed_tokens.weight"] = w }
    local b = checkpoint { ["language_model.model.layers.0.mlp.up_proj.weight"] = w, ["language_model.model.embed_tokens.weight"] = w,
      ["language_model.lm_head.weight"] = w }
    a.config = { tie_word_embeddings = true }
    local r = assert(nb.diff(a, b, { sort = "name" }))
    assert.same({ 3, 3 }, { r.totals.compared, r.totals.equal })
    assert.same({ 'names differ: "model." in one is "language_model.model." in the other (2 modules)',
      "fake has no head of its own: it is tied to model.embed_tokens" }, r.notes)
    assert.equal("language_model.model.embed_tokens", r[1].other)
    assert.same({}, r.only_b)
    local two = checkpoint { ["model.up.weight"] = w, ["up.weight"] = w } -- which of them is it?
    assert.is_nil((nb.diff(two, checkpoint { ["language_model.up.weight"] = w })))
    a.config.tie_word_embeddings = false
    assert.same({ "language_model.lm_head" }, assert(nb.diff(a, b)).only_b)
  end)

  it("sorts the worst first, by what is asked", function()
    local a, b = {}, {}
    for i, by in ipairs { 0.1, 0, 0.3, 0.2 } do
      local name = ("m.%d.weight"):format(i)
      a[name] = nb.tensor("f32", { 4, 32 }):fill(i)
      b[name] = nb.tensor("f32", { 4, 32 }):fill(i + by)
    end
    local function order(sort)
      local out = {}
      for i, e in ipairs(assert(nb.diff(checkpoint(a), checkpoint(b), { sort = sort }))) do out[i] = e.module:sub(3) end
      return table.concat(out)
    end
    assert.same({ "1342", "1234", "3412", "3412" }, { order(), order "name", order "mse", order "max" })
    assert.error_matches(function() nb.diff(checkpoint(a), checkpoint(b), { sort = "size" }) end, "sort is name, sqnr, mse, max, cosine")
    b["m.2.weight"]:set(1, 0 / 0)
    assert.equal("2134", order())
  end)

  it("reads GPT-OSS's fused experts one by one", function()
    local module = "model.layers.0.mlp.experts"
    local rnd = support.random(9)
    local blocks, scales = nb.tensor("u8", { 2, 8, 2, 16 }), nb.tensor("u8", { 2, 8, 2 })
    for i = 1, blocks:numel() do blocks:set(i, rnd(256)) end
    for i = 1, scales:numel() do scales:set(i, 118 + rnd(6)) end
    local tensors = { [module .. ".gate_up_proj_blocks"] = blocks, [module .. ".gate_up_proj_scales"] = scales }
    local a, floats = checkpoint(tensors, { quant_method = "mxfp4" }), {}
    for _, rec in ipairs(assert(formats.modules(a))) do floats[rec.name .. ".weight"] = near(assert(formats.weight(a, rec.name, "f32"))) end
    local r = assert(nb.diff(a, checkpoint(floats)))
    assert.equal(4, #r)
    for _, e in ipairs(r) do agrees(e, assert(formats.weight(a, e.module, "f32")), floats[e.module .. ".weight"]:cast "f32") end
  end)

  it("stops when it is asked to, and refuses what isn't there", function()
    local ck = plain(nb.tensor("bf16", { 8, 64 }))
    C.nb_stop_request()
    local ok, why = pcall(nb.diff, ck, ck)
    C.nb_stop_clear()
    assert.same({ false, "interrupted" }, { ok, why })
    local r, msg, code = nb.diff(ck, plain(nb.tensor("bf16", { 8, 64 }), "elsewhere"))
    assert.same({ nil, "fake and fake have no module in common", "einval" }, { r, msg, code })
    assert.error_matches(function() nb.diff(ck, 7) end, "b: expected a checkpoint or its path")
    assert.same({ nil, "eio" }, { (nb.diff("no/such", ck)), (select(3, nb.diff("no/such", ck))) })
  end)

  describe("as a command", function()
    local dir, made
    setup(function()
      dir = files.temporary()
      made = dir .. "/w4"
      local recipe = assert(nb.recipe { name = "w4", scheme = "W4A16", group = 32 })
      assert(assert(nb.plan(recipe, assert(nb.open "spec/models/parity/llama"))):run(made))
    end)
    teardown(function() files.remove(dir) end)

    it("prints a table, worst first, and keeps bounds", function()
      local r = command.run("diff spec/models/parity/llama " .. made)
      assert.equal(0, r.status, r.err)
      assert.matches("^module +scheme +SQNR dB", r.out)
      assert.matches("→ W4A16 g32 sym", r.out, 1, true)
      assert.matches("equal to the byte; the rest: SQNR %d", r.out)
      local last = 0
      for db in r.out:gmatch "sym +(%d+%.%d+) " do
        assert.is_true(tonumber(db) >= last)
        last = tonumber(db)
      end
      assert.is_true(last > 10)
      assert.equal(1, command.run("diff spec/models/parity/llama " .. made .. " --equal").status)
      r = command.run("diff spec/models/parity/llama " .. made .. " --sqnr 60")
      assert.equal(1, r.status)
      assert.matches("SQNR is %d+%.%d+ dB, expected 60 dB or more", r.err)
      assert.equal(0, command.run("diff spec/models/parity/llama " .. made .. " --sqnr 5").status)
      assert.equal(0, command.run(("diff %s %s --equal"):format(made, made)).status)
    end)

    it("prints one document, of the modules that a pattern matches", function()
      local r = command.run("diff spec/models/parity/llama " .. made .. " down_proj --json --sort name")
      local d = assert(nb.json.decode(r.out))
      assert.equal(d.totals.compared, #d.modules)
      assert.is_true(#d.modules > 0)
      for _, e in ipairs(d.modules) do assert.matches("down_proj", e.module) end
      assert.matches("no module in common that matches nothing", command.run("diff spec/models/parity/llama " .. made .. " nothing").err)
      assert.equal(2, command.run("diff spec/models/parity/llama").status)
    end)

    it("shows at most so many rows, and equal ones when asked", function()
      local r = command.run("diff spec/models/parity/llama " .. made .. " --limit 2")
      assert.matches("… %d+ more", r.out)
      assert.matches(" equal\n", command.run("diff spec/models/parity/llama " .. made .. " --all").out:gsub(" +\n", "\n"))
    end)
  end)
end)

