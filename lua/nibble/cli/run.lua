-- run: plans, quantizes or converts, verifies and writes; goes on where it stopped.
local checkpoint = require "nibble.checkpoint"
local common = require "nibble.cli.common"
local output = require "nibble.output"
local parts = require "nibble.convert_parts"
local process = require "nibble.process"
local slurm = require "nibble.slurm"

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
    { "--device", "NAME", words = function() return { "cpu", "cuda" } end,
      doc = "where the model runs when it calibrates: cpu (default), or cuda, cuda:1 …" },
    { "--json", doc = "the result as one JSON document" },
    unpack(slurm.options),
  },
  resumes = true,
}

-- The command of a task, without its shard.
local function command(values)
  local words = { checkpoint.real(process.program()) or process.program(), "run", values.recipe, values.model, "--out", values.out }
  for _, set in ipairs(values.set or {}) do
    words[#words + 1] = "--set"
    words[#words + 1] = set
  end
  if values.device then
    words[#words + 1] = "--device"
    words[#words + 1] = values.device
  end
  return words
end

local function submit(values, plan, dir)
  local count, made, code = parts.parts(plan, values.out)
  if not count then return nil, made, code end
  local shards, tasks = slurm.shards(count), {}
  for i = 1, shards do tasks[i] = i end
  local jobs, msg
  jobs, msg, code = slurm.submit(setmetatable({ dir = dir, name = "nibble-run", command = command(values), shards = shards,
    tasks = tasks }, { __index = values }))
  if not jobs then output.unmake(made) end
  return jobs, msg, code
end

-- -> status, or nil: the output is complete.
local function on_slurm(values, plan)
  local dir = values.out:gsub("/+$", "") .. ".slurm" -- beside the output, which holds a checkpoint only
  local certificate = values.out .. "/" .. output.certificate
  if checkpoint.exists(certificate) then return nil end
  local status, why = common.on_slurm(dir, values, function() return submit(values, plan, dir) end)
  if why and not checkpoint.exists(certificate) then error(why, 0) end
  return status
end

function M.run(values)
  local shard = common.shard(values)
  slurm.check_options(values)
  if values.device then require("nibble.cuda").number_of(values.device, 0) end
  local plan = common.planned(values)
  if values.engine == "slurm" then
    local status = on_slurm(values, plan)
    if status then return status end
    values.merge = true -- it finds the output complete
  end
  local result = assert(common.with_progress(function(report)
    return plan:run(values.out, { progress = report, shard = shard, merge = values.merge, device = values.device })
  end))
  return common.finished(result, values)
end

return M
