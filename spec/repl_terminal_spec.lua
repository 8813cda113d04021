-- The session on a terminal of its own (a pty): keys, pasting, history, Ctrl-C, the pager, the editor, dumb and
-- narrow terminals.
local files = require "spec.support.files"
local terminal = require "spec.support.terminal"

local MODEL = "spec/models/tiny-llama"
local PROMPT = "nibble> "

describe("session on a terminal", function()
  local home

  setup(function() home = files.temporary() end)
  teardown(function() os.execute("rm -rf " .. home) end)

  -- A session at its first prompt; env and size as terminal.start takes them.
  local function start(env, columns, rows, args)
    local all = { HOME = home, XDG_STATE_HOME = "", XDG_CONFIG_HOME = "", TERM = "xterm", LC_ALL = "C.UTF-8", PAGER = "cat",
                  NO_COLOR = "" }
    for k, v in pairs(env or {}) do all[k] = v end
    local t = terminal.start(args or { MODEL }, all, columns, rows)
    if not t then return pending "no terminals here (/dev/pts is not mounted)" end
    assert(t:expect(PROMPT))
    return t
  end

  -- Sends a line and waits for text, then for the next prompt.
  local function ask(t, line, text)
    t:send(line .. "\r")
    local before = assert(t:expect(text))
    return before .. assert(t:expect(PROMPT))
  end

  local function say(t, line)
    t:send(line .. "\r")
    assert(t:expect(PROMPT))
  end

  local function leave(t)
    t:send "\4"
    assert.equal(0, t:close())
  end

  it("completes with Tab, hints signatures, reads on", function()
    local t = start()
    t:send 'model["model.layers.0.mlp.d\t"].n\r'
    assert(t:expect "own_proj")
    assert(t:expect("256\r\n"))
    assert(t:expect(PROMPT))
    t:send "open(\t"
    assert(t:expect "open(path) -> checkpoint")
    t:send '"none")\r'
    assert(t:expect "none doesn't exist")
    assert(t:expect(PROMPT))
    t:send 'model["model.\t'
    assert(t:expect "embed_tokens  layers.       norm")
    t:send "\21for i = 7, 7 do\r"
    assert(t:expect "      > ")
    t:send "print(i .. '✓') end\r"
    assert(t:expect "\n7✓\r\n")
    leave(t)
  end)

  it("counts characters, not bytes, left of a completed word", function()
    local t = start()
    t:send "é = 'ééé' .. tostr\t(5)\21x = 'ééé' .. tostr\t(5)\r"
    assert(t:expect "ing")
    assert(t:expect(PROMPT))
    ask(t, "x", "\nééé5\r")
    t:send "y = 'aé\127\127b'\r" -- rubs out whole characters
    assert(t:expect(PROMPT))
    ask(t, "#y", "\n1\r")
    leave(t)
  end)

  it("takes a pasted block as one piece, Tabs and all, and waits for Enter", function()
    local t = start()
    t:send "\27[200~local a = 40\nfor i = 1, 2 do\n\ta = a + i\nend\nprint('sum', a)\n\27[201~"
    assert(t:expect "print('sum', a)")
    assert.is_nil(t:expect("43", 0.3))
    t:send "\r"
    assert(t:expect "\nsum\t43")
    assert(t:expect(PROMPT))
    t:send "\27[A\r" -- up: the whole block again
    assert(t:expect "\nsum\t43")
    assert(t:expect(PROMPT))
    t:send "ok\27[200~ = 5\27[201~\r"
    assert(t:expect(PROMPT))
    ask(t, "ok", "\n5\r")
    leave(t)
  end)

  it("cleans a pasted transcript and runs its pieces one by one", function()
    local t = start()
    t:send "\27[200~nibble> v = 6\r\nnibble> v\r\n6\r\nnibble> for i = 1, 1 do\r\n      > print('got', v * 7)\r\n      > end\r\ngot 42\27[201~\r"
    assert(t:expect "\n6\r")
    assert(t:expect "\ngot\t42\r")
    leave(t)
  end)

  it("takes bytes that are no UTF-8 and paste that is no text", function()
    local t = start()
    t:send "a = '\255\195('\r"
    assert(t:expect(PROMPT))
    ask(t, "#a", "\n7\r") -- two replacement characters and a parenthesis
    t:send "\27[200~b = 1 -- \27\1\127\255\0\27[201~\r"
    assert(t:expect(PROMPT))
    ask(t, "b", "\n1\r")
    t:send("\27[200~c = '" .. ("x"):rep(20000) .. "'\n" .. ("d = #c\n"):rep(300) .. "\27[201~\r")
    assert(t:expect(PROMPT))
    ask(t, "d + 1", "\n20001\r")
    leave(t)
  end)

  it("tells once that a local is gone with its line", function()
    local t = start()
    ask(t, "local x = 1", "(x is gone with its line; without `local` it stays)")
    t:send "local y = 2\r"
    assert.is_nil(assert(t:expect(PROMPT)):find("gone", 1, true))
    leave(t)
  end)

  it("keeps the session when Ctrl-C comes into a search or its own pager", function()
    local t = start({ PAGER = "", PATH = "/nowhere" }, 80, 8)
    t:send "('line\\n'):rep(20)\r"
    assert(t:expect "-- more: Enter, q leaves -- ")
    t:send "\3"
    assert(t:expect(PROMPT))
    ask(t, "5 + 5", "\n10\r")
    leave(t)
  end)

  it("keeps a history: pieces whole, on the disk before they run, searched by Ctrl-R", function()
    local t = start()
    t:send "for i = 1, 1 do\r"
    assert(t:expect "      > ")
    t:send "print('needle' .. i) end\r"
    assert(t:expect "\nneedle1")
    assert(t:expect(PROMPT))
    say(t, "hay = 1")
    t:send "os.exit(9)\r"
    assert.equal(9, t:close())
    local text = files.read(home .. "/.local/state/nibble/history")
    assert.matches("\nfor\\040i\\040=\\0401,\\0401\\040do\\012print%('needle'\\040%.%.\\040i%)\\040end\n", text)
    assert.matches("\nos.exit%(9%)\n$", text)

    t = start()
    t:send "\18needle\r"
    assert(t:expect "bck:")
    assert(t:expect "\nneedle1")
    assert(t:expect(PROMPT))
    t:send "\27[A\27[A\27[A\r" -- needle, os.exit, hay
    assert(t:expect(PROMPT))
    ask(t, "hay", "\n1\r")
    leave(t)
  end)

  it("keeps the session when Ctrl-C comes: at the prompt and while something runs", function()
    local t = start()
    t:send "x = 'kept'\r"
    assert(t:expect("\r\n" .. PROMPT))
    t:send "abc"
    assert(t:expect "abc")
    t:send "\3"
    assert(t:expect("\r\n" .. PROMPT))
    t:send "for i = 1, 2 do\r"
    assert(t:expect "      > ")
    t:send "\3"
    assert(t:expect("\r\n" .. PROMPT))
    t:send "jit.off() print 'go' for i = 1, 1e9 do local x = i end\r"
    assert(t:expect "\ngo\r\n")
    t:send "\3"
    assert(t:expect "interrupted")
    assert(t:expect(PROMPT))
    ask(t, "x .. 1", "\nkept1\r")
    t:send "\3"
    assert(t:expect "Ctrl-C once more")
    assert(t:expect(PROMPT))
    t:send "\3"
    assert.equal(130, t:close())
  end)

  it("stops C jobs, tensor loops and files that run", function()
    files.write(home .. "/long.lua", "print 'go'\njit.off(true, true)\nlocal x = 0\nwhile true do x = x + 1 end\n")
    local t = start()
    for _, line in ipairs {
      "print 'go' while true do w:stats() end",
      "print 'go' while true do w:map(function(v) return v * 0.5 end) end",
      "print 'go' eval.run{model = model, ids = 'spec/models/eval/test_tokens.safetensors', context = 256}",
      ":run " .. home .. "/long.lua",
      ":time (function() print 'go' while true do w:clone() end end)()",
    } do
      t:send "w = tensor('f32', {512, 512})\r"
      assert(t:expect(PROMPT))
      t:send(line .. "\r")
      assert(t:expect "\ngo\r\n")
      t:send "\3"
      assert(t:expect "interrupted")
      assert(t:expect(PROMPT))
    end
    leave(t)
  end)

  it("ends at the second Ctrl-C in a compiled loop, with the history on the disk", function()
    if os.getenv "NIBBLE_JIT" == "off" then return pending "nothing is compiled here" end
    local t = start()
    t:send "x = 0 print 'go' for i = 1, 1e13 do x = i end\r"
    assert(t:expect "\ngo\r\n")
    t:send "\3"
    assert.is_nil(t:expect(PROMPT, 0.3))
    t:send "\3"
    assert.equal(130, t:close())
    assert.matches("\nx\\040=\\0400\\040print\\040'go'[^\n]*\n$", files.read(home .. "/.local/state/nibble/history"))
  end)

  it("gives Ctrl-C to a shell's command and goes on", function()
    local t = start()
    t:send "!echo ready; exec sleep 20\r"
    assert(t:expect "\nready\r\n")
    t:send "\3"
    assert(t:expect "exit status 130")
    assert(t:expect(PROMPT))
    t:send "\3" -- one alone doesn't leave
    assert(t:expect "Ctrl-C once more")
    assert(t:expect(PROMPT))
    leave(t)
  end)

  it("pages what is longer than the terminal, and only that", function()
    files.write(home .. "/pager", "#!/bin/sh\necho \"PAGED $(wc -l)\"\n")
    local t = start({ PAGER = "sh " .. home .. "/pager" }, 80, 10)
    ask(t, "('line\\n'):rep(8)", "line\r\nline\r\nline\r\nline\r\nline\r\nline\r\nline\r\nline\r\n")
    ask(t, "('line\\n'):rep(10)", "PAGED 10\r\n")
    ask(t, "('x'):rep(900)", "PAGED 1\r\n")
    t:send "print(('line\\n'):rep(12))\r" -- the person's own print is theirs
    assert.is_nil(assert(t:expect(PROMPT)):find("PAGED", 1, true))
    leave(t)
  end)

  it("has a pager of its own where there is no other", function()
    local t = start({ PAGER = "", PATH = "/nowhere" }, 80, 8)
    t:send "('line\\n'):rep(20)\r"
    assert(t:expect "-- more: Enter, q leaves -- ")
    t:send "\r"
    assert(t:expect "-- more: Enter, q leaves -- ")
    t:send "q\r"
    assert(t:expect(PROMPT))
    leave(t)
  end)

  it("tells errors in red, without colour where NO_COLOR is set", function()
    local t = start()
    ask(t, "error 'e'", "\27[31me\27[0m\r\n")
    leave(t)
    t = start { NO_COLOR = "1" }
    ask(t, "error 'e'", "\ne\r\n")
    leave(t)
  end)

  it("runs init.lua first; its error is one line and the session starts", function()
    local path = home .. "/.config/nibble/init.lua"
    assert(require("nibble").checkpoint.mkdir(home .. "/.config/nibble"))
    files.write(path, "mine = 42\nerror 'in init'")
    local t = terminal.start({}, { HOME = home, XDG_STATE_HOME = "", XDG_CONFIG_HOME = "", TERM = "xterm", NO_COLOR = "" })
    if not t then return pending "no terminals here (/dev/pts is not mounted)" end
    assert(t:expect "\27[31m")
    assert(t:expect "init.lua:2: in init")
    assert(t:expect(PROMPT))
    ask(t, "mine", "\n42\r")
    leave(t)
    os.remove(path)
  end)

  it("writes no escape codes on a dumb terminal", function()
    local t = start { TERM = "dumb" }
    local seen = ask(t, "1 + 1", "\n2\r") .. ask(t, "error 'e'", "\ne\r\n")
    assert.is_nil(seen:find("\27", 1, true))
    t:send "\3"
    assert(t:expect "Ctrl-C once more")
    assert(t:expect(PROMPT))
    t:send "jit.off() print 'go' while true do end\r"
    assert(t:expect "\ngo\r\n")
    t:send "\3"
    assert(t:expect "interrupted")
    assert(t:expect(PROMPT))
    leave(t)
  end)

  it("fits 40 columns, and a window that changes", function()
    local t = start(nil, 40, 12)
    local seen = ask(t, "?", "the parts of nibble")
    assert.is_nil(seen:find "nibble>[^\n]*nibble>")
    t:send ("x = '" .. ("é"):rep(60))
    assert(t:expect("é\r\n", 2) or true)
    t:resize(100, 12)
    assert(t:expect(PROMPT)) -- drawn anew
    t:send "' #x\21y = 7\r"
    assert(t:expect(PROMPT))
    ask(t, "y", "\n7\r")
    leave(t)
  end)

  it("draws a run's progress in one line, however narrow", function()
    local t = start(nil, 40, 12)
    t:send('plan("any-w4a16", model):run "' .. home .. '/out"\r')
    local seen = assert(t:expect "every module decoded")
    local lines = 0
    for drawn in seen:gmatch "\r\27%[K([^\r\n]*)" do
      if drawn:find("/39 ", 1, true) then -- and not what follows the last one
        lines = lines + 1
        assert.is_true(require("nibble.show").width(drawn) < 40)
      end
    end
    assert.is_true(lines > 0)
    assert(t:expect(PROMPT))
    leave(t)
  end)

  it("opens the editor and runs what was written", function()
    files.write(home .. "/editor", "#!/bin/sh\necho 'edited = 11' > \"$1\"\n")
    local t = start { VISUAL = "sh " .. home .. "/editor" }
    say(t, ":edit")
    ask(t, "edited", "\n11\r")
    leave(t)
  end)
end)
