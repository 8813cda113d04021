-- globals: what names mean in a session and in `nibble -e`: Lua's own, then the
-- parts of nibble (open, plan, tensor, ...). Assignments stay in the session.
local nb = require "nibble"

local M = {}

--- new() -> the environment of a session.
function M.new()
  local env = { nibble = nb }
  env._G = env
  return setmetatable(env, {
    __index = function(_, name)
      local value = _G[name]
      if value == nil then value = nb[name] end
      return value
    end,
    __methods = getmetatable(nb).__methods,
  })
end

return M
