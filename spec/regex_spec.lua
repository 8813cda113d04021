-- Patterns over module names, as quantization configs use them.
local regex = require "nibble.regex"

local function match(pattern, s) return assert(regex.compile(pattern)):match(s) end

describe("regex", function()
  it("matches at the start, as re.match does", function()
    assert.is_true(match([[.*mlp\.gate$]], "model.layers.0.mlp.gate"))
    assert.is_false(match([[.*mlp\.gate$]], "model.layers.0.mlp.gate_proj"))
    assert.is_false(match("gate", "mlp.gate"))
    assert.is_true(regex.compile("gate"):search("mlp.gate"))
  end)

  it("knows what checkpoint configs use", function()
    local cases = {
      { [[.*layers\.(0|1|2)\..*]], "model.layers.1.mlp", true },
      { [[.*layers\.(0|1|2)\..*]], "model.layers.11.mlp", false },
      { [[^(?!.*lm_head).*$]], "lm_head", false },
      { [[^(?!.*lm_head).*$]], "model.norm", true },
      { [[.*\.(q|k|v)_proj$]], "a.k_proj", true },
      { [[(?:model\.)?layers\.\d+\.mlp$]], "layers.12.mlp", true },
      { [[layers\.[0-9]{1,2}\.[^.]+$]], "layers.12.mlp", true },
      { [[layers\.[0-9]{1,2}\.[^.]+$]], "layers.123.mlp", false },
      { [[.*?experts\.[^0-3]\.]], "mlp.experts.4.up", true },
      { [[.*?experts\.[^0-3]\.]], "mlp.experts.2.up", false },
      { [[(ab|a)(bc)?$]], "abc", true },
      { [[(ab)*?c]], "ababc", true },
      { [[a+b*c?$]], "aab", true },
      { [[\w+\bx]], "x", false },
      { [[.*(?=proj)p]], "up_proj", true },
      { [[]], "anything", true },
      { [[a{2}$]], "aaa", false },
      { [[a{,2}$]], "aa", true },
      { [[x|y|z$]], "z", true },
    }
    for _, c in ipairs(cases) do assert.equal(c[3], match(c[1], c[2]), c[1] .. " on " .. c[2]) end
  end)

  it("says what it does not support", function()
    local cases = {
      { "(?<=a)b", "not supported" }, { "(", "without its %)" }, { "[a", "without its %]" }, { "a)", "without its %(" },
      { "*a", "nothing to repeat" }, { "a**", "repeat of a repeat" }, { "a\\", "nothing after" }, { "\\k", "not supported" },
      { ("("):rep(200), "too deeply" }, { "a{2000}", "above 1000" },
    }
    for _, c in ipairs(cases) do
      local r, msg = regex.compile(c[1])
      assert.is_nil(r, c[1])
      assert.matches(c[2], msg)
    end
  end)

  it("gives up on hostile patterns instead of running forever", function()
    local matched, msg = match("(a*)*b", ("a"):rep(60))
    assert.is_nil(matched)
    assert.matches("too many steps", msg)
  end)
end)
