-- Tab: what it offers where, how it is inserted or listed, and that it never computes a weight.
local nb = require "nibble"
local files = require "spec.support.files"
local complete = require "nibble.repl.complete"
local context = require "nibble.repl.context"
local names = require "nibble.repl.names"

local MODEL, QUANTIZED = "spec/models/tiny-llama", "spec/interop/ct-w4a16-g128"

describe("completion", function()
  local env

  setup(function()
    env = require("nibble.repl.globals").new()
    env.m = assert(nb.open(MODEL))
    env.q = assert(nb.open(QUANTIZED))
    env.t = nb.tensor("f32", { 2 })
    _G.spec_keeps_bytes = true -- t lives as long as the block
  end)
  teardown(function()
    env.t:free()
    env = nil
    _G.spec_keeps_bytes = nil
  end)

  -- The words for the end of text, and what of the text they would replace.
  local function at(text)
    local r = complete.at(text, env)
    return r and table.concat(r.words, " ") or "nothing", r and text:sub(r.from)
  end

  it("finds globals, parts that are not loaded yet, and keywords", function()
    assert.same({ "open", "ope" }, { at "x = ope" })
    assert.equal("function", (at "functi"))
    assert.equal("do doctor dofile", (at "a/do"))
  end)

  it("finds fields after a dot and methods after a colon", function()
    assert.same({ "config count", "co" }, { at "m.co" })
    assert.same({ "size", "si" }, { at "print(t:si" })
    assert.equal("decode", (at "json.dec"))
    assert.equal("weight", (at 'm["lm_head"].we'))
    assert.equal("", (at "f().x"))
    assert.equal("", (at "nothing.x"))
    assert.equal("backends bit break", (at "a..b"))
  end)

  it("finds methods of a quantized module's weight without computing it", function()
    local weight = require("nibble.formats").weight
    local name = assert(env.q:grep "q_proj")[1].name
    require("nibble.formats").weight = function() error "computed" end
    finally(function() require("nibble.formats").weight = weight end)
    assert.equal("reshape rows", (at(('q["%s"].weight:r'):format(name))))
    assert.matches("dequantize", (at(('q["%s"].quantized:'):format(name))))
  end)

  it("finds modules and tensors a level at a time", function()
    assert.same({ "model.embed_tokens model.layers. model.norm", "mod" }, { at 'm["mod' })
    assert.equal("model.layers.0.mlp.down_proj", (at 'm["model.layers.0.mlp.d'))
    assert.equal("model.layers.0.mlp.down_proj.weight", (at 'm["model.layers.0.mlp.down_proj'))
    assert.equal("model.layers.0.mlp.up_proj", (at "m:tensor 'model.layers.0.mlp.u"))
    assert.equal("model.layers.0.mlp.up_proj", (at 'm:weight("model.layers.0.mlp.u'))
    assert.equal("lm_head", (at 'explain(m, "lm'))
  end)

  it("finds names by a part of them where none begins so", function()
    local r = complete.at('m["up_p', env)
    assert.is_true(r.contains)
    assert.equal("model.layers.0.mlp.up_proj", r.words[1])
    assert.equal(4, #r.words)
    assert.equal("", (at 'x["up_p'))
  end)

  it("finds methods of what a call gives, by its description", function()
    assert.equal("module modules", (at 'open("x"):modul'))
    assert.equal("reshape rows", (at 'm:tensor("lm_head.weight"):r'))
    assert.equal("dequantize", (at 't:quantize{scheme = "W4A16", group = (1 + 2)}:deq'))
    assert.equal("", (at "t:stats():r"))
    assert.equal("", (at "f(1):r"))
  end)

  it("finds options inside of a call's table, and not those that are given", function()
    assert.same({ "scale_dtype =  scheme =  strategy =  symmetric = ", "s" }, { at "t:quantize{s" })
    assert.equal("scale_dtype =  strategy =  symmetric = ", (at 't:quantize{scheme = "W4A16", s'))
    assert.matches("^model =  text =  ids =  context = .*windows = ", (at "eval.run{"))
    assert.equal("kind = ", (at "m:select{ki"))
    assert.equal("linear", (at 'm:select{min_bytes = 5, kind = "li'))
    assert.equal("saturate = ", (at 't:cast("bf16", {'))
    assert.equal("", (at "for i = 1, 2 do sched"))
  end)

  it("finds recipe keys in the table given to plan and recipe, at every depth", function()
    assert.equal("calibrate = ", (at "plan({ca"))
    assert.equal("format = ", (at 'recipe{ scheme = "W4A16", output = { f'))
    assert.matches("^activations =  actorder = .*when = $", (at "p = plan({rules = {{ '*', "))
    assert.equal("prefer = ", (at "plan{kernels = {pre"))
    assert.equal("model = ", (at "plan({\n  scheme = 'W4A16',\n  mo"))
  end)

  it("finds the values of options", function()
    assert.equal("W4A16 W4A16_ASYM", (at 't:quantize{scheme = "W4A16'))
    assert.matches('^.*"mse".* "rtn"', (at "t:quantize{method = "))
    assert.equal("true false", (at "t:quantize{symmetric = "))
    assert.equal("gptq gptq_v2", (at 'convert.to(m, "gp'))
    assert.equal("bf16", (at "t:cast 'bf"))
    assert.matches("sm_80", (at 'explain(m, {device = "'))
    assert.same({ "cpu cuda", "c" }, { at 't:to "c' })
    assert.same({ "cpu cuda", "" }, { at 'nibble.cuda.new("' })
    assert.equal("memory", (at "nibble.cuda.mem"))
    assert.equal("vllm-0.33", (at 'explain(m, {device = "sm_80", consumer = "vl'))
  end)

  it("finds paths, and recipes by name", function()
    assert.equal("spec/models/", (at 'open "spec/mod'))
    assert.equal("any-w4a16 any-w4a16-actorder any-w4a16-channel any-w4a16-g64", (at 'plan("any-w4a16'))
    assert.equal("recipes/any-w8a16.lua recipes/any-w8a8.lua", (at 'plan("recipes/any-w8'))
    assert.equal("recipes/any-w8a8.lua", (at ":run recipes/any-w8a8"))
    assert.equal("spec/models/eval/", (at 'eval.run{model = m, text = "spec/models/ev'))
    assert.equal("Makefile", (at "!wc -l Mak"))
    local dir = files.temporary()
    files.write(dir .. "/a b.lua", "")
    local r = complete.offer(('x = "%s/a b'):format(dir), "b", env)
    files.remove(dir)
    assert.same({ insert = "b.lua" }, r)
  end)

  it("finds commands, and names after ?", function()
    assert.equal("time trace", (at ":t"))
    assert.equal("decode", (at "?json.dec"))
    assert.equal("any-fp8 any-fp8-block any-fp8-dynamic", (at "?any-fp8"))
    assert.equal("size", (at ":time t:si"))
  end)

  it("says nothing in comments and long strings", function()
    assert.equal("nothing", (at "x = 1 -- ope"))
    assert.equal("nothing", (at "x = [[ope"))
    assert.equal("nothing", (at "--[[ ope\nope"))
    assert.equal("open", (at "x = 'it''s' -- '\n ope"))
  end)

  it("inserts what all begin with, then lists", function()
    assert.same({ insert = "model." }, complete.offer('m["mo', "mo", env))
    local r = complete.offer('m["model.', "model.", env)
    assert.equal("embed_tokens  layers.       norm", r.show)
    assert.same({ insert = "a/open" }, complete.offer("a/ope", "a/ope", env))
    assert.is_nil(complete.offer("x = zzzz", "zzzz", env))
  end)

  it("hints signatures after ( and {, of the person's functions too", function()
    local function hint(text) return (complete.offer(text, "", env) or {}).show end
    assert.matches("^open%(path%) %-> checkpoint", hint "open(")
    assert.matches("^t:cast%(dtype", hint "t:cast(")
    assert.matches("^run{model=, text=|ids=.*\n[^\n]*context = ", hint "eval.run{")
    env.mine = assert(loadstring "return function(a, b, ...) return a end")()
    assert.equal("mine(a, b, ...)", hint "mine(")
    assert.equal("mine(a, b, ...)", hint "x = 2 + mine(1, ")
    env.mine = nil
  end)

  it("follows chains of names and indexes, but never calls", function()
    assert.same({ "m", "files", 1 }, complete.chain "print(m.files[1]")
    assert.same({ "a", "x.y", "b" }, complete.chain 'a["x.y"].b')
    assert.is_nil(complete.chain "f(1)")
  end)

  it("knows where in a piece the cursor stands", function()
    local text = 'f(1, "a)", { x = { 3, '
    local call = context.call(text, context.at(text))
    assert.same({ keys = { "f" }, argument = 3, path = { "x" } }, { keys = call.keys, argument = call.argument, path = call.path })
    assert.is_nil(context.call("x = { 1, ", context.at "x = { 1, "))
    assert.is_nil(context.call("return { ", context.at "return { "))
  end)
end)

describe("names of a large checkpoint", function()
  it("come level by level, in natural order", function()
    local dir, parts = files.temporary(), {}
    for layer = 0, 119 do
      for _, module in ipairs { "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj" } do
        parts[#parts + 1] = ('"model.layers.%d.%s.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'):format(layer, module)
      end
    end
    local header = "{" .. table.concat(parts, ",") .. "}"
    files.write(dir .. "/m.safetensors", files.safetensors(header, ""))
    local ck = assert(nb.open(dir .. "/m.safetensors"))
    local words = names.complete(ck, "")
    assert.equal(120, #words)
    assert.same({ "model.layers.0.", "model.layers.2.", "model.layers.10." }, { words[1], words[3], words[11] })
    assert.same({ "model.layers.7.mlp.down_proj", "model.layers.7.mlp.up_proj" }, (names.complete(ck, "model.layers.7.m")))
    assert.same({ "model.layers.1.", "model.layers.10." }, { unpack((names.complete(ck, "model.layers.1")), 1, 2) })
    files.remove(dir)
  end)
end)
