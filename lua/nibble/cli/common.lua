-- common: what several commands need: settings, recipe and model, long jobs.
local M = {}

--- settings(list) -> {k = v}: "group=64" and the like; numbers, true and false
-- become Lua's. Keys may be dotted ("output.format=awq").
function M.settings(list)
  local out = {}
  for _, text in ipairs(list or {}) do
    local k, v = text:match "^([%w_.]+)=(.*)$"
    if not k then error(("--set expects key=value, found %q"):format(text), 0) end
    if v == "true" then v = true elseif v == "false" then v = false else v = tonumber(v) or v end
    out[k] = v
  end
  return out
end

--- shard(values) -> {i, n} | nil: --shard i/n, 1-based.
function M.shard(values)
  if not values.shard then return nil end
  if values.merge then error("--shard does a share of the work and --merge gathers it: one of them at a time", 0) end
  local i, n = values.shard:match "^(%d+)/(%d+)$"
  i, n = tonumber(i), tonumber(n)
  if not i or i < 1 or i > n then
    error(("--shard expects i/n with i from 1 to n, found %q"):format(values.shard), 0)
  end
  return { i, n }
end

--- planned(values) -> plan, ck: the recipe and model of `plan` and `run`.
function M.planned(values)
  local nb = require "nibble"
  local recipe = assert(nb.recipe(values.recipe, { set = M.settings(values.set) }))
  local ck = assert(nb.open(values.model))
  return assert(nb.plan(recipe, ck)), ck
end

--- with_progress(job) -> job(report)'s results; the progress line is gone afterwards.
function M.with_progress(job)
  local report, finish = require("nibble.repl.progress").new()
  local results = { pcall(job, report) }
  finish()
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, 4)
end

-- Says what Slurm will do, and where to look.
local function submitted(jobs, dir, values)
  if values.json then
    io.write(require("nibble.json").encode { array = jobs.array, merge = jobs.merge, tasks = jobs.tasks, logs = dir }, "\n")
  else
    io.write(require("nibble.slurm").how_to_look(jobs, dir), "\n")
  end
  return 0
end

--- on_slurm(dir, values, submit) -> status: it is left to Slurm | nil: the merge is over | nil, why it isn't
-- dir: of scripts and logs; submit() -> jobs | nil, msg. With --wait, jobs that are at work there are waited for, too.
function M.on_slurm(dir, values, submit)
  local slurm = require "nibble.slurm"
  local jobs, msg = slurm.active(dir)
  if jobs == nil then error(msg, 0) end
  if not jobs or not values.wait then jobs = assert(submit()) end
  if not values.wait then return submitted(jobs, dir, values) end
  local ok, why = M.with_progress(function(report) return slurm.wait(jobs, dir, report) end)
  return nil, not ok and why or nil
end

-- The figures of a result: what a document can hold of it.
local function figures(result)
  local out = {}
  for k, v in pairs(result) do
    if type(v) == "number" or type(v) == "string" or type(v) == "boolean" then out[k] = v end
  end
  out.worst = result.worst
  return out
end

--- finished(result, values) -> status: prints a job's result; 1 when a bound was missed.
function M.finished(result, values)
  if values.json then
    io.write(require("nibble.json").encode(figures(result), { indent = 2 }), "\n")
  else
    io.write(tostring(result), "\n")
  end
  if result.accepted ~= false then return 0 end
  return require("nibble.cli").fail(result.why or "a bound of the recipe's accept was missed", 1)
end

return M
