-- nb.stats and `nibble stats`: figures of tensors, quantized weights and checkpoints against the same counted plainly;
-- sorting, printing, what can't be read.
local nb = require "nibble"
local command = require "spec.support.command"
local files = require "spec.support.files"
local editor = require "spec.support.editor"

local function refused(f, ...)
  local ok, msg = pcall(f, ...)
  assert.is_false(ok)
  return msg
end

describe("stats of a tensor", function()
  it("count outliers beyond 6 standard deviations, zeros, NaN and infinities", function()
    local t = nb.tensor("f32", { 100, 100 })
    for i = 1, t:numel() do t:set(i, i % 2 == 0 and 1 or -1) end
    t:set(5, 50)
    t:set(6, -50)
    t:set(7, 0)
    t:set(8, 0 / 0)
    t:set(9, math.huge)
    t:set(10, -math.huge)
    local row = nb.stats(t)[1]
    assert.same({ 10000, 1, 2, 50, 1e-4 }, { row.numel, row.nan, row.inf, row.absmax, row.zeros })
    assert.is_true(math.abs(row.outliers - 2 / 9997) < 1e-12)
    local plain = t:stats()
    assert.same({ plain.mean, plain.std, plain.kurtosis }, { row.mean, row.std, row.kurtosis })
    assert.matches("NaN, inf\ntensor +f32 +10.0 k +50 +.* +3$", tostring(nb.stats(t)))
  end)

  it("of nothing, of one value and of constants have no outliers", function()
    for _, shape in ipairs { { 0 }, { 1 }, { 3000 } } do
      local row = nb.stats(nb.tensor("bf16", shape):fill(2))[1]
      assert.equal(0, row.outliers)
      assert.is_string(tostring(nb.stats(nb.tensor("bf16", shape))))
    end
  end)
end)

describe("stats of a quantized weight", function()
  it("are of the dequantized weight, and tell the scales", function()
    local w = assert(nb.open "spec/models/tiny-llama"):weight "model.layers.0.mlp.down_proj"
    local q = w:quantize { scheme = "W4A16", group = 128 }
    local row, plain = nb.stats(q)[1], nb.stats(q:dequantize())[1]
    for _, key in ipairs { "absmax", "mean", "std", "kurtosis", "zeros", "outliers", "numel" } do assert.equal(plain[key], row[key]) end
    local least, most = math.huge, 0
    for _, v in ipairs(q.scales:totable()) do least, most = math.min(least, v), math.max(most, v) end
    assert.same({ min = least, max = most, range = most / least, zeros = 0, odd = 0 }, row.scales)
    q.scales:set(1, 0)
    assert.same({ least, 1 }, { nb.stats(q)[1].scales.min, nb.stats(q)[1].scales.zeros })
  end)
end)

describe("stats of a checkpoint", function()
  local ck, all
  setup(function()
    ck = assert(nb.open "spec/models/tiny-llama")
    all = assert(nb.stats(ck))
  end)

  it("have a row for every tensor, by name in natural order", function()
    assert.equal(ck.count, #all)
    assert.equal("lm_head", all[1].name)
    for i, m in ipairs(ck:modules()) do assert.equal(m.name, all[i].name) end
    local w = ck:weight "model.layers.2.mlp.up_proj":stats()
    for _, row in ipairs(all) do
      if row.name == "model.layers.2.mlp.up_proj" then assert.same({ w.std, w.kurtosis }, { row.std, row.kurtosis }) end
    end
  end)

  it("take a pattern, lists and modules, and are sorted by any column", function()
    assert.equal(4, #nb.stats(ck, "down_proj"))
    assert.equal(4, #ck:grep("down_proj"):stats())
    assert.equal(1, #nb.stats(ck["model.norm"]))
    local sorted = nb.stats(ck, { pattern = "mlp", sort = "kurtosis" })
    for i = 2, #sorted do assert.is_true(sorted[i - 1].kurtosis >= sorted[i].kurtosis) end
    local by_name = {}
    for i, row in ipairs(sorted:sort "name") do by_name[i] = row.name end
    assert.same(ck:grep("mlp"):names(), by_name)
    for _, column in ipairs(require("nibble.stats").columns()) do assert.equal(12, #sorted:sort(column)) end
  end)

  it("name mistakes", function()
    assert.matches('no column "kurt"', refused(nb.stats, ck, { sort = "kurt" }), 1, true)
    assert.matches('no option "sorted"; did you mean "sort"?', refused(nb.stats, ck, { sorted = "std" }), 1, true)
    assert.matches("expected a tensor, a quantized weight, a checkpoint or modules", refused(nb.stats, {}), 1, true)
    assert.matches("expected a tensor", refused(nb.stats, nil), 1, true)
    assert.matches("expected a pattern or options", refused(nb.stats, ck, 7), 1, true)
    local none, msg = nb.stats(ck, "re:(")
    assert.is_nil(none)
    assert.matches("group without its )", msg, 1, true)
  end)

  it("go on where a module can't be read, and say why", function()
    local dir = files.temporary()
    editor.copy("spec/interop/autoawq-gemm-w4g128", dir .. "/bad", { weights = function(list)
      for _, t in ipairs(list) do
        if t.name:match "layers%.0.*scales$" then editor.poke(t, 0, "\0\126") end -- an f16 NaN
      end
    end })
    local result = assert(nb.stats(assert(nb.open(dir .. "/bad"))))
    local faults = 0
    for _, row in ipairs(result) do
      if row.fault then faults = faults + 1 else assert.is_number(row.std) end
    end
    assert.is_true(faults >= 1 and faults < #result)
    assert.matches("\nmodel.layers.0[^\n]*: .*NaN", tostring(result))
    assert.is_number(nb.json.decode(nb.json.encode(result:totable())).tensors[#result].numel)
    files.remove(dir)
  end)
end)

describe("nibble stats", function()
  it("prints a table or one document", function()
    local r = command.run { "stats", "spec/interop/autoawq-gemm-w4g128", "q_proj", "--sort", "scales" }
    assert.equal(0, r.status)
    assert.matches("^module +values +count +absmax +mean +std +kurtosis +>6 std +zero +scales +range\n", r.out)
    assert.matches("W4A16 g128 asym", r.out, 1, true)
    local document = nb.json.decode(command.run({ "stats", "spec/models/tiny-llama", "norm", "--json" }).out)
    assert.equal("spec/models/tiny-llama", document.model)
    assert.equal(9, #document.tensors)
    r = command.run { "stats", "spec/models/tiny-llama", "--sort", "kurtossis" }
    assert.same({ 2, "" }, { r.status, r.out })
    assert.matches('did you mean "kurtosis"', r.err, 1, true)
    r = command.run { "stats", "spec/models/tiny-llama", "no such name" }
    assert.same({ 2, "" }, { r.status, r.out })
    assert.matches("no module of spec/models/tiny-llama matches no such name", r.err, 1, true)
  end)
end)

describe("cells", function()
  local ffi = require "ffi"
  local C = require("nibble.ffi").C
  local function cells(a, b, rows, columns, kind)
    local out = nb.tensor("f64", { rows, columns })
    assert.equal(0, C.nb_cells(out, a, b, kind))
    return out:totable()
  end

  it("are what a plain loop finds, on every instruction set and number of threads", function()
    local n, k = 37, 300
    local a, b = nb.tensor("bf16", { n, k }), nb.tensor("f32", { n, k })
    for i = 1, n * k do
      a:set(i, math.sin(i * i) * (1 + i % 7))
      b:set(i, math.cos(i))
    end
    for kind, of in pairs { [0] = function(m) return m.most end, function(m) return math.sqrt(m.squares / m.count) end,
      function(m) return m.sum / m.count end } do
      for _, other in ipairs { false, b } do
        local found, at = cells(a, other or nil, 5, 7, kind), 0
        for r = 0, 4 do
          for c = 0, 6 do
            at = at + 1
            local m = { most = 0, squares = 0, sum = 0, count = 0 }
            for i = math.floor(r * n / 5), math.floor((r + 1) * n / 5) - 1 do
              for j = math.floor(c * k / 7), math.floor((c + 1) * k / 7) - 1 do
                local v = a:get { i + 1, j + 1 } - (other and other:get { i + 1, j + 1 } or 0)
                m.most, m.squares = math.max(m.most, math.abs(v)), m.squares + v * v
                m.sum, m.count = m.sum + v, m.count + 1
              end
            end
            assert.is_true(math.abs(of(m) - found[at]) <= 1e-12 * (1 + math.abs(found[at])))
          end
        end
        C.nb_cpu_limit(0)
        C.nb_threads_set(2)
        assert.same(found, cells(a, other or nil, 5, 7, kind))
        C.nb_cpu_limit(-1)
        C.nb_threads_set(0)
      end
    end
  end)

  it("of four-bit values begin on a byte", function()
    local t = nb.tensor("u4", { 2, 24 })
    for i = 1, 48 do t:set(i, i % 16) end
    assert.same({ 8, 15, 8, 15, 8, 15 }, cells(t, nil, 2, 3, 0))
    for r, columns in ipairs { { 0, 0, 8, 16, 24 } } do -- of 4 cells: 6, 12 and 18 become 0, 8 and 16
      local found = cells(t, nil, 2, 4, 0)
      for c = 1, 4 do
        local most = 0
        for i = columns[c] + 1, columns[c + 1] do most = math.max(most, t:get { r, i }) end
        assert.equal(most, found[c])
      end
    end
  end)

  it("with a NaN are NaN, and a grid must fit", function()
    local t = nb.tensor("f32", { 4, 4 }):fill(1)
    t:set({ 4, 4 }, 0 / 0)
    local found = cells(t, nil, 2, 2, 1)
    assert.same({ 1, 1, 1 }, { found[1], found[2], found[3] })
    assert.is_true(found[4] ~= found[4])
    for _, shape in ipairs { { 5, 1 }, { 1, 5 }, { 0, 1 } } do
      assert.is_true(C.nb_cells(nb.tensor("f64", shape), t, nil, 0) < 0)
    end
    assert.matches("a grid of 0 by 1 over a matrix of 4 by 4", ffi.string(C.nb_error()))
    assert.is_true(C.nb_cells(nb.tensor("f64", { 1, 1 }), t, nb.tensor("f32", { 2, 8 }), 0) < 0)
  end)
end)
