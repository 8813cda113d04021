-- Runs the executable as a user would: arguments in; status, stdout and stderr out.
local files = require "spec.support.files"

local M = {}

M.program = (os.getenv "NIBBLE_BUILD" or "build") .. "/nibble"

--- run(arguments [, before]) -> {status=, out=, err=, lines={…}}
-- arguments: a shell's words; before: shell text in front of the program ("ulimit -f 1; exec").
-- lines: stderr's lines without progress ("nibble:  10%  …").
function M.run(arguments, before)
  local out, err = os.tmpname(), os.tmpname()
  local command = ("%s %s %s </dev/null >%s 2>%s"):format(before or "exec", M.program, arguments, out, err)
  local status = os.execute(command)
  local r = { status = status >= 256 and math.floor(status / 256) or status, out = files.read(out), err = files.read(err),
              lines = {} }
  os.remove(out)
  os.remove(err)
  for line in r.err:gmatch "[^\n]+" do
    if not line:match "^nibble: +%d+%%  " then r.lines[#r.lines + 1] = line end
  end
  return r
end

return M
