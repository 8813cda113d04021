-- check: lint of a checkpoint against the rules of its consumers.
local M = {
  summary = "lint of a checkpoint against the rules of its consumers",
  args = { { "MODEL" } },
}

function M.run() error("check comes with the next commits", 0) end

return M
