-- run: plans, quantizes or converts, verifies and writes; goes on where it stopped.
local common = require "nibble.cli.common"

local M = {
  summary = "quantizes or converts a model by a recipe, proves it and writes it",
  notes = "Stopped at any moment, the same command goes on where it was.\n"
    .. "Many machines that share DIR: --shard i/n on each, in any order, then --merge; --engine slurm submits\n"
    .. "such tasks, one for each file of the output. The result has the same bytes.\n"
    .. "Exit status 1: a bound of the recipe's `accept` was missed.",
  args = { { "RECIPE" }, { "MODEL" } },
  options = {
    { "--out", "DIR", required = true, doc = "the folder of the new checkpoint" },
    { "--set", "k=v", many = true, doc = "changes a field of the recipe (--set group=64)" },
    { "--shard", "i/n", doc = "only the output's files i, i+n, i+2n ..." },
    { "--merge", doc = "only gathers what shards wrote" },
    { "--json", doc = "the result as one JSON document" },
  },
  resumes = true,
}

function M.run(values)
  local shard = common.shard(values)
  local plan = common.planned(values)
  local result = assert(common.with_progress(function(report)
    return plan:run(values.out, { progress = report, shard = shard, merge = values.merge })
  end))
  return common.finished(result, values)
end

return M
