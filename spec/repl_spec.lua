-- The session with piped input: what it shows, explains, and how it takes what is typed (DESIGN 5).
local nb = require "nibble"
local command = require "spec.support.command"
local files = require "spec.support.files"
local pieces = require "nibble.repl.pieces"

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

  it("shows what a function takes", function()
    assert.equal("function: open(path) -> checkpoint | nil, msg, code\nfunction: function(a, b)\n",
      (session { "open", "f = function(a, b) end", "f" }))
  end)

  it("keeps the last three values", function()
    assert.equal("1\n2\n3\n3\t2\t1\n", (session { "1", "2", "x = 0", "3", "_, __, ___" }))
  end)

  it("reads on until a piece is complete", function()
    assert.equal("1\n2\n3\n", (session { "for i = 1, 2 do", "print(i)", "end", "1 +", "2" }))
    assert.equal("2\n3\n", (session { "nibble> 1 + 1", "nibble> 1 +", "      > 2" }))
    local _, err = session { "f(" }
    assert.matches("near '<eof>'", err)
  end)

  it("tells errors in one line, goes on, and shows the trace when asked", function()
    local out, err = session { "function f() error 'boom' end", "f() f()", ":trace", "open 'none'", "1" }
    assert.equal("boom\nnone doesn't exist; expected a checkpoint's folder or a .safetensors file\n", err)
    assert.equal("session[1]:1: boom\nstack traceback:\n\t[C]: in function 'error'\n\tsession[1]:1: in function 'f'\n"
      .. "\tsession[2]:1: in main chunk\n1\n", out)
    out, err = session { "for i = 1, 2 do", "error 'twice'", "end" }
    assert.same({ "", "line 2: twice\n" }, { out, err })
  end)

  it("tells why an assignment gave nil, and nothing else of one", function()
    local out, err = session { 'm = open "none"', "t = {}", "t.x = 5", "t.x", "a = 1 -- said", "a", "t.f = function()", "  return nil, 'why'",
      "end", "b = t.f()", ":time c = 7", "c" }
    assert.equal("none doesn't exist; expected a checkpoint's folder or a .safetensors file\nwhy\n", err)
    assert.matches("^5\n1\n[%d.]+ ms  [^\n]*\n7\n$", out)
  end)

  it("has the model, nibble's parts and Lua's own names", function()
    local out = session({ "model", 'model["lm_head"].n', "tensor('f32', {2}):numel()", "nibble.version", "math.pi > 3" },
      { MODEL })
    assert.equal("tiny-llama  safetensors  39 tensors  4.2 M params  bf16  8.0 MiB\n", out:match "^[^\n]*\n")
    assert.matches("\n2048\n2\n" .. nb.version:gsub("%p", "%%%0") .. "\ntrue\n$", out)
  end)

  it("leaves on exit, with status 0", function()
    for _, word in ipairs { "exit", "quit", ":quit" } do
      local out, _, status = session { "1", word, "2" }
      assert.same({ "1\n", 0 }, { out, status })
    end
  end)

  it("doesn't page, draw, colour or greet, and runs no init.lua", function()
    local home = files.temporary()
    assert(nb.checkpoint.mkdir(home .. "/nibble"))
    files.write(home .. "/nibble/init.lua", "print 'started'")
    local r = command.run({}, { stdin = "for i = 1, 99 do print(i) end ('x\\n'):rep(200)\nerror 'e'",
      before = "PAGER=false TERM=xterm XDG_CONFIG_HOME=" .. home })
    files.remove(home)
    assert.equal("1\n2\n", r.out:sub(1, 4))
    assert.is_nil((r.out .. r.err):find("\27", 1, true))
    assert.equal("e\n", r.err)
  end)
end)

describe("help", function()
  it("explains functions, methods, modules, options, recipes, schemes and commands with ?", function()
    local out = session { "?open", "?cast", "json?", "?nothing_like_it", "?", "?group", "?any-w4a16", "?w4a16", "?:time" }
    assert.matches("^open%(path%) %-> checkpoint | nil, msg, code\n", out)
    assert.matches("\nt:cast%(dtype", out)
    assert.matches("\n  decode%(text", out)
    assert.matches("\nnothing here is called nothing_like_it; %?%?nothing_like_it looks", out)
    assert.matches("\nTab +completes", out)
    assert.matches("\ngroup: group size along the input", out)
    assert.matches("\nrecipe recipes/any%-w4a16.lua\nAny architecture: 4%-bit weights", out)
    assert.matches("\nscheme W4A16: {bits = 4, group = 128", out)
    assert.matches("\n:time EXPR   runs it once", out)
  end)

  it("knows what the person typed or loaded", function()
    local dir = files.temporary()
    files.write(dir .. "/mine.lua", "--- half(x) -> x / 2\nfunction half(x) return x / 2 end")
    files.write(dir .. "/policy.lua", "-- My policy.\nreturn { scheme = 'W4A16' }")
    local out = session { ":run " .. dir .. "/mine.lua", "?half", "function twice(x, ...) return 2 * x end", "twice?",
      "?" .. dir .. "/policy.lua" }
    files.remove(dir)
    assert.equal("half(x) -> x / 2\ntwice(x, ...)   has no description\nrecipe " .. dir .. "/policy.lua\nMy policy.\n", out)
  end)

  it("searches every description with ??", function()
    local out = session { "??SATURATE", "??nan AND infinities are counted", "??no such words anywhere", "??" }
    assert.matches("t:cast%(dtype %[, {saturate = true}%]%) %-> a new tensor", out)
    assert.matches("\nt:stats%(%)[^\n]*\n    NaN and infinities are counted", out)
    assert.matches("\nno description has \"no such words anywhere\" in it\n", out)
    out = session { "??any architecture: 4-bit weights in groups of 128, by" }
    assert.equal("recipe recipes/any-w4a16.lua\n    Any architecture: 4-bit weights in groups of 128, by round to nearest as "
      .. "llm-compressor does it.\n", out)
  end)
end)

describe("commands", function()
  it("are suggested when mistyped", function()
    local _, err = session { ":tiem 1", ":xyzzy" }
    assert.matches('^:tiem is no command; did you mean "time"%?\n:xyzzy is no command; known: time run', err)
  end)

  it("time an expression, and show what it gave", function()
    local out, err = session { ':time tensor("f32", {1024, 256})', ":time", ":time x +", ":time error 'e'" }
    assert.matches("^f32 %[1024×256%]  1%.0 MiB[^\n]*\n[%d.]+ m?s  Lua %S+ %S+  tensors 1%.0 MiB  [%d.]+ [kMG]B/s of what it gave\n$",
      out)
    assert.matches("^:time needs something to run[^\n]*\nunexpected symbol near '<eof>'\ne\n$", err)
  end)

  it("list variables and memory", function()
    local out = session({ ":who", "t = tensor('bf16', {3, 4})", "s, n = 'abc', 7", "q = tensor('f32', {16, 128}):quantize{scheme = 'W4A16'}", ":who",
      ":mem" }, { MODEL })
    assert.matches("\nmodel  checkpoint  8%.0 MiB  39 tensors\n.-\nn +number\n"
      .. "q +quantized +2%.1 KiB  16×128\ns +string +3 B  3 characters\nt +bf16 +24 B  3×4\n", out)
    assert.matches("\ntensors +%d+%.?%d* KiB  %d+ buffers", out)
    assert.matches("\nprocess +%d", out)
  end)

  it("run files with the session's names, and tell where they fail", function()
    local dir = files.temporary()
    files.write(dir .. "/a.lua", "y = x + 1\nreturn y")
    files.write(dir .. "/bad.lua", "x = 1\nerror 'here'")
    files.write(dir .. "/wrong.lua", "x = = 1")
    local out, err = session { "x = 41", ":run " .. dir .. "/a.lua", "y", ":run " .. dir .. "/bad.lua", ":run " .. dir .. "/wrong.lua",
      ":run " .. dir .. "/none.lua" }
    files.remove(dir)
    assert.equal("42\n42\n", out)
    assert.matches("^[^\n]*/bad.lua:2: here\n[^\n]*/wrong.lua:1: unexpected symbol near '='\n[^\n]*none.lua[^\n]*\n$", err)
  end)

  it("write the session as a transcript that can be pasted back", function()
    local path = os.tmpname()
    local out = session { "1", ":log " .. path, "x = 2", "for i = 1, 2 do", "print(i)", "end", "io.write('w\\n')", "x * 2", "error 'e'",
      ":log off", "x", ":log /nowhere/at/all" }
    local text = files.read(path)
    os.remove(path)
    assert.equal("1\n1\n2\nw\ntrue\n4\n2\n", out)
    assert.equal("nibble> x = 2\nnibble> for i = 1, 2 do\n      > print(i)\n      > end\n1\n2\nnibble> io.write('w\\n')\nw\ntrue\n"
      .. "nibble> x * 2\n4\nnibble> error 'e'\ne\nnibble> :log off\n", text)
    assert.equal("x = 2\nfor i = 1, 2 do\nprint(i)\nend\nio.write('w\\n')\nx * 2\nerror 'e'\n:log off", pieces.clean(text))
  end)

  it("pass a line to the shell and tell its status", function()
    local out, err = session { "!echo a b | tr a-z A-Z", "!exit 3", "!", "!kill -9 $$" }
    assert.equal("A B\n", out)
    assert.equal("exit status 3\n! needs a command of the shell: !ls\nexit status 137\n", err)
  end)

  it("edit pieces, functions and files, and run what was written", function()
    local dir = files.temporary()
    files.write(dir .. "/editor", "#!/bin/sh\nsed -i s/old/new/ \"$1\"\n")
    files.write(dir .. "/file.lua", "print 'old file'\n")
    local lines = { "function f()", "  return 'old'", "end", ":edit f", "f()", "'an old piece'", ":edit", "x = = 1", ":edit",
      ":edit " .. dir .. "/file.lua",
      ":edit print", ":edit nothing", "'same'", ":edit" }
    local r = command.run({}, { stdin = table.concat(lines, "\n"), before = "VISUAL='sh " .. dir .. "/editor'" })
    files.remove(dir)
    assert.equal("new\nan old piece\nan new piece\nunchanged, nothing was run\nnew file\nsame\nunchanged, nothing was run\n", r.out)
    assert.matches("^unexpected symbol near '='\nprint was not typed in this session; name its file: :edit FILE\n"
      .. "nothing typed here is called nothing", r.err)
  end)
end)

describe("pieces", function()
  it("are one where they make one chunk, else as many as there are", function()
    assert.same({ "local a = 1\nprint(a)" }, pieces.split "local a = 1\nprint(a)")
    assert.same({ "x = 5", "x * 2", ":time x" }, pieces.split "x = 5\n\nx * 2\n:time x")
    assert.same({ "for i = 1, 2 do\n  print(i)\nend", "y" }, pieces.split "for i = 1, 2 do\n  print(i)\nend\ny")
  end)

  it("wait for more, or tell what is wrong before anything runs", function()
    assert.is_nil((pieces.split "x\nfor i = 1, 2 do"))
    assert.is_nil(select(2, pieces.split "x\nfor i = 1, 2 do"))
    local list, msg = pieces.split "x\ny = = 1\nz"
    assert.is_nil(list)
    assert.matches("unexpected symbol near '='", msg)
  end)

  it("lose the prompts and the output of a transcript", function()
    local text = "nibble> m = open \"x\"\nnibble> m\nx  safetensors  39 tensors\nnibble> for i = 1, 2 do\n      > print(i)\n      > end\n1\n2\n"
    assert.equal("m = open \"x\"\nm\nfor i = 1, 2 do\nprint(i)\nend", pieces.clean(text))
    assert.equal("a > b\n  > c", pieces.clean "a > b\n  > c")
  end)
end)
