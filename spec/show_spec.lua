-- Values as text: columns aligned and cut to a terminal's width, whatever characters are in them.
local show = require "nibble.show"
local terminal = require "nibble.terminal"

local function lines(text)
  local out = {}
  for line in text:gmatch "[^\n]+" do out[#out + 1] = line end
  return out
end

describe("the width of text", function()
  it("counts columns: wide, combining, coloured, broken", function()
    assert.equal(0, show.width "")
    assert.equal(3, show.width "a.b")
    assert.equal(5, show.width "[2×3]")
    assert.equal(4, show.width "模型")
    assert.equal(1, show.width "e\204\129") -- e and a combining acute
    assert.equal(2, show.width "\27[38;5;196m██\27[0m")
    assert.equal(2, show.width "\255\254")
    assert.equal(2, show.width "\27[3") -- no colour: ESC takes none, the others do
  end)

  it("is cut at the end or in the middle, colours kept", function()
    assert.equal("abcdef", show.cut("abcdef", 6))
    assert.equal("abcd…", show.cut("abcdef", 5))
    assert.equal("a…ef", show.cut("abcdef", 4, true))
    assert.equal("ab…efghi", show.cut("abcXXefghi", 8, true))

    assert.equal("…", show.cut("abcdef", 1, true))
    assert.equal("", show.cut("abcdef", 0))
    assert.equal("模…", show.cut("模型模", 4))
    assert.equal("模…", show.cut("模型模", 3))
    local cut = show.cut("\27[31mabcdef\27[0m", 3)
    assert.equal("\27[31mab…\27[0m", cut)
    for columns = 0, 9 do
      for _, text in ipairs { "model.layers.0.mlp", "模型.层.零", "\27[1mé\204\129x模\27[0mabc" } do
        assert.is_true(show.width(show.cut(text, columns)) <= columns)
        assert.is_true(show.width(show.cut(text, columns, true)) <= columns)
      end
    end
  end)
end)

describe("printable text", function()
  it("has no control characters but colours", function()
    assert.equal("a�b��c", show.printable "a\nb\0\127c")
    assert.equal("\27[31mred\27[0m", show.printable "\27[31mred\27[0m")
    assert.equal("�[2J�]0;x�", show.printable "\27[2J\27]0;x\7")
    assert.equal("�[31m", show.printable "\1[31m")
    assert.equal("�", show.printable "\194\155")
    assert.equal("×", show.printable "×")
  end)
end)

describe("columns", function()
  local rows = {
    { "module", "", "scheme", "bytes" },
    { "model.layers.{0..31}.self_attn.q_proj", "×32", "W4A16 g128 sym", "8.1 MiB" },
    { "模型.层.0.down_proj", "", "bf16", "112 MiB" },
  }

  it("align wide characters too, and are whole without a width", function()
    local out = lines(show.columns(rows, "lrlr"))
    assert.equal(show.width(out[2]), show.width(out[3]))
    assert.matches("model.layers.{0..31}.self_attn.q_proj  ×32  W4A16 g128 sym  8.1 MiB", out[2], 1, true)
  end)

  it("fit any width: names in the middle, then columns from the right", function()
    local full = show.width(lines(show.columns(rows, "lrlr"))[2])
    for width = 1, full + 3 do
      for _, line in ipairs(lines(show.columns(rows, "lrlr", width))) do assert.is_true(show.width(line) <= width) end
    end
    assert.equal(show.columns(rows, "lrlr"), show.columns(rows, "lrlr", full))
    local narrower = lines(show.columns(rows, "lrlr", full - 6))
    assert.matches("^model%.la.*….*q_proj  ×32  W4A16 g128 sym  8.1 MiB$", narrower[2])
    local narrow = lines(show.columns(rows, "lrlr", 46))
    assert.matches("q_proj  ×32  W4A16 g128 sym$", narrow[2])
    assert.is_nil(narrow[1]:find "bytes")
  end)

  it("cut a last column of text at its end before they give it up", function()
    local out = lines(show.columns({ { "a", ("long "):rep(20) } }, "ll", 60))
    assert.equal(60, show.width(out[1]))
    assert.matches("^a  long .*…$", out[1])
  end)

  it("of no rows and of no width at all are no crash", function()
    assert.equal("\n", show.columns({}, "l"))
    assert.equal("\n", show.columns({}, "l", 10))
    assert.equal("\n", show.columns({ {} }, "l", 10))
  end)
end)

describe("the terminal", function()
  it("is none for what is no terminal, whatever COLUMNS says", function()
    assert.is_nil((terminal.size(99)))
    assert.is_nil(terminal.width(99))
    assert.equal(0, terminal.colours(99))
    assert.is_false(terminal.draws(99))
  end)
end)
