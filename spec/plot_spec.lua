-- Pictures of a session: histograms, heat maps, errors by group, scales, curves; what they count and how they look on
-- terminals with colours and without.
local nb = require "nibble"
local command = require "spec.support.command"
local draw = require "nibble.repl.draw"
local plot = require "nibble.repl.plot"
local show = require "nibble.show"
local terminal = require "spec.support.terminal"

local function lines(p)
  local out = {}
  for line in (tostring(p) .. "\n"):gmatch "([^\n]*)\n" do out[#out + 1] = line end
  return out
end

local function refused(f, ...)
  local ok, msg = pcall(f, ...)
  assert.is_false(ok)
  return msg
end

local w, q
setup(function()
  w = assert(nb.open "spec/models/tiny-llama"):weight "model.layers.0.mlp.down_proj"
  q = w:quantize { scheme = "W4A16_ASYM", group = 128 }
end)

describe("hist", function()
  it("draws counts as bars, the range below", function()
    local t = nb.tensor("f32", { 8 }, { -1, 0.1, 0.1, 0.1, 0.1, 0.6, 0.6, 1 })
    local p = lines(plot.hist(t, { bins = 4, height = 2 }))
    assert.same({ "4   █▄", "  ▄ ██" }, { p[2], p[3] }) -- 1 0 4 3
    assert.matches("^  %-1 1$", p[4])
    assert.equal(show.line(t), p[1])
  end)

  it("draws a line a bin with its count, and counts by their logarithm", function()
    local p = lines(plot.hist({ 0, 1, 2, 3, 3, 3 }, { bins = 3, flat = true, width = 8 }))
    assert.same({ "0  1  ██", "1  1  ██", "2  4  ████████" }, { p[2], p[3], p[4] })
    p = lines(plot.hist({ 0, 1, 2, 3, 3, 3 }, { bins = 3, flat = true, width = 8, log = true }))
    assert.equal("0  1  " .. draw.bar(math.log(2) / math.log(5), 8), p[2])
    assert.matches("log counts$", p[1])
  end)

  it("says what lies outside, and takes odd values, constants and nothing", function()
    local t = nb.tensor("f32", { 5 }, { 1, 2, 3, 4, 100 })
    t:set(1, 0 / 0)
    assert.matches("1 NaN .*  1 outside$", lines(plot.hist(t, { lo = 0, hi = 10 }))[1])
    for _, v in ipairs { 0, 7, -7, 1e38, -1e-40 } do assert.is_string(tostring(plot.hist(nb.tensor("f32", { 3 }):fill(v)))) end
    assert.equal(1, #lines(plot.hist(nb.tensor("f32", { 0 }))))
    assert.equal(1, #lines(plot.hist(nb.tensor("f32", { 2 }):fill(0 / 0))))
  end)

  it("takes a quantized weight and a module", function()
    assert.matches("^bf16 %[256×768%]", tostring(plot.hist(q)))
    assert.equal(tostring(plot.hist(w)), tostring(plot.hist(nb.open("spec/models/tiny-llama")["model.layers.0.mlp.down_proj"])))
  end)
end)

describe("heat", function()
  it("shows where values are: every one counts", function()
    local t = nb.tensor("f32", { 64, 400 })
    t:set({ 40, 300 }, -5)
    local p = lines(plot.heat(t, { rows = 4, columns = 8, width = 8 }))
    assert.matches("^f32 %[64×400%]: absmax of 16×50 values a cell   0  ░▒▓█ 5$", p[1])
    assert.same({ " 1         ", "           ", "        █  ", "64         " }, { p[2] .. "", p[3], p[4], p[5] })
    assert.matches("^   1    400$", p[6])
  end)

  it("draws a value a cell where there is room, marks NaN, and centres signed means at 0", function()
    local t = nb.tensor("f32", { 1, 3 }, { 0, 1, 4 })
    t:set(2, 0 / 0)
    assert.matches("each value", lines(plot.heat(t))[1], 1, true)
    assert.equal(" ×█", lines(plot.heat(t, { width = 3 }))[2])
    local p = lines(plot.heat(nb.tensor("f32", { 1, 2 }, { -1, 3 }), { of = "mean", width = 2 }))
    assert.matches("mean of each value   %-3  ░▒▓█ 3", p[1])
    assert.equal("░█", p[2])
  end)

  it("is never wider than asked and takes any shape", function()
    for _, shape in ipairs { { 1 }, { 7 }, { 3, 5, 7 }, { 1, 4000 }, { 4000, 1 }, { 2, 2, 2, 2, 2, 2 } } do
      for i, line in ipairs(lines(plot.heat(nb.tensor("bf16", shape):fill(1), { width = 40 }))) do
        assert.is_true(i == 1 or show.width(line) <= 40 + 6, line)
      end
    end
    assert.matches("no values", tostring(plot.heat(nb.tensor("f32", { 0, 4 }))), 1, true)
  end)

  it("knows the logarithm", function()
    local t = nb.tensor("f32", { 1, 3 }, { 1, 10, 100 })
    assert.equal(" ▒█", lines(plot.heat(t, { log = true, width = 3 }))[2])
    assert.equal("  █", lines(plot.heat(t, { width = 3 }))[2])
  end)
end)

describe("pictures of a quantized weight", function()
  it("show the error by group and its worst place", function()
    local text = tostring(plot.error(w, q))
    assert.matches("error: rms of 16×128 values a cell, a column a group", text, 1, true)
    local r1, r2, c1, c2, worst = text:match "worst: rows (%d+)%-(%d+), columns (%d+)%-(%d+): ([%d.e-]+)"
    local d, sum = q:dequantize(), 0
    for r = tonumber(r1), tonumber(r2) do
      for c = tonumber(c1), tonumber(c2) do sum = sum + (w:get { r, c } - d:get { r, c }) ^ 2 end
    end
    local rms = math.sqrt(sum / ((r2 - r1 + 1) * (c2 - c1 + 1)))
    assert.equal(("%.3g"):format(rms), worst)
    assert.is_nil(tostring(plot.error(w, w)):find "worst")
    -- In activation order a group is no span of columns.
    local ordered = w:quantize { scheme = "W4A16", group = 128, actorder = "group", importance = nb.tensor("f32", { 768 }):fill(1) }
    assert.is_nil(tostring(plot.error(w, ordered)):find "a column a group")
  end)

  it("show scales and zero-points, or say that there are none", function()
    assert.matches("^scales %[256×6%]: absmax of 16×1 values a cell", tostring(plot.scales(q)))
    assert.matches("^zero%-points %[256×6%]: mean", tostring(plot.zeros(q)))
    assert.equal("no zeros: the weight is W4A16 g128 sym", tostring(plot.zeros(w:quantize { scheme = "W4A16", group = 128 })))
    assert.matches("^scales", tostring(plot.scales(nb.open("spec/interop/autoawq-gemm-w4g128"):select({ quantized = true })[1])))
  end)
end)

describe("curve", function()
  it("goes through the first and the last value, gaps where there is no number", function()
    local p = lines(plot.curve({ 0, 1 }, { width = 2, height = 1 }))
    assert.equal("1 ⣠⠞", p[1])
    p = lines(plot.curve({ 1, 0 / 0, 3 }, { width = 9, height = 2 }))
    assert.same({ "3 ⠀⠀⠀⠀⠀⠀⠀⠀⢀", "1 ⡀⠀⠀⠀⠀⠀⠀⠀⠀" }, { p[1]:gsub("⠈$", "⢀"), p[2] })
    assert.is_string(tostring(plot.curve { 5 }))
    assert.is_string(tostring(plot.curve { 2, 2, 2 }))
  end)

  it("takes a field of tables, as a checkpoint's statistics are", function()
    local stats = nb.stats(nb.open "spec/models/tiny-llama", "down_proj")
    assert.equal(tostring(plot.curve { stats[1].std, stats[2].std, stats[3].std, stats[4].std }), tostring(plot.curve(stats, "std")))
  end)
end)

describe("mistakes in pictures", function()
  it("are named", function()
    assert.matches('hist has no option "bin"; did you mean "bins"?', refused(plot.hist, w, { bin = 3 }), 1, true)
    assert.matches("hist: bins is a whole number of 1 to 1000, found 0", refused(plot.hist, w, { bins = 0 }), 1, true)
    assert.matches("heat: rows is a whole number of 1 to 1000, found many", refused(plot.heat, w, { rows = "many" }), 1, true)
    assert.matches('heat: of = "absmx"; did you mean "absmax"?', refused(plot.heat, w, { of = "absmx" }), 1, true)
    assert.matches("heat: expected a tensor, a quantized weight, a module or an array of numbers, found a nil", refused(plot.heat), 1, true)
    assert.matches("plot.scales: expected a quantized weight", refused(plot.scales, w), 1, true)
    assert.matches("[256x768] and [4x4] have different shapes", refused(plot.error, w, nb.tensor("f32", { 4, 4 })), 1, true)
    assert.matches("curve: expected an array", refused(plot.curve, {}), 1, true)
    assert.matches("curve: no number among 1 values", refused(plot.curve, { "x" }), 1, true)
  end)
end)

describe("grids", function()
  it("are two rows a line in colours, exact and of the 256", function()
    local rows = { { 0, 1 }, { 1, 0 / 0 }, { 0.5, 0.5 } }
    local deep = draw.grid(rows, 2 ^ 24)
    assert.equal("\27[38;2;48;18;80;48;2;253;231;37m▀\27[38;2;253;231;37;48;2;255;0;255m▀\27[0m", deep[1])
    assert.equal("\27[38;2;38;130;142m▀▀\27[0m", deep[2])
    assert.matches("^\27%[38;5;%d+;48;5;%d+m▀", draw.grid(rows, 256)[1])
    assert.same({ " █", "█×", "▒▒" }, draw.grid(rows, 0))
    assert.equal("\27[38;2;247;247;247m▀▀\27[0m", draw.grid({ { 0.5, 0.5 } }, 2 ^ 24, true)[1])
  end)
end)

describe("a session's pictures and tensors", function()
  local code = 'm = open "spec/models/tiny-llama" w = m["model.layers.0.mlp.down_proj"].weight '
  local function drawn(what, env, columns)
    local t = terminal.start({ "-e", code .. "print(" .. what .. ")" }, env, columns)
    if not t then return nil end
    local _, seen = t:expect("\0", 10)
    assert.equal(0, t:close())
    return seen
  end

  it("use the colours that the terminal has", function()
    local deep = drawn("heat(w)", { TERM = "xterm-256color", COLORTERM = "truecolor", NO_COLOR = "" })
    if not deep then return pending "no terminals here" end
    assert.matches("\27[38;2;", deep, 1, true)
    local some = drawn("heat(w)", { TERM = "xterm-256color", COLORTERM = "", NO_COLOR = "" })
    assert.matches("\27[38;5;", some, 1, true)
    for _, env in ipairs { { TERM = "xterm-256color", COLORTERM = "truecolor", NO_COLOR = "1" }, { TERM = "dumb", NO_COLOR = "" } } do
      local none = drawn("heat(w)", env)
      assert.is_nil(none:find("\27", 1, true))
      assert.matches("░", none, 1, true)
    end
  end)

  it("are cut to its width", function()
    local text = drawn("hist(w)", { TERM = "xterm" }, 40)
    if not text then return pending "no terminals here" end
    local n = 0
    for line in text:gmatch "[^\r\n]+" do
      n = n + 1
      assert.is_true(n == 1 or show.width(line) <= 40, line)
    end
  end)

  it("show a tensor's line, and on a terminal a corner below it", function()
    local input = code .. "\nw\n"
    local piped = command.run({}, { stdin = input })
    assert.equal(tostring(w) .. "\n", piped.out)
    local t = terminal.start({}, { TERM = "xterm", HOME = "/dev/null", NO_COLOR = "1" }, 60)
    if not t then return pending "no terminals here" end
    t:expect "nibble> "
    t:send((code:gsub("\n", " ")) .. "\r")
    t:expect "nibble> "
    t:send "w\r"
    local text = assert(t:expect "⋮")
    assert.matches("absmax 0.416", text, 1, true)
    local _, rows = text:gsub("…\r?\n", "")
    assert.equal(4, rows)
    t:send "\4"
    t:close()
  end)
end)

describe("a corner", function()
  it("is aligned and as small as the tensor", function()
    local t = nb.tensor { { 1, -22.5, 3 }, { 0.125, 5, 1e9 } }
    assert.same({ tostring(t), "      1  -22.5      3", "  0.125      5  1e+09" }, lines(show.corner(t)))
    assert.equal(tostring(t), (show.corner(nb.tensor { 7 })) == tostring(nb.tensor { 7 }) and tostring(t))
    assert.equal(3, #lines(show.corner(nb.tensor("f32", { 9, 9 }), 1, 2)))
    assert.matches("⋮$", show.corner(nb.tensor("f32", { 9, 9 }), 1, 2))
    for _, width in ipairs { 5, 20, 33, 80 } do
      for i, line in ipairs(lines(show.corner(nb.tensor("f32", { 9, 9 }):fill(-1.2345e-30), 4, 6, width))) do
        assert.is_true(i == 1 or show.width(line) <= math.max(width, 17), line)
      end
    end
  end)
end)
