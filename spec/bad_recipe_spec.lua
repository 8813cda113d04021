-- Recipes and settings that are no good:
-- one sentence on stderr, exit status 2, nothing on stdout, no output folder left behind.
local hostile = require "spec.support.hostile"
local fresh, refused, plain_model = hostile.fresh, hostile.refused, hostile.plain_model

setup(hostile.begin)
teardown(hostile.finish)

local function recipe(text) return hostile.file("recipe.lua", text) end

-- ---- recipes -------------------------------------------------------------------------

describe("a recipe", function()
  local cases = {
    { "with a syntax error", "return {", "recipe.lua:1" },
    { "that returns nothing", "local x = 1", "return" },
    { "that returns a number", "return 7", "table" },
    { "with a misspelt key", 'return { shceme = "W4A16" }', 'unknown key "shceme"; did you mean "scheme"%?' },
    { "with a misspelt key in a rule", 'return { rules = { { "*", shceme = "W4A16" } } }', 'rule 1.*did you mean "scheme"%?' },
    { "with a wrong type", 'return { scheme = 4 }', "scheme must be a string" },
    { "with a wrong type of rules", 'return { scheme = "W4A16", rules = "x" }', "rules must be a table" },
    { "with a wrong type of skip", 'return { scheme = "W4A16", skip = { 7 } }', "skip" },
    { "with a broken glob", 'return { scheme = "W4A16", skip = { "*[" } }', "glob" },
    { "with a broken pattern", 'return { scheme = "W4A16", skip = { "re:%" } }', "pattern" },
    { "with an unknown scheme", 'return { scheme = "W5B16" }', 'unknown scheme "W5B16"' },
    { "with an unknown method", 'return { scheme = "W4A16", method = "rtm" }', 'did you mean "rtn"%?' },
    { "with an unknown option", 'return { scheme = "W4A16", group = 32, method = "mse", options = { gird = 3 } }', 'did you mean "grid"%?' },
    { "with an option of a wrong type", 'return { scheme = "W4A16", group = 32, method = "mse", options = { grid = "x" } }', "grid" },
    { "with an option out of range", 'return { scheme = "W4A16", group = 32, method = "mse", options = { grid = -1 } }', "grid" },
    { "with a group of 0", 'return { scheme = "W4A16", group = 0 }', "group" },
    { "with a group of NaN", 'return { scheme = "W4A16", group = 0/0 }', "group" },
    { "with a group that is no whole number", 'return { scheme = "W4A16", group = 32.5 }', "32.5" },
    { "with a group that doesn't divide", 'return { scheme = "W4A16", group = 48 }', "48" },
    { "with 1e300 as group", 'return { scheme = "W4A16", group = 1e300 }', "group" },
    { "with a strange strategy", 'return { scheme = "W4A16", strategy = "rows" }', "rows" },
    { "with a strange dtype of scales", 'return { scheme = "W4A16", group = 32, scale_dtype = "f7" }', "f7" },
    { "with a strange actorder", 'return { scheme = "W4A16", group = 32, actorder = "yes" }', "actorder" },
    { "that matches nothing", 'return { rules = { { "visual.*", scheme = "W4A16" } } }', "nothing in the recipe names" },
    { "that skips everything", 'return { scheme = "W4A16", skip = { "*" } }', "quantizes none" },
    { "that inherits from itself", 'return recipe "recipe"', "inherits from itself" },
    { "that inherits from a number", "return recipe(7)", "name" },
    { "that inherits from a stranger", 'return recipe "lama-w4a16"', 'lama%-w4a16.*did you mean "llama%-w4a16"%?' },
    { "that never ends", "while true do end", "without an end" },
    { "that calls what it may not", "while true do pcall(function() while true do end end) end", "recipe.lua:1.*pcall" },
    { "that recurses", "local function f() return 1 + f() end return f()", "stack overflow" },
    { "that fills the memory", 'local s = "x" while true do s = s .. s end', "recipe" },
    { "that opens a file", 'return { name = io.open("/etc/passwd"):read() }', "io" },
    { "that changes string", 'string.format = nil return { scheme = "W4A16", shceme = 1 }', "shceme" },
    { "that is bytecode", "\27LJ\2\2\1\2\3", "recipe" },
    { "with a table that holds itself", 'local r = { scheme = "W4A16" } r.options = { r = r } return r', "itself" },
    { "with a key that is a function", 'return { scheme = "W4A16", [print or math.sin] = 1 }', "entry" },
    { "with a when that fails",
      'return { scheme = "W4A16", group = 32, rules = { { "*", when = function(w) return w.x.y end } } }', 'rule 1.*has no "x"; known: absmax' },
    { "with a when that never ends",
      'return { scheme = "W4A16", group = 32, rules = { { "*", when = function(w) while true do end end } } }', "rule 1.*without an end" },
    { "with a method that fails", 'return { scheme = "W4A16", group = 32, method = function(w) return w.x.y end }', "model%.layers%.0" },
    { "with a method that returns nonsense",
      'return { scheme = "W4A16", group = 32, method = function(w) return 7 end }', "expected nothing or a table" },
    { "with a method that writes codes too large",
      'return { scheme = "W4A16", group = 32, method = function(w, s, o, out) out.codes:ptr()[0] = 200 end }', "model%.layers%.0" },
    { "for another model", 'return { scheme = "W4A16", model = { model_type = "qwen3" } }', "model_type = qwen3" },
    { "with an unknown format", 'return { scheme = "W4A16", output = { format = "gguff" } }', "gguff" },
    { "with shards of nothing", 'return { scheme = "W4A16", output = { shard = 0 } }', "size of 0" },
    { "with shards of a nonsense size", 'return { scheme = "W4A16", output = { shard = "5 parsecs" } }', "parsecs" },
    { "with shards of NaN bytes", 'return { scheme = "W4A16", output = { shard = 0/0 } }', "shard" },
    { "with 1.2.3 GB", 'return { scheme = "W4A16", output = { shard = "1.2.3GB" } }', "1.2.3GB" },
    { "with accept of a wrong type", 'return { scheme = "W4A16", accept = { sqnr_db = "high" } }', "sqnr_db" },
    { "with fused siblings that disagree", 'return { scheme = "W4A16", group = 32, rules = { { "*.q_proj", scheme = "W8A16" } } }', "qkv_proj" },
    { "with a lm_head of an unknown scheme", 'return { scheme = "W4A16", group = 32, lm_head = "W99" }', "W99" },
    { "with kernels of nonsense", 'return { scheme = "W4A16", group = 32, kernels = { prefer = 7 } }', "kernels" },
    { "with calibrate of nonsense", 'return { scheme = "W4A16", group = 32, calibrate = { samples = "x" } }', "samples" },
  }
  for _, case in ipairs(cases) do
    it(case[1], function()
      local path, out = recipe(case[2]), fresh()
      refused(("run %s %s --out %s"):format(path, plain_model, out), case[3], out)
    end)
  end

  it("that isn't there, or is a folder", function()
    refused(("plan /nonexistent/r.lua %s"):format(plain_model), "recipe /nonexistent/r.lua was not found")
    refused(("plan lama-w4a16 %s"):format(plain_model), 'did you mean "llama%-w4a16"%?')
    refused(("plan %s %s"):format(hostile.root, plain_model), "recipe")
  end)

  it("changed by --set with nonsense", function()
    local function set(text, pattern)
      local out = fresh()
      refused(("run %s %s --out %s --set %s"):format(hostile.recipe, plain_model, out, text), pattern, out)
    end
    set("group", "key=value")
    set("=3", "key=value")
    set("gruop=64", 'did you mean "group"%?')
    set("group=many", "group must be a number")
    set("group.size=3", "group")
    set("output.shard=lots", "lots")
    set("rules=1", "rules")
    set("scheme=", "scheme")
    set("scheme=true", "scheme")
    set("...=1", "%-%-set")
  end)
end)
