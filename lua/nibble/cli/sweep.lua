-- sweep: recipes x models x texts, each evaluated once, on this machine, in shards, or by a batch system.
local common = require "nibble.cli.common"
local cli = require "nibble.cli"
local slurm = require "nibble.slurm"

local M = {
  summary = "recipes x models x texts, each evaluated once, with a report",
  notes = "Without recipes, models and texts: goes on with the jobs of DIR. Stopped at any moment, the same command\n"
    .. "goes on; what has a result isn't run again. Many machines that share DIR: --shard i/n on each, such as\n"
    .. "  parallel nibble sweep --out DIR --shard {}/8 ::: 1 2 3 4 5 6 7 8\n"
    .. "  nibble sweep --out DIR --shard $((JOB_COMPLETION_INDEX+1))/8     in a Kubernetes indexed job\n"
    .. "Exit status 1: a job (of the share) failed, or missed a bound of its recipe's `accept`.",
  args = { { "RECIPE", many = true } },
  options = {
    { "--model", "MODEL", many = true, doc = "a checkpoint; may be given several times" },
    { "--text", "FILE", many = true, doc = "a text (.safetensors: token ids); may be given several times" },
    { "--out", "DIR", required = true, doc = "the sweep's folder: sweep.json, jobs/, results.jsonl, report.html" },
    { "--context", "N", number = true, least = 2, doc = "tokens of a window, BOS included (default 2048)" },
    { "--windows", "N", number = true, doc = "only the first N windows" },
    { "--activations", "WHICH", values = { "stored", "none" }, doc = "as eval's" },
    { "--set", "k=v,v", many = true, doc = "changes a field of the recipes; several values: each of them is run" },
    { "--jobs", "N", number = true, most = 1024, doc = "jobs side by side, with a part of the threads each (default 1)" },
    { "--shard", "i/n", doc = "only the jobs i, i+n, i+2n …, beside other shards" },
    { "--merge", doc = "only writes results.jsonl and report.html from what is done" },
    { "--keep", doc = "the quantized checkpoints stay in DIR/jobs/*/checkpoint" },
    { "--retry-failed", doc = "runs what failed again" },
    { "--json", doc = "the results as one JSON array" },
    { "--job", "HASH", internal = true },
    unpack(slurm.options),
  },
  resumes = true,
}

-- One job, as the engine starts it.
local function one_job(values)
  local worker = require "nibble.sweep.worker"
  local process = require "nibble.process"
  local channel = require("nibble.sweep.engine").CHANNEL
  if not process.die_with_parent(channel) then return 130 end
  local r, msg, code = worker.run(values.out, values.job, { keep = values.keep, retry_failed = values.retry_failed,
    tell = function(stage, share) process.write(channel, ("%s %.3f\n"):format(stage, share)) end })
  if not r then return cli.fail(msg, code == "ebusy" and worker.CLAIMED or 2) end
  return r.status == "done" and 0 or 1
end

local function planned(values, report)
  local nb = require "nibble"
  local some = #values.recipe > 0 or values.model or values.text
  if not some then
    for _, option in ipairs { "set", "context", "windows", "activations" } do
      if values[option] then error(("--%s plans jobs: it needs --model and --text"):format(option), 0) end
    end
    return assert(nb.sweep.open(values.out))
  end
  for _, option in ipairs { "model", "text" } do
    if not values[option] then error(("sweep needs --%s %s"):format(option, option == "model" and "MODEL" or "FILE"), 0) end
  end
  return assert(nb.sweep.new { recipes = values.recipe, models = values.model, texts = values.text, out = values.out, set = values.set,
    context = values.context, windows = values.windows, activations = values.activations, progress = report })
end

-- A line a job, or on a terminal one line that says how far all are.
local function teller(report, finish, terminal)
  local jobs, text = require "nibble.sweep.jobs", require "nibble.sweep.text"
  return function(p)
    if p.result and (not terminal or p.result.status ~= "done") then
      finish()
      local said = { claimed = "another process does it", stopped = "stopped by a signal" }
      local line = said[p.result.status] or text.line(p.result)
      cli.say("%s: %s%s", jobs.title(p.job), p.result.status == "failed" and "failed: " or "", line)
    end
    if terminal then report(text.progress(p)) end
  end
end

local function finished(values, list)
  if values.json then
    local results, json = require "nibble.sweep.results", require "nibble.json"
    local out = {}
    for i, r in ipairs(list) do out[i] = json.decode(results.encode(r)) end
    io.write(json.encode(json.array(out), { indent = 2 }), "\n")
  else
    io.write(require("nibble.sweep.text").table(list, require("nibble.terminal").width(1)))
  end
  local failed, missed = 0, 0
  for _, r in ipairs(list) do
    if r.status == "failed" then failed = failed + 1 elseif r.figures.accepted == false then missed = missed + 1 end
  end
  return failed, missed
end

local function plural(n, what) return ("%d %s%s"):format(n, what, n == 1 and "" or "s") end

function M.run(values)
  if values.job then return one_job(values) end
  local shard = common.shard(values)
  slurm.check_options(values)
  local progress = require "nibble.repl.progress"
  local sweep = common.with_progress(function(report) return planned(values, report) end)
  for _, note in ipairs(sweep.notes) do cli.say("%s", note) end
  sweep.notes = {}
  if values.engine == "slurm" and #sweep:pending(values) > 0 then
    local engine = require "nibble.sweep.slurm"
    local status, why = common.on_slurm(engine.dir(sweep), values, function() return engine.submit(sweep, values) end)
    if status then return status end
    if why then cli.say("%s", why) end
    values.merge = true
  end
  local list
  if values.merge then
    list = assert(sweep:merge())
  else
    local report, finish = progress.new()
    local told = teller(report, finish, progress.terminal(2))
    local results = { pcall(sweep.run, sweep, { jobs = values.jobs, shard = shard, keep = values.keep, retry_failed = values.retry_failed,
      progress = told }) }
    finish()
    if not results[1] then error(results[2], 0) end
    list = assert(unpack(results, 2, 4))
  end
  for _, note in ipairs(sweep.notes) do cli.say("%s", note) end
  local failed, missed = finished(values, list)
  local waiting = #sweep:pending { shard = shard }
  if waiting > 0 then cli.say("%s without a result yet; nibble sweep --out %s goes on", plural(waiting, "job"), sweep.dir) end
  if sweep.waiting > 0 then
    cli.say("%s more in %s without a result: nibble sweep --out %s runs them", plural(sweep.waiting, "job"), sweep.dir, sweep.dir)
  end
  if failed > 0 then cli.say("%s failed; --retry-failed runs them again", plural(failed, "job")) end
  if missed > 0 then cli.say("%s missed a bound of accept", plural(missed, "job")) end
  return (failed + missed > 0 or list.counts and list.counts.stopped > 0) and 1 or 0
end

return M
