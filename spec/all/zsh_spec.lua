-- The completion that `nibble completion zsh` writes, in a real zsh in a terminal (tmux).
local command = require "spec.support.command"
local terminal = require "spec.support.terminal"

local build = command.program:match "^(.*)/nibble$"

describe("zsh completion", function()
  local it = terminal.here() and it or pending
  local dir, socket

  local function tmux(arguments)
    local p = assert(io.popen(("tmux -L %s %s 2>&1"):format(socket, arguments)))
    local text = p:read "*a"
    p:close()
    return text
  end

  -- The screen once it shows the text, or what it shows after 10 s.
  local function screen_with(text)
    local screen
    for _ = 1, 100 do
      screen = tmux "capture-pane -p -t 0"
      if screen:find(text, 1, true) then break end
      os.execute "sleep 0.1"
    end
    return screen
  end

  setup(function()
    dir = os.tmpname()
    os.remove(dir)
    socket = "nibble" .. dir:match "[^_/]+$"
    os.execute(("mkdir %s && %s completion zsh > %s/_nibble"):format(dir, command.program, dir))
    tmux 'new-session -d -x 120 -y 40 "zsh -f -i"'
    tmux(([[send-keys -t 0 'PATH=%s:$PATH; fpath=(%s $fpath); autoload -Uz compinit; compinit -u -D; PS1="ready> "; clear' Enter]])
      :format(build, dir))
    screen_with "ready>"
  end)

  teardown(function()
    tmux "kill-server"
    os.execute("rm -r " .. dir)
  end)

  for typed, shown in pairs {
    ["nibble insp"] = "nibble inspect", ["nibble eval m --act"] = "nibble eval m --activations",
    ["nibble run any-w4a16-act"] = "any-w4a16-actorder", ["nibble plan a b --consumer vll"] = "--consumer vllm-0.33",
    ["nibble inspect spec/models/tiny-l"] = "spec/models/tiny-llama", ["nibble convert x --to compr"] = "--to compressed-tensors",
  } do
    it("makes " .. shown .. " of " .. typed, function()
      tmux(("send-keys -t 0 -l '%s'"):format(typed))
      screen_with(typed)
      tmux "send-keys -t 0 Tab"
      local screen = screen_with(shown)
      assert.is_truthy(screen:find(shown, 1, true), screen)
      tmux "send-keys -t 0 C-u"
      tmux "send-keys -t 0 C-l"
    end)
  end
end)
