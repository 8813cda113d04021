-- Recipes: the sandbox, the checks, the patterns (DESIGN 5).
local nb = require "nibble"
local recipes = require "nibble.recipe"

local written = {}

local function write(text)
  local path = os.tmpname()
  written[#written + 1], written[#written + 2] = path, path .. ".lua"
  path = path .. ".lua"
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
  return path
end

teardown(function()
  for _, path in ipairs(written) do os.remove(path) end
end)

local function refused(text, set)
  local r, msg, code = nb.recipe(write(text), { set = set })
  assert.is_nil(r)
  assert.equal("einval", code)
  return msg
end

describe("a recipe's identity", function()
  it("is the same however often it is asked for, compiled or not", function()
    local r = assert(nb.recipe { name = "t", scheme = "W4A16", rules = { { "*.a", group = 64 }, { "*.b", options = { x = { y = { z = 1 } } } } },
      model = { model_type = { "llama", "mistral" } }, kernels = { prefer = { "marlin" }, fallback = { "awq" } } })
    local text, others = recipes.canonical(r), 0
    for _ = 1, 3000 do
      if recipes.canonical(assert(nb.recipe(r))) ~= text then others = others + 1 end
    end
    assert.equal(0, others)
    assert.matches("z=number:1", text)
  end)
end)

describe("recipe", function()
  it("reads data and functions, and names itself after its file", function()
    local r = assert(nb.recipe(write [[return { scheme = "W4A16", group = 64,
      rules = { { "*.o_proj", when = function(w) return w.kurtosis > 8 end } } }]]))
    assert.equal(64, r.group)
    assert.is_function(r.rules[1].when)
    assert.truthy(r.name:match "^lua_")
  end)

  it("refuses unknown keys with a suggestion, wherever they stand", function()
    assert.matches('unknown key "shceme"; did you mean "scheme"%?', refused 'return { shceme = "W4A16" }')
    assert.matches('rule 1 %("%*"%): unknown key "groupe"; did you mean "group"%?',
      refused 'return { rules = { { "*", groupe = 64 } } }')
    assert.matches('output: unknown key "fromat"; did you mean "format"%?',
      refused 'return { output = { fromat = "awq" } }')
  end)

  it("refuses wrong types with both", function()
    assert.matches("group must be a number, found a string %(128g%)", refused 'return { group = "128g" }')
    assert.matches("a recipe returns a table, found a number", refused "return 7")
    assert.matches("skip must be a list of strings", refused "return { skip = { 3 } }")
    assert.matches("would match everything", refused 'return { skip = { "" } }')
    assert.matches("the pattern is missing", refused "return { rules = { { group = 64 } } }")
    assert.matches('"5 parsecs" is not a size', refused 'return { output = { shard = "5 parsecs" } }')
  end)

  it("shows syntax and run-time errors with their line", function()
    assert.matches(":2: ", refused "return {\n scheme = = }")
    assert.matches("attempt to index", refused "return nothing.at.all")
    assert.matches("returns nothing", refused "local x = 1")
  end)

  it("runs with math, string and recipe only, and not for ever", function()
    assert.matches("attempt to index global 'io'", refused 'io.open("x")')
    assert.matches("attempt to call global 'require'", refused 'require "ffi"')
    assert.matches("without an end", refused "while true do end")
  end)

  it("inherits from a shipped recipe or a neighbour, never from itself", function()
    local r = assert(nb.recipe(write 'local r = recipe "llama-w4a16"; r.group = 32; return r'))
    assert.equal(32, r.group)
    assert.equal("W4A16", r.scheme)
    assert.equal(128, assert(nb.recipe "llama-w4a16").group)
    assert.matches("was not found", refused 'return recipe "no-such-recipe"')
    local path = write ""
    local f = io.open(path, "w")
    f:write(('return recipe %q'):format(path))
    f:close()
    local _, msg = nb.recipe(path)
    assert.matches("inherits from itself", msg)
  end)

  it("takes --set values, checked like the file's", function()
    local path = write 'return { scheme = "W4A16", output = { shard = "5GB" } }'
    local r = assert(nb.recipe(path, { set = { group = "32", ["output.format"] = "awq" } }))
    assert.equal(32, r.group)
    assert.equal("awq", r.output.format)
    assert.equal("5GB", r.output.shard)
    assert.matches("group must be a number", refused('return { scheme = "W4A16" }', { group = "many" }))
  end)

  it("matches globs over the whole name and Lua patterns anywhere", function()
    local glob = assert(recipes.matcher "*.mlp.gate")
    assert.is_true(glob "model.layers.3.mlp.gate")
    assert.is_false(glob "model.layers.3.mlp.gate_proj")
    assert.is_true(assert(recipes.matcher "model.layers.[01].*") "model.layers.1.mlp.up_proj")
    assert.is_false(assert(recipes.matcher "model.layers.?.*") "model.layers.10.mlp.up_proj")
    local re = assert(recipes.matcher "re:^visual%.")
    assert.is_true(re "visual.blocks.0")
    assert.is_false(re "model.visual.blocks.0")
    local _, msg = recipes.matcher "re:("
    assert.matches("is not a Lua pattern", msg)
  end)

  it("gives equal recipes equal identities, and different ones different", function()
    local a = recipes.canonical(assert(nb.recipe { name = "x", scheme = "W4A16", group = 64 }))
    local b = recipes.canonical(assert(nb.recipe { group = 64, scheme = "W4A16", name = "x" }))
    local c = recipes.canonical(assert(nb.recipe { group = 32, scheme = "W4A16", name = "x" }))
    assert.equal(a, b)
    assert.not_equal(a, c)
  end)
end)
