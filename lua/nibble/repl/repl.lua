-- repl: the interactive session.
local M = {}

--- start([model]) -> exit status.
function M.start(model)
  local nb = require "nibble"
  local env = setmetatable({ model = model and assert(nb.open(model)) }, { __index = function(_, k)
    local v = _G[k]
    if v == nil then v = nb[k] end
    return v
  end })
  for line in io.lines() do
    local chunk, msg = loadstring("return " .. line, "=session")
    if not chunk then chunk, msg = loadstring(line, "=session") end
    local ok, value = false, msg
    if chunk then ok, value = pcall(setfenv(chunk, env)) end
    print(ok and require("nibble.repl.show").value(value) or "error: " .. tostring(value))
  end
  return 0
end

return M
