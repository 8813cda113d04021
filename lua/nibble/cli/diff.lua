-- diff: two checkpoints compared after dequantization, across formats.
local M = {
  summary = "two checkpoints compared after dequantization, across formats",
  args = { { "A" }, { "B" } },
}

function M.run() error("diff comes with the next commits", 0) end

return M
