-- report: the results of a sweep as one HTML file that needs no network: tables, pictures, and the comparison with
-- another sweep. The same results give the same bytes.
local format = require "nibble.report.format"
local layers = require "nibble.report.layers"
local pack = require "nibble.report.pack"
local page = require "nibble.report.page"
local rows_of = require "nibble.report.rows"

local M = {}

-- A page is kept below this many bytes by leaving out figures of modules.
M.most_bytes = 4900000

local known = { title = true, against = true, against_name = true }

local function checked(what, results, level)
  if type(results) ~= "table" then
    error(("report: %s must be an array of results, found %s"):format(what, type(results)), level + 1)
  end
end

--- html(results [, {title=, against=, against_name=}]) -> the page as text.
-- results: array of a sweep's results (nb.sweep.read); against: those of another sweep, to compare with; against_name: what the
-- page calls it.
function M.html(results, options)
  options = options or {}
  for key in pairs(options) do
    if not known[key] then
      local hint = require("nibble.text").hint(key, { "title", "against", "against_name" })
      error(("report: unknown option %q%s"):format(tostring(key), hint), 2)
    end
  end
  checked("results", results, 2)
  if options.against ~= nil then checked("against", options.against, 2) end
  local rows, groups = rows_of.new(results)
  local models = layers.models(rows)
  local comparison
  if options.against then
    comparison = require("nibble.report.compare").new(rows, (rows_of.new(options.against)))
    comparison.name = options.against_name or "another run"
  end
  local before, after = page.html {
    title = options.title or "Sweep", rows = rows, groups = groups, models = models, comparison = comparison,
  }
  for level = 0, #pack.levels do
    local packed, room, last = pack.new(rows, models, level), M.most_bytes - #before - #after, level == #pack.levels
    if last or pack.least_bytes(packed) <= room then
      local middle = page.left_out(pack.levels[level]) .. format.data(packed)
      if last or #middle <= room then return before .. middle .. after end
    end
  end
end

--- write(path, results [, options]) -> true | nil, msg, code: the page as a file, all of it or nothing. Options as html's.
function M.write(path, results, options)
  return require("nibble.checkpoint").write_file(path, M.html(results, options))
end

return M
