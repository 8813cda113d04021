-- slurm: a sweep's jobs as a Slurm job array, one task a job, and the merge after it (nibble.slurm).
--
-- A task is `nibble sweep --out DIR --shard i/n`, which finds done jobs done, and goes on with a run that was stopped:
-- so a task may be put back into the queue at any moment.
local checkpoint = require "nibble.checkpoint"
local folder = require "nibble.sweep.folder"
local process = require "nibble.process"
local slurm = require "nibble.slurm"

local M = {}

--- dir(sweep) -> DIR/slurm: scripts, logs, the ids of the last submission.
function M.dir(sweep) return sweep.dir .. "/slurm" end

-- Which of the shards have this sweep's work, ascending; of how many.
local function tasks_of(sweep, o)
  local whole, msg, code = require("nibble.sweep").open(sweep.dir) -- what a shard will number
  if not whole then return nil, msg, code end
  local wanted, shards, list, seen = {}, slurm.shards(#whole.jobs), {}, {}
  for _, job in ipairs(sweep:pending { retry_failed = o.retry_failed }) do wanted[job.job] = true end
  for i, job in ipairs(whole.jobs) do
    local task = (i - 1) % shards + 1
    if wanted[job.job] and not seen[task] then list[#list + 1], seen[task] = task, true end
  end
  table.sort(list)
  return list, shards
end

-- Nobody runs the sweep alone.
local function check_free(dir)
  local held, msg, code = folder.hold(dir, true)
  if not held then return nil, msg, code end
  held:release()
  return true
end

--- submit(sweep, {partition =, time =, mem =, account =, cpus =, array_limit =, keep =, retry_failed =, jobs =})
--    -> {array =, merge =, tasks =} | nil, msg, code
-- A task for every job that has no result yet; the merge runs when all have ended well, as they do where a job failed
-- and its result says why.
function M.submit(sweep, o)
  local ok, msg, code = check_free(sweep.dir)
  if not ok then return nil, msg, code end
  local tasks, shards
  tasks, shards, code = tasks_of(sweep, o)
  if not tasks then return nil, shards, code end
  local command = { checkpoint.real(process.program()) or process.program(), "sweep", "--out", sweep.dir }
  for _, option in ipairs { "keep", "retry_failed" } do
    if o[option] then command[#command + 1] = "--" .. option:gsub("_", "-") end
  end
  if o.jobs then
    command[#command + 1] = "--jobs"
    command[#command + 1] = tostring(o.jobs)
  end
  return slurm.submit(setmetatable({ dir = M.dir(sweep), name = "nibble-sweep", command = command, shards = shards, tasks = tasks },
    { __index = o }))
end

return M
