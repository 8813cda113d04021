-- Runs the executable as a user would: arguments in; status, stdout and stderr out.
local files = require "spec.support.files"

local M = {}

M.program = (os.getenv "NIBBLE_BUILD" or "build") .. "/nibble"

local function quote(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

local function words_of(arguments)
  if type(arguments) == "string" then return arguments end
  local quoted = {}
  for i, word in ipairs(arguments) do quoted[i] = quote(word) end
  return table.concat(quoted, " ")
end

--- run(arguments [, {before =, stdin =}]) -> {status=, out=, err=, lines={…}}
-- arguments: a shell's words, or an array of arguments as they are; before: shell text in front of the program
-- ("ulimit -f 1; exec", "NAME=value"); stdin: its text.
-- lines: stderr's lines without progress ("nibble:  10%  …").
function M.run(arguments, o)
  local out, err, input = os.tmpname(), os.tmpname(), o and o.stdin and os.tmpname()
  if input then files.write(input, o.stdin) end
  local status = os.execute(("%s %s %s <%s >%s 2>%s"):format(o and o.before or "exec", M.program, words_of(arguments),
    input or "/dev/null", out, err))
  local r = { status = status >= 256 and math.floor(status / 256) or status, out = files.read(out), err = files.read(err),
              lines = {} }
  os.remove(out)
  os.remove(err)
  if input then os.remove(input) end
  for line in r.err:gmatch "[^\n]+" do
    if not line:match "^nibble: +%d+%%  " then r.lines[#r.lines + 1] = line end
  end
  return r
end

return M
