-- Documents that the code writes: recipe reference, man page, shell completion. They say what
-- the program's own tables say, and README.md and recipes/README.md aren't stale.
local command = require "spec.support.command"
local files = require "spec.support.files"
local recipe = require "nibble.recipe"

local function output(args)
  local r = command.run(args)
  assert.equal(0, r.status, r.err)
  return r.out
end

describe("documents from the code", function()
  it("recipe reference: every key that the reader takes, once, dotted, and no other", function()
    local found = {}
    for _, row in ipairs(recipe.reference()) do
      assert.is_nil(found[row.key], row.key)
      found[row.key] = row
      assert.is_true(#row.types >= 1 and #row.doc > 0, row.key)
    end
    local function compare(prefix, schema)
      for key, entry in pairs(schema) do
        assert.is_truthy(found[prefix .. key], prefix .. key)
        if entry.schema then compare(prefix .. key .. ".", entry.schema) end
      end
    end
    compare("", recipe.schema)
    assert.is_true(found.group.in_rules)
    assert.is_false(found.skip.in_rules)
    assert.is_truthy(found["rules[].when"])
    assert.same({ "string", "boolean" }, found.scheme.types)
  end)

  it("README.md and recipes/README.md hold what the code says today", function()
    local r = command.run { "scripts/docs.lua", "--check" }
    assert.equal("", r.out .. r.err)
    assert.equal(0, r.status)
  end)

  it("man page: every command, option, key and status; nothing that roff takes for a request", function()
    local page = output { "-e", 'io.write(require("nibble.cli.manual").man())' }
    for _, name in ipairs(require("nibble.cli").commands) do assert.matches("\n%.SS " .. name .. "\n", page) end
    local plain = page:gsub("\\%-", "-"):gsub("\\f[IBR]", "")
    for _, text in ipairs { "\n.B --against MODEL\n", "\n.B output.shard\n", "\n.B group (r)\n", "\n.B 130\n", "\n.B NO_COLOR\n" } do
      assert.is_truthy(plain:find(text, 1, true), text)
    end
    for line in page:gmatch "[^\n]+" do
      if line:match "^[.']" then assert.matches("^%.[TSPbB][HSPrB ]?", line) end
      assert.is_nil(line:match "[^\\]%-", line) -- a bare hyphen is a typographer's
    end
  end)

  it("refuses a shell that it doesn't know", function()
    local r = command.run { "completion", "fish" }
    assert.equal(2, r.status)
    assert.equal("", r.out)
    assert.matches('completion knows bash and zsh, found "fish"', r.err)
  end)
end)

describe("bash completion", function()
  local script = os.tmpname()
  setup(function() files.write(script, output { "completion", "bash" }) end)
  teardown(function() os.remove(script) end)

  -- What bash offers for the last of the words.
  local function offered(words)
    local list = {}
    for i, word in ipairs(words) do list[i] = ("'%s'"):format(word) end
    local shell = ([[bash --norc -c 'source %s; compopt() { :; }; COMP_WORDS=("$0" "$@"); COMP_CWORD=$#; _nibble
      printf "%%s\n" "${COMPREPLY[@]}"' ]]):format(script)
    local p = assert(io.popen(shell .. table.concat(list, " ")))
    local out = {}
    for line in p:lines() do out[line] = true end
    p:close()
    return out
  end

  it("offers commands, options, the values of options, recipes, files", function()
    assert.is_true(offered({ "nibble", "insp" }).inspect)
    local options = offered { "nibble", "eval", "m", "--a" }
    assert.is_true(options["--against"] and options["--activations"])
    assert.is_nil(options["--json"])
    local values = offered { "nibble", "eval", "m", "--activations", "" }
    assert.is_true(values.stored and values.none)
    assert.is_true(offered({ "nibble", "plan", "r", "m", "--consumer", "vllm" })["vllm-0.33"])
    local recipes = offered { "nibble", "run", "any-w4" }
    assert.is_true(recipes["any-w4a16"] and recipes["any-w4a8"])
    assert.is_true(offered({ "nibble", "--threads", "2", "run", "--json", "any-w4a16", "spec/mo" })["spec/models"])
    assert.is_true(offered({ "nibble", "convert", "m", "--to", "aw" }).awq)
    assert.is_true(offered({ "nibble", "run", "any-w4a16", "m", "--out", "spec/mo" })["spec/models"])
  end)
end)
