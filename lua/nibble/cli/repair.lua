-- repair: the safe repairs of what check found, into a new folder.
local M = {
  summary = "the safe repairs of what check found, into a new folder",
  args = { { "MODEL" } },
}

function M.run() error("repair comes with the next commits", 0) end

return M
