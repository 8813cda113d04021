-- The session in tmux, a real terminal with a screen: what a person sees after completing, pasting, searching the
-- history, resizing the window, leaving a pager and stopping the session and going on with it.
local command = require "spec.support.command"
local terminal = require "spec.support.terminal"
local files = require "spec.support.files"
local C = require("nibble.ffi").C

local PROMPT = "nibble>" -- tmux leaves out blanks at a line's end

describe("session in tmux", function()
  local it = terminal.here() and it or pending
  local home, socket

  local function tmux(...)
    local words = { "tmux", "-f", "/dev/null", "-S", socket }
    for _, w in ipairs { ... } do words[#words + 1] = "'" .. w:gsub("'", "'\\''") .. "'" end
    local p = io.popen(table.concat(words, " ") .. " 2>&1")
    local out = p:read "*a"
    p:close()
    return out
  end

  -- The screen's lines without the empty ones at its end.
  local function screen() return (tmux("capture-pane", "-p"):gsub("%s+$", "")) end

  -- Waits until the screen holds text; the screen.
  local function see(text)
    local deadline = C.nb_now() + 15
    local now
    repeat
      now = screen()
      if now:find(text, 1, true) then return now end
      os.execute "sleep 0.05"
    until C.nb_now() > deadline
    error(("not seen: %q; the screen:\n%s"):format(text, now), 2)
  end

  local function keys(...) tmux("send-keys", ...) end

  -- An empty screen but for the prompt: what stood there can't be taken for what comes.
  local function clear()
    keys "C-l"
    local deadline = C.nb_now() + 15
    while screen() ~= PROMPT and C.nb_now() < deadline do os.execute "sleep 0.05" end
    assert.equal(PROMPT, screen())
  end
  local function type_in(text) tmux("send-keys", "-l", text) end

  local function start(columns, rows, what)
    tmux("new-session", "-d", "-x", tostring(columns), "-y", tostring(rows),
      ("HOME=%s XDG_STATE_HOME= XDG_CONFIG_HOME= LC_ALL=C.UTF-8 NO_COLOR= PAGER= %s"):format(home,
        what or command.program .. " spec/models/tiny-llama"))
  end

  before_each(function()
    home = files.temporary()
    socket = home .. "/tmux"
  end)
  after_each(function()
    tmux "kill-server"
    os.execute("sleep 0.1; rm -rf " .. home)
  end)

  it("completes below the line and leaves the line as it was", function()
    start(80, 24)
    see(PROMPT)
    type_in 'model["model.layers.0.'
    keys "Tab"
    local now = see "self_attn."
    assert.matches('\nnibble> model%["model%.layers%.0%.\ninput_layernorm +post_attention_layernorm\nmlp%. +self_attn%.\n'
      .. 'nibble> model%["model%.layers%.0%.$', now)
    type_in "mlp.up"
    keys "Tab"
    type_in '"]'
    keys "Enter"
    see "model.layers.0.mlp.up_proj  linear [768×256]"
  end)

  it("shows options with what they mean", function()
    start(100, 40)
    see(PROMPT)
    type_in "plan{calibrate = {"
    keys "Tab"
    local now = see "windows (128)"
    assert.matches("\n  samples +windows %(128%)\n", now)
  end)

  it("shows a pasted block whole, runs it at Enter, and recalls it whole", function()
    files.write(home .. "/block", "nibble> local s = 0\nnibble> for i = 1, 3 do\n      > \ts = s + i\n      > end\nprint('sum ' .. s)\n")
    files.write(home .. "/plain", "local s = 0\nfor i = 1, 3 do\n\ts = s + i\nend\nprint('sum ' .. s)\n")
    start(60, 20)
    see(PROMPT)
    tmux("load-buffer", home .. "/plain")
    tmux("paste-buffer", "-p")
    local now = see "print('sum ' .. s)"
    assert.is_nil(now:find("sum 6", 1, true))
    keys "Enter"
    see "\nsum 6\n"
    clear()
    keys "Up"
    now = see "print('sum"
    assert.matches("^nibble> local s = 0\nfor i = 1, 3 do\n        s = s %+ i\nend\nprint%('sum ' %.%. s%)$", now)
  end)

  it("searches the history with Ctrl-R", function()
    start(60, 20)
    see(PROMPT)
    for i = 1, 3 do
      type_in(("found%d = %d"):format(i, i))
      keys "Enter"
    end
    keys "C-r"
    type_in "d1"
    see "bck:d1"
    keys "Enter"
    clear()
    type_in "found1 + found3"
    keys "Enter"
    see "\n4\n"
  end)

  it("draws the line anew in a window that changes", function()
    start(70, 20)
    see(PROMPT)
    clear()
    type_in("x = '" .. ("ü"):rep(40) .. "'")
    see "'"
    tmux("resize-window", "-x", "40", "-y", "20")
    see(("ü"):rep(27) .. "\n" .. ("ü"):rep(13) .. "'")
    keys("Left", "Left")
    type_in "ß"
    see("ß" .. "ü'")
  end)

  it("comes back from the pager with the session whole", function()
    start(60, 12)
    see(PROMPT)
    type_in "y = 5 return ('line\\n'):rep(50)"
    keys "Enter"
    see "line\n:" -- its own prompt, not what was typed
    keys "C-c" -- the pager's, not the session's; it drops keys that come with it
    os.execute "sleep 0.3"
    keys "q"
    see(PROMPT)
    clear()
    type_in "y"
    keys "Enter"
    see "\n5\n"
  end)

  it("goes on after Ctrl-Z and fg, the line being edited with it", function()
    start(70, 20, "PS1='sh-ready ' bash --norc -i")
    see "sh-ready"
    type_in(command.program)
    keys "Enter"
    see(PROMPT)
    type_in "z = 12"
    see "z = 12" -- a terminal drops what nobody has read when it stops who should
    keys "C-z"
    see "topped"
    type_in "fg"
    keys "Enter"
    os.execute "sleep 0.6" -- the session looks at its terminal now and then
    see "z = 12"
    type_in "3"
    keys "Enter"
    type_in "z + 1"
    keys "Enter"
    see "\n124\n"
  end)
end)
