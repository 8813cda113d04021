-- convert: another on-disk format for the same codes; lossless, or said to be lossy.
local common = require "nibble.cli.common"

local M = {
  summary = "another on-disk format for the same weights; lossless unless --lossy",
  args = { { "MODEL" } },
  options = {
    { "--to", "FORMAT", required = true, doc = "compressed-tensors, awq, gptq, gptq_v2, fp8, modelopt, plain" },
    { "--out", "DIR", required = true, doc = "the folder of the new checkpoint" },
    { "--lossy", doc = "convert by value where an exact conversion is impossible" },
    { "--json", doc = "the result as one JSON document" },
  },
  resumes = true,
}

function M.run(values)
  local nb = require "nibble"
  local ck = assert(nb.open(values.model))
  local result = assert(common.with_progress(function(report)
    return nb.convert.to(ck, values.to, values.out, { lossy = values.lossy or false, progress = report })
  end))
  return common.finished(result, values)
end

return M
