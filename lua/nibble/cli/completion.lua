-- completion: completion of nibble's commands for a shell.
local M = {
  summary = "completion of nibble's commands for a shell",
  args = { { "SHELL" } },
}

function M.run() error("completion comes with the next commits", 0) end

return M
