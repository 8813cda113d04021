-- Names: natural order, parts.
local nb = require "nibble"
local text = require "nibble.text"

describe("names", function()
  it("sort naturally, leading zeroes last of all", function()
    local sorted = { "", "a", "a-b", "a.1", "a.2.x", "a.2.y", "a.02.y", "a.10.x", "a.10.x.w", "a.x", "b9", "b10", "é" }
    local shuffled = {}
    for i, name in ipairs(sorted) do shuffled[(i * 5) % #sorted + 1] = name end
    assert.same(sorted, text.natural_sort(shuffled))
    assert.same({ "a.000", "a.003", "a.10", "a.0100" }, text.natural_sort { "a.10", "a.0100", "a.003", "a.000" })
    assert.same({}, text.natural_sort {})
    assert.same({ "x", "x" }, text.natural_sort { "x", "x" })
    assert.same({ "n99999999999999999998", "n99999999999999999999" },
      text.natural_sort { "n99999999999999999999", "n99999999999999999998" })
  end)

  it("split at the last dot", function()
    assert.same({ "a.b", "weight" }, { text.split_name "a.b.weight" })
    assert.same({ "weight", "" }, { text.split_name "weight" })
    assert.same({ "a", "" }, { text.split_name "a." })
    assert.same({ "c", "c", "" }, { text.leaf "a.b.c", text.leaf "c", text.leaf "a." })
  end)
end)

describe("one table for a shape", function()
  it("serves all tensors that have it", function()
    local ck = assert(nb.open "spec/models/tiny-llama")
    local by = {}
    for _, info in ipairs(ck.tensors) do
      local key = table.concat(info.shape, "x")
      by[key] = by[key] or info.shape
      assert.equal(by[key], info.shape)
      assert.same(ck:info(info.name), info)
    end
  end)
end)
