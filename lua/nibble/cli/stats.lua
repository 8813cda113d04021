-- stats: statistics of every tensor or module: range, spread, outliers.
local M = {
  summary = "statistics of every tensor or module: range, spread, outliers",
  args = { { "MODEL" }, { "PATTERN", optional = true } },
}

function M.run() error("stats comes with the next commits", 0) end

return M
