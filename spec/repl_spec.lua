-- The session: what it shows, completes, explains and survives (DESIGN 5).
local nb = require "nibble"
local command = require "spec.support.command"
local terminal = require "spec.support.terminal"

local MODEL = "spec/models/tiny-llama"

-- stdout and stderr of a session whose input is piped.
local function session(lines, args)
  local r = command.run(args or {}, { stdin = table.concat(lines, "\n") })
  return r.out, r.err, r.status
end

describe("session with piped input", function()
  it("prints what expressions give, and only that", function()
    local out, err, status = session { "1 + 1", "x = 5", "x * 2", '"a", nil, {1, b = {2, "c"}}', "_", "nil" }
    assert.equal('2\n10\na\tnil\t{1, b = {2, "c"}}\na\n', out)
    assert.equal("", err)
    assert.equal(0, status)
  end)

  it("reads on until a piece is complete", function()
    assert.equal("1\n2\n3\n", (session { "for i = 1, 2 do", "print(i)", "end", "1 +", "2" }))
    local _, err = session { "f(" }
    assert.matches("near '<eof>'", err)
  end)

  it("tells errors in one line, goes on, and shows the trace when asked", function()
    local out, err = session { "local function f() error 'boom' end f()", ":trace", "open 'none'", "1" }
    assert.equal("boom\nnone doesn't exist; expected a checkpoint's folder or a .safetensors file\n", err)
    assert.matches("^boom\nstack traceback:.*\n1\n$", out:gsub("^session:1: ", ""))
  end)

  it("has the model, nibble's parts and Lua's own names", function()
    local out = session({ "model", 'model["lm_head"].n', "tensor('f32', {2}):numel()", "nibble.version", "math.pi > 3" },
      { MODEL })
    assert.equal("tiny-llama  safetensors  39 tensors  4.2 M params  bf16  8.0 MiB\n", out:match "^[^\n]*\n")
    assert.matches("\n2048\n2\n" .. nb.version:gsub("%p", "%%%0") .. "\ntrue\n$", out)
  end)

  it("explains functions, methods and modules with ?", function()
    local out = session { "?open", "?cast", "json?", "?nothing_like_it", "?" }
    assert.matches("^open%(path%) %-> checkpoint | nil, msg, code\n", out)
    assert.matches("\nt:cast%(dtype", out)
    assert.matches("\n  decode%(text", out)
    assert.matches("\nnothing here is called nothing_like_it", out)
    assert.matches("\nTab +completes", out)
  end)

  it("leaves on exit, with status 0", function()
    local out, _, status = session { "1", "exit", "2" }
    assert.same({ "1\n", 0 }, { out, status })
  end)
end)

describe("completion", function()
  local complete = require "nibble.repl.complete"
  local env

  setup(function()
    env = require("nibble.repl.globals").new()
    env.m = assert(nb.open(MODEL))
    env.t = nb.tensor("f32", { 2 })
    _G.spec_keeps_bytes = true -- t lives as long as the block
  end)
  teardown(function()
    env.t:free()
    env = nil
    _G.spec_keeps_bytes = nil
  end)

  local function at(line, word) return table.concat(complete.candidates(line, word, env) or { "files" }, " ") end

  it("finds globals, parts that are not loaded yet, and keywords", function()
    assert.equal("open", at("x = ope", "ope"))
    assert.equal("function", at("functi", "functi"))
    assert.equal("a/doctor a/dofile", (at("a/do", "a/do"):gsub("a/do ", "")))
  end)

  it("finds fields after a dot and methods after a colon", function()
    assert.equal("m.config m.count", at("m.co", "m.co"))
    assert.equal("t:size", at("print(t:si", "t:si"))
    assert.equal("json.decode", at("json.dec", "json.dec"))
    assert.equal("].weight", at('m["lm_head"].we', "].we"))
    assert.equal("", at("f().x", ").x"))
    assert.equal("", at("nothing.x", "nothing.x"))
  end)

  it("finds modules inside of brackets, and leaves other strings to file names", function()
    assert.equal("model.layers.0.mlp.up_proj", at('m["model.layers.0.mlp.u', "model.layers.0.mlp.u"))
    assert.equal("files", at('open "spec/mo', "spec/mo"))
  end)

  it("follows chains of names and indexes, but never calls", function()
    assert.same({ "m", "files", 1 }, complete.chain "print(m.files[1]")
    assert.same({ "a", "x.y", "b" }, complete.chain 'a["x.y"].b')
    assert.is_nil(complete.chain "f(1)")
  end)
end)

describe("session on a terminal", function()
  local home

  setup(function()
    home = os.tmpname()
    os.remove(home)
  end)
  teardown(function() os.execute("rm -rf " .. home) end)

  local function start()
    local t = terminal.start({ MODEL }, { HOME = home, XDG_STATE_HOME = "", TERM = "xterm", LC_ALL = "C.UTF-8" })
    if not t then return pending "no terminals here (/dev/pts is not mounted)" end
    assert(t:expect "nibble> ")
    return t
  end

  it("completes with Tab, hints signatures, reads on, and keeps a history", function()
    local t = start()
    t:send 'model["model.layers.0.mlp.d\t"].n\r'
    assert(t:expect "own_proj")
    assert(t:expect "256\r\nnibble> ")
    t:send "open(\t"
    assert(t:expect "open(path) -> checkpoint")
    t:send '"none")\r'
    assert(t:expect "none doesn't exist")
    assert(t:expect "nibble> ")
    t:send "for i = 7, 7 do\r"
    assert(t:expect "      > ")
    t:send "print(i .. '✓') end\r"
    assert(t:expect "\n7✓\r\nnibble> ")
    t:send "\4"
    assert.equal(0, t:close())

    t = start()
    t:send "\27[A\27[A\r" -- up, up
    assert(t:expect "      > ")
    t:send "\3"
    assert(t:expect "nibble> ")
    t:send "\4"
    assert.equal(0, t:close())
    local f = assert(io.open(home .. "/.local/state/nibble/history"))
    assert.matches("7,\\0407\\040do", f:read "*a")
    f:close()
  end)

  it("keeps the session when Ctrl-C comes: at the prompt and while something runs", function()
    local t = start()
    t:send "x = 'kept'\r"
    assert(t:expect "\r\nnibble> ")
    t:send "abc"
    assert(t:expect "abc")
    t:send "\3"
    assert(t:expect "\r\nnibble> ")
    t:send "jit.off() print 'go' for i = 1, 1e8 do local x = i end\r"
    assert(t:expect "\ngo\r\n")
    t:send "\3"
    assert(t:expect "interrupted")
    assert(t:expect "nibble> ")
    t:send "x .. 1\r"
    assert(t:expect "\nkept1\r\nnibble> ")
    t:send "\3"
    assert(t:expect "Ctrl-C once more")
    assert(t:expect "nibble> ")
    t:send "\3"
    assert.equal(130, t:close())
  end)
end)
