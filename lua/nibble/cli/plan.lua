-- plan: what `run` would do with each module, and why.
local common = require "nibble.cli.common"
local target = require "nibble.cli.target"

local M = {
  summary = "what a recipe would do with each module, and why; bytes and time",
  args = { { "RECIPE" }, { "MODEL" } },
  notes = "With a consumer, a device or a number of ranks: also the kernel that each written layer gets there, and why.",
  options = target.options {
    { "--set", "k=v", many = true, doc = "changes a field of the recipe (--set group=64)" },
    { "--json", doc = "one JSON document" },
  },
}

function M.run(values)
  local plan = common.planned(values)
  if target.given(values) then assert(plan:select(target.of(values))) end
  if values.json then
    io.write(require("nibble.json").encode(plan:totable(), { indent = 2 }), "\n")
  else
    io.write((tostring(plan):gsub("\n*$", "\n")))
  end
  return 0
end

return M
