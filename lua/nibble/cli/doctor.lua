-- doctor: what nibble can use on this machine, and why not the rest.
local M = {
  summary = "which instruction sets, libraries and devices are here, and why not",
  options = { { "--json", doc = "one JSON document" } },
}

function M.run(values)
  local report = require("nibble.doctor").examine()
  if values.json then
    io.write(require("nibble.json").encode(report, { indent = 2 }), "\n")
  else
    io.write(require("nibble.doctor").text(report))
  end
  return 0
end

return M
