-- pager: text that is longer than the terminal, a screen at a time: $PAGER, less, or a small one of our own.
local keys = require "nibble.repl.keys"
local shell = require "nibble.repl.shell"
local terminal = require "nibble.terminal"

local M = {}

-- Lines that text takes on a terminal of so many columns; counting ends above `most`.
local function height(text, columns, most)
  local width, lines = require("nibble.show").width, 0
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    lines = lines + math.max(1, math.ceil(width(line) / columns))
    if lines > most then break end
  end
  return lines
end

-- Screens with a question between them; q or the end of the input leaves.
local function simple(text, columns, rows)
  local room = rows - 1
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    local takes = height(line, columns, rows)
    if takes > room and room < rows - 1 then
      io.write "-- more: Enter, q leaves -- "
      io.flush()
      local answer = keys.line()
      if not answer or answer:match "^%s*[qQ]" then return end
      room = rows - 1
    end
    io.write(line, "\n")
    room = room - takes
  end
end

-- The pager's command line, or nil: our own.
local function program()
  local named = os.getenv "PAGER"
  if named and named:find "%S" then return named end
  return shell.has "less" and "less -FRX" or nil
end

--- show(text): on a terminal by the pager where it is longer than that; elsewhere as it is.
function M.show(text)
  text = text:gsub("\n$", "")
  local columns, rows = terminal.size(1)
  local fits = not columns or not terminal.draws(1) or not terminal.draws(0) or height(text, columns, rows) < rows
  local with = not fits and program()
  if fits then
    io.write(text, "\n")
  elseif not with then
    simple(text, columns, rows)
  else
    shell.with_file(text .. "\n", "", function(path)
      shell.run(("LESSCHARSET=${LESSCHARSET:-utf-8} %s <%s"):format(with, shell.quote(path)))
    end)
  end
end

return M
