-- diff: two checkpoints compared after dequantization, across formats.
local common = require "nibble.cli.common"
local sorts = require("nibble.diff.text").sorts

local M = {
  summary = "two checkpoints compared after dequantization, across formats, worst first",
  notes = "B is compared with A, module by module. PATTERN: a glob over module names (*.mlp.*), a piece of a name, or\n"
    .. "re:REGULAR-EXPRESSION. Status 1 when a bound was given and missed.",
  args = { { "A" }, { "B" }, { "PATTERN", optional = true } },
  options = {
    { "--sort", "ORDER", values = sorts, doc = table.concat(sorts, ", ") .. " (default sqnr: worst first)" },
    { "--limit", "N", number = true, doc = "rows of the table (default: all that differ)" },
    { "--all", doc = "rows of what is equal, too" },
    { "--equal", doc = "status 1 unless every value is the same" },
    { "--sqnr", "DB", number = true, doc = "status 1 when a module's SQNR is below" },
    { "--json", doc = "one JSON document, every module" },
  },
  again = true,
}

function M.run(values)
  local nb = require "nibble"
  local a, b = assert(nb.open(values.a)), assert(nb.open(values.b))
  local result = assert(common.with_progress(function(report)
    return nb.diff.run(a, b, { pattern = values.pattern, sort = values.sort, progress = report })
  end))
  if values.json then io.write(nb.json.encode(result:totable(), { indent = 2 }), "\n")
  else io.write(result:text { limit = values.limit, all = values.all, width = require("nibble.terminal").width() }) end
  local why = result:missed { equal = values.equal, sqnr_db = values.sqnr }
  if why then require("nibble.cli").say("%s", why) end
  return why and 1 or 0
end

return M
