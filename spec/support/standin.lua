-- standin: Lua code in a process of its own whose driver is the emulator (build/libcuemu.so), since a process opens its
-- driver once.
local command = require "spec.support.command"

local M = { library = (os.getenv "NIBBLE_BUILD" or "build") .. "/libcuemu.so" }

--- run(code [, environment]) -> what it prints and then its errors, exit status. `nb` is there; environment: variables.
function M.run(code, environment)
  local before = { "NIBBLE_LUA=lua", "NB_CUDA_DRIVER=" .. M.library }
  for name, value in pairs(environment or {}) do before[#before + 1] = ("%s='%s'"):format(name, value) end
  local r = command.run({ "-e", "local nb = require 'nibble' " .. code }, { before = table.concat(before, " ") })
  -- ASan says once that the emulator's fibers are beyond it.
  return r.out:gsub("\n$", "") .. r.err:gsub("==%d+==WARNING: ASan doesn't fully support makecontext[^\n]*\n", ""), r.status
end

--- with(prelude) -> run, of code that the prelude stands before; its text alone.
function M.with(prelude)
  return function(code, environment) return (M.run(prelude .. code, environment)) end
end

--- each_line(said, expected [, plain]): that the lines match these patterns (plain: hold these texts), in their order and no others.
function M.each_line(said, expected, plain)
  local lines = {}
  for line in said:gmatch "[^\n]+" do lines[#lines + 1] = line end
  for i, pattern in ipairs(expected) do
    if not (lines[i] or ""):find(pattern, 1, plain) then error(("line %d: expected %q in:\n%s"):format(i, pattern, said), 2) end
  end
  if #lines ~= #expected then error(("expected %d lines, found %d:\n%s"):format(#expected, #lines, said), 2) end
end

return M
