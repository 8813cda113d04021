-- nibble inspect: the table on a terminal of any width, the document streamed module by module, and names that want
-- to do something to the terminal.
local nb = require "nibble"
local command = require "spec.support.command"
local files = require "spec.support.files"
local show = require "nibble.show"
local terminal = require "spec.support.terminal"

local LLAMA = "spec/models/tiny-llama"

-- What inspect draws on a terminal of that many columns, line by line.
local function on_terminal(columns, variable)
  local t = terminal.start({ "inspect", LLAMA }, { COLUMNS = variable, TERM = "xterm" }, columns)
  if not t then return nil end
  local _, seen = t:expect("\0", 10)
  assert.equal(0, t:close())
  local lines = {}
  for line in seen:gmatch "[^\r\n]+" do lines[#lines + 1] = line end
  return lines
end

describe("inspect's table", function()
  it("is whole in a pipe, whatever COLUMNS says", function()
    local whole = command.run { "inspect", LLAMA }
    local narrow = command.run({ "inspect", LLAMA }, { before = "COLUMNS=30" })
    assert.equal(0, whole.status)
    assert.equal(whole.out, narrow.out)
    assert.matches("model.layers.{0..3}.post_attention_layernorm  ×4", whole.out, 1, true)
  end)

  it("is cut to the terminal, its totals never", function()
    local wide = on_terminal(120)
    if not wide then return pending "no terminals here" end
    for _, columns in ipairs { 20, 34, 60, 80 } do
      local lines = on_terminal(columns)
      assert.equal(#wide, #lines)
      for i = 2, #lines - 1 do assert.is_true(show.width(lines[i]) <= columns, lines[i]) end
      assert.equal(wide[1], lines[1])
      for _, part in ipairs { "total: 39 modules, 4.2 M params", "16.00", "8.0 MiB" } do
        assert.matches(part, lines[#lines], 1, true)
      end
    end
    assert.matches("^model.*….*_layernorm  ×4  bf16", on_terminal(60, "200")[5])
    assert.same(on_terminal(60), on_terminal(0, "60")) -- a terminal that doesn't know its size
  end)

  it("shows names of a hostile file without what they would do", function()
    local dir = files.temporary()
    files.write(dir .. "/model.safetensors", files.safetensors(
      '{"evil\\u001b[2J\\n.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}', 8))
    local r = command.run { "inspect", dir }
    assert.equal(0, r.status)
    assert.matches("evil�[2J�", r.out, 1, true)
    assert.is_nil(r.out:find("\27", 1, true))
    local document = assert(nb.json.decode(command.run({ "inspect", dir, "--json" }).out))
    assert.equal("evil\27[2J\n", document.modules[1].name)
    -- A session, too, shows modules and tables of names without it.
    local list = assert(nb.open(dir)):grep "evil"
    assert.is_nil(require("nibble.repl.show").value(list:names()):find("\27", 1, true))
    for _, text in ipairs { tostring(list), tostring(list[1]), list:show(), tostring(list:stats()) } do
      assert.matches("evil�[2J", text, 1, true)
      assert.is_nil(text:find("\27", 1, true))
    end
    files.remove(dir)
  end)
end)

describe("inspect --json", function()
  local function document(model, ...)
    local r = command.run { "inspect", model, "--json", ... }
    assert.equal(0, r.status, r.err)
    return assert(nb.json.decode(r.out)), r.out
  end

  it("holds every module in full, as the module's own record does", function()
    for _, model in ipairs { LLAMA, "spec/interop/autoawq-gemm-w4g128", "spec/models/tiny-moe" } do
      local ck = assert(nb.open(model))
      local found, text = document(model)
      assert.equal(#ck:modules(), #found.modules)
      assert.equal(ck.count, found.tensors)
      for i, rec in ipairs(ck:modules()) do
        local m = found.modules[i]
        for _, key in ipairs { "name", "kind", "format", "dtype", "params", "bytes", "bits_per_weight", "bias" } do
          assert.equal(rec[key], m[key])
        end
        assert.equal(nb.json.encode(rec.scheme or nb.json.null), nb.json.encode(m.scheme or nb.json.null))
        for suffix, info in pairs(rec.tensors) do
          assert.same({ info.bytes, info.dtype, info.file }, { m.tensors[suffix].bytes, m.tensors[suffix].dtype, m.tensors[suffix].file })
          assert.equal(nb.json.encode(info.shape), nb.json.encode(m.tensors[suffix].shape))
        end
      end
      -- The pieces are laid out as one encoding of the whole would be.
      local last = found.modules[#found.modules]
      last.__order = { "name" }
      assert.matches(nb.json.encode(last, { indent = 2 }):gsub("\n", "\n    "), text, 1, true)
    end
  end)

  it("takes a pattern, and none that matches is a sentence", function()
    assert.equal(4, #document(LLAMA, "down_proj").modules)
    local r = command.run { "inspect", LLAMA, "nothing_like_it", "--json" }
    assert.same({ 2, "" }, { r.status, r.out })
    assert.matches("no module of spec/models/tiny%-llama matches nothing_like_it", r.err)
  end)
end)

describe("work with the collector at rest", function()
  local nffi = require "nibble.ffi"

  it("gives what the function gives, and lets the collector go on in any case", function()
    local seen
    assert.same({ 1, 2, 3 }, { nffi.uncollected(function(a, b)
      seen = collectgarbage "isrunning"
      return a, b, nffi.uncollected(function() return 3 end)
    end, 1, 2) })
    assert.is_false(seen)
    assert.is_true(collectgarbage "isrunning")
    local ok, msg = pcall(nffi.uncollected, error, "no", 0)
    assert.same({ false, "no", true }, { ok, msg, collectgarbage "isrunning" })
  end)
end)

describe("names that differ in numbers only", function()
  local names = require "nibble.names"
  local function collapsed(list, kind)
    local out = {}
    for i, g in ipairs(names.collapse(list, function(n) return n end, kind or function() return "" end)) do
      out[i] = g.name .. " " .. g.count
    end
    return out
  end

  it("are one, the numbers told as ranges; the key keeps others apart", function()
    assert.same({ "a.{0..2,7}.b 4", "a.x.b 1" }, collapsed { "a.0.b", "a.1.b", "a.x.b", "a.2.b", "a.7.b" })
    assert.same({ "{0..1}.{5,9} 2" }, collapsed { "0.5", "1.9" })
    assert.same({ "a.1 1", "a.2 1" }, collapsed({ "a.1", "a.2" }, function(n) return n end))
    assert.same({ "a1.b 1", "a2.b 1", " 1", ". 1", "3 1" }, collapsed { "a1.b", "a2.b", "", ".", "3" })
    assert.same({}, collapsed {})
  end)

  it("with more digits than a double holds are names like any other", function()
    local long = ("9"):rep(16)
    assert.same({ "a." .. long .. " 1", "a.8" .. long .. " 1" }, collapsed { "a." .. long, "a.8" .. long })
    assert.same({ "a.{1,999999999999999} 2" }, collapsed { "a.1", "a.999999999999999" })
  end)
end)
