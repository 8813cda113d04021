-- sweep: recipes x models x texts, each evaluated once, with a report.
local M = {
  summary = "recipes x models x texts, each evaluated once, with a report",
  args = { { "RECIPE", many = true } },
}

function M.run() error("sweep comes with the next commits", 0) end

return M
