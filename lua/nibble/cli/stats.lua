-- stats: statistics of every tensor or module: range, spread, outliers.
local common = require "nibble.cli.common"
local stats = require "nibble.stats"

local M = {
  summary = "statistics of every tensor or module: range, spread, outliers",
  notes = "PATTERN: a glob over module names (*.mlp.*), a piece of a name, or re:REGULAR-EXPRESSION.\n"
    .. "Of a quantized module: of the dequantized weight, and the smallest and largest scale.",
  args = { { "MODEL" }, { "PATTERN", optional = true } },
  options = {
    { "--sort", "COLUMN", values = stats.columns(), doc = "by a column, largest first (default: by name)" },
    { "--json", doc = "one JSON document" },
  },
}

function M.run(values)
  local nb = require "nibble"
  local ck = assert(nb.open(values.model))
  local result = assert(common.with_progress(function(report)
    return stats.of(ck, { pattern = values.pattern, sort = values.sort, progress = report })
  end))
  if #result == 0 and values.pattern then
    error(("no module of %s matches %s"):format(values.model, values.pattern), 0)
  end
  if values.json then
    local document = result:totable()
    document.model = values.model
    io.write(nb.json.encode(document, { indent = 2 }), "\n")
  else
    io.write(tostring(result), "\n")
  end
  return 0
end

return M
