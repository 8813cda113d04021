-- report: the report of a sweep's folder, on its own or against another sweep's.
local M = {
  summary = "the report of a sweep as one HTML file",
  notes = "The page needs no network and no server: a table that sorts and filters, size against perplexity, error by layer.",
  args = { { "DIR" } },
  options = {
    { "--against", "DIR", doc = "another sweep's folder: what changed since, job by job" },
    { "--out", "FILE", doc = "where the page goes (default: DIR/report.html)" },
    { "--title", "TEXT", doc = "the page's title (default: the folder's name)" },
  },
}

-- As the sweep itself calls its report: the folder's own name, wherever one stands.
local function name_of(dir) return (require("nibble.checkpoint").real(dir) or dir):match "[^/]+$" or dir end

function M.run(values)
  local nb = require "nibble"
  local results = assert(nb.sweep.read(values.dir))
  local against = values.against and assert(nb.sweep.read(values.against))
  local out = values.out or values.dir:gsub("(.)/+$", "%1") .. "/report.html"
  assert(nb.report.write(out, results, {
    title = values.title or name_of(values.dir), against = against or nil,
    against_name = against and name_of(values.against) or nil,
  }))
  print(out)
  return 0
end

return M
