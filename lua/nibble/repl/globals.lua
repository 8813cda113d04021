-- globals: what names mean in a session and in `nibble -e`: Lua's own, then the
-- parts of nibble (open, plan, tensor, ...). Assignments stay in the session.
local nb = require "nibble"

local M = {}

-- Pictures: verbs of a session, which the workbench itself doesn't have.
local pictures = { plot = true, hist = true, heat = true, curve = true }

local function picture(name)
  if not pictures[name] then return nil end
  local plot = require "nibble.repl.plot"
  return name == "plot" and plot or plot[name]
end

--- new() -> the environment of a session.
function M.new()
  local env = { nibble = nb }
  env._G = env
  local named = {} -- for completion
  for _, list in ipairs { getmetatable(nb).__methods, pictures } do
    for name in pairs(list) do named[name] = true end
  end
  return setmetatable(env, {
    __index = function(_, name)
      local value = _G[name]
      if value == nil then value = nb[name] end
      if value == nil then value = picture(name) end
      return value
    end,
    __methods = named,
  })
end

return M
