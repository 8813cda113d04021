-- slurm: work in shards as a Slurm job array, and a job after it that merges.
--
--   DIR/array.sh, merge.sh   the batch scripts, as submitted; by hand: sbatch DIR/array.sh
--       jobs.json            the ids of the last submission
--       ID_TASK.log, ID.log  what tasks and merge printed
--
-- The array's script starts the task in the background, because Slurm signals the script alone: a minute before the
-- time limit (USR1), and where it takes the node back (TERM). The task stops at its next step with all that it has
-- done kept, and the script puts it back into the queue. The merge waits for tasks that ended well (afterok): a task
-- that wrote down why its work failed has ended well.
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local nffi = require "nibble.ffi"
local output = require "nibble.output"
local process = require "nibble.process"

local M = {}

-- Without an answer for so long, slurmctld isn't there.
local seconds_to_answer = 60
-- MaxArraySize is 1001 unless it is set: the last index is one less.
local most_tasks = 1000

-- ---- options -----------------------------------------------------------------------------

-- What is handed to Slurm as it is: option of nibble -> option of sbatch.
local passed = { { "partition" }, { "time" }, { "mem" }, { "account" }, { "cpus", "cpus-per-task" } }

--- options: those of a command, for its own list (cli/options.lua).
M.options = {
  { "--engine", "WHERE", values = { "local", "slurm" }, doc = "this machine, or Slurm as a job array" },
  { "--partition", "NAME", doc = "Slurm's partition" },
  { "--time", "LIMIT", doc = "time limit of a task (90, 2:00:00, 1-12:00:00)" },
  { "--mem", "SIZE", doc = "memory of a task (32G)" },
  { "--account", "NAME", doc = "whom Slurm charges" },
  { "--cpus", "N", number = true, doc = "processors of a task" },
  { "--array-limit", "N", number = true, doc = "tasks that run at the same time (default: as many as can)" },
  { "--wait", doc = "waits for Slurm's tasks and the merge" },
}

--- check_options(values): --partition and the like ask for --engine slurm, and hold what Slurm's options can.
function M.check_options(values)
  for _, option in ipairs(M.options) do
    local key = option[1]:gsub("^%-%-", ""):gsub("-", "_")
    local value = values[key]
    if key ~= "engine" and value ~= nil then
      if values.engine ~= "slurm" then error(("%s needs --engine slurm"):format(option[1]), 0) end
      if type(value) == "string" and not value:match "^[%w_][%w_.,:+=@/-]*$" then
        error(("%s expects what sbatch takes (letters, digits and _.,:+=@/-), found %q"):format(option[1], value), 0)
      end
    end
  end
  if values.engine == "slurm" and (values.shard or values.merge) then
    error("--engine slurm makes shards and merges them itself: without --shard and --merge", 0)
  end
end

-- ---- the scripts --------------------------------------------------------------------------

local function quote(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

local function command_line(words)
  local out = {}
  for i, word in ipairs(words) do out[i] = quote(word) end
  return table.concat(out, " ")
end

-- As sbatch reads it: in double quotes; % begins a pattern.
local function log_path(dir, pattern)
  return '"' .. dir:gsub('[\\"]', "\\%0"):gsub("%%", "%%%%") .. "/" .. pattern .. '"'
end

-- "1-3,7" of { 1, 2, 3, 7 }
local function ranges(list)
  local out, i = {}, 1
  while list[i] do
    local j = i
    while list[j + 1] == list[j] + 1 do j = j + 1 end
    out[#out + 1] = i == j and tostring(list[i]) or ("%d-%d"):format(list[i], list[j])
    i = j + 1
  end
  return table.concat(out, ",")
end

local function header(o, log, more)
  local lines = { "#!/bin/sh", "#SBATCH --job-name=" .. o.name, "#SBATCH --output=" .. log_path(o.dir, log),
                  "#SBATCH --open-mode=append" }
  for _, option in ipairs(passed) do
    local value = o[option[1]]
    if value then lines[#lines + 1] = ("#SBATCH --%s=%s"):format(option[2] or option[1], value) end
  end
  for _, line in ipairs(more or {}) do lines[#lines + 1] = "#SBATCH " .. line end
  return table.concat(lines, "\n") .. "\n"
end

local task_body = [[
began=$(date +%%s)
task= sent=
pass_on() { sent=$1; [ -z "$task" ] || kill -"$sent" "$task"; }
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
%s --shard "$SLURM_ARRAY_TASK_ID/%d" --threads "${SLURM_CPUS_ON_NODE:-1}" &
task=$!
[ -z "$sent" ] || kill -"$sent" "$task"
wait $task
status=$?
while kill -0 $task 2>/dev/null; do # a signal ended the wait, not the task
  wait $task
  status=$?
done
id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
again() { # back into the queue, unless start after start ends in its first minute
  [ $(($(date +%%s) - began)) -ge 60 ] || [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] || return 1
  scontrol requeue "$id"
}
case $status in
1) exit 0 ;; # work that failed, and wrote down why
138) again && exit 0 ;;
143) scontrol -o show job "$id" | grep -q ' JobState=RUNNING ' && again && exit 0 ;; # else who cancels means it
esac
exit $status
]]

local merge_body = [[
%s --merge --threads "${SLURM_CPUS_ON_NODE:-1}"
status=$?
[ $status -eq 1 ] && exit 0 # what was merged says what failed
exit $status
]]

--- scripts{dir =, name =, command = {words}, shards = n, tasks = {1, 2, …}, partition =, …} -> array's, merge's text
-- command: nibble's, without --shard and --merge; shards: the n of --shard i/n; tasks: which i.
function M.scripts(o)
  local tasks = "--array=" .. ranges(o.tasks) .. (o.array_limit and "%" .. o.array_limit or "")
  local words = command_line(o.command)
  return header(o, "%A_%a.log", { tasks, "--requeue", "--signal=B:USR1@60" }) .. task_body:format(words, o.shards),
    header(o, "%j.log", { "--requeue" }) .. merge_body:format(words)
end

-- ---- Slurm's commands -----------------------------------------------------------------------

local function on_path(program)
  for dir in (os.getenv "PATH" or ""):gmatch "[^:]+" do
    if checkpoint.exists(dir .. "/" .. program) == "file" then return true end
  end
end

-- One of Slurm's programs -> what it printed | nil, msg, code
local function ask(program, ...)
  if not on_path(program) then
    return nil, program .. " was not found: --engine slurm needs Slurm's commands on PATH (Debian: slurm-client); "
      .. "--engine local and --shard i/n do without", "eio"
  end
  local r, msg, code = process.run { "timeout", tostring(seconds_to_answer), program, ... }
  if not r then return nil, msg, code end
  if r.status == 0 then return r.out end
  if r.status == 124 then
    return nil, ("%s had no answer within %d s: slurmctld doesn't answer (scontrol ping)"):format(program, seconds_to_answer), "eio"
  end
  if r.err:find("configuration source", 1, true) then
    return nil, program .. " knows no cluster: there is no slurm.conf here (SLURM_CONF names one); submit from a machine of the "
      .. "cluster, or do without: --engine local, --shard i/n", "eio"
  end
  local said, seen = {}, {}
  for line in r.err:gmatch "[^\n]+" do
    line = line:gsub("^" .. program .. ": ", ""):gsub("^error: ", ""):gsub("^fatal: ", ""):gsub("^Batch job submission failed: ", "")
    if not seen[line] then said[#said + 1], seen[line] = line, true end
  end
  local why = #said > 0 and table.concat(said, "; ") or r.signal and process.killed(r.signal) or "status " .. tostring(r.status)
  return nil, ("%s: %s"):format(program, why), "eio"
end

--- cancel(ids): no matter whether they still are.
function M.cancel(...) return ask("scancel", "--quiet", ...) end

-- sbatch's options and the script -> job's id | nil, msg, code
local function submitted(...)
  local out, msg, code = ask("sbatch", "--parsable", ...)
  if not out then return nil, msg, code end
  local id = out:match "^%s*(%d+)"
  if not id then return nil, ("sbatch printed %q, expected a job's id"):format((out:gsub("%s+$", ""))), "eio" end
  return id
end

-- Every task of these jobs that Slurm still knows: {id =, task =, state =, reason =}.
local function tasks_of(jobs)
  local out, msg, code = ask("squeue", "--noheader", "--array", "--states=all", "--jobs=" .. jobs.array .. "," .. jobs.merge,
    "--format=%F|%K|%T|%r")
  if not out then
    if msg:find("Invalid job id", 1, true) then return {} end
    return nil, msg, code
  end
  local list = {}
  for id, task, state, reason in out:gmatch "(%d+)|([^|\n]*)|([^|\n]*)|([^\n]*)" do
    list[#list + 1] = { id = id, task = tonumber(task), state = state, reason = reason }
  end
  return list
end

local over = { COMPLETED = true, FAILED = true, CANCELLED = true, TIMEOUT = true, OUT_OF_MEMORY = true, NODE_FAIL = true,
               BOOT_FAIL = true, DEADLINE = true, REVOKED = true, PREEMPTED = true }

-- ---- submitting ------------------------------------------------------------------------------

--- active(dir) -> the jobs of the last submission into dir that are not over, {array =, merge =} | false | nil, msg, code
function M.active(dir)
  local text = checkpoint.exists(dir .. "/jobs.json") and checkpoint.read_file(dir .. "/jobs.json")
  local jobs = text and json.decode(text)
  if type(jobs) ~= "table" or type(jobs.array) ~= "string" or type(jobs.merge) ~= "string" then return false end
  local list, msg, code = tasks_of(jobs)
  if not list then return nil, msg, code end
  for _, t in ipairs(list) do if not over[t.state] then return jobs end end
  return false
end

local function write_scripts(o)
  local array, merge = M.scripts(o)
  local ok, msg, code = checkpoint.write_file(o.dir .. "/array.sh", array)
  if not ok then return nil, msg, code end
  return checkpoint.write_file(o.dir .. "/merge.sh", merge)
end

local function submit_merge(o, array)
  local merge, msg, code = submitted("--dependency=afterok:" .. array, "--kill-on-invalid-dep=yes", o.dir .. "/merge.sh")
  if not merge then return nil, msg, code end
  local jobs = { array = array, merge = merge, tasks = #o.tasks }
  local ok
  ok, msg, code = checkpoint.write_file(o.dir .. "/jobs.json", json.encode(jobs) .. "\n")
  if ok then return jobs end
  M.cancel(merge)
  return nil, msg, code
end

local function submit_both(o)
  local ok, msg, code = write_scripts(o)
  if not ok then return nil, msg, code end
  local array
  array, msg, code = submitted(o.dir .. "/array.sh")
  if not array then return nil, msg, code end
  local called, jobs
  called, jobs, msg, code = pcall(submit_merge, o, array)
  if called and jobs then return jobs end
  M.cancel(array)
  if not called then error(jobs, 0) end
  return nil, msg, code
end

--- submit(o) -> {array = id, merge = id, tasks = n} | nil, msg, code: o as scripts() has it.
-- All or nothing: where the merge can't be submitted, the array is cancelled.
function M.submit(o)
  if #o.tasks > most_tasks then error(("slurm: %d tasks, at most %d make an array"):format(#o.tasks, most_tasks), 2) end
  local active, msg, code = M.active(o.dir)
  if active == nil then return nil, msg, code end
  if active then
    return nil, ("%s: Slurm's jobs %s and %s are at work already; --wait waits for them, scancel %s %s ends them"):format(o.dir,
      active.array, active.merge, active.array, active.merge), "eio"
  end
  local made
  made, msg, code = output.make(o.dir)
  if not made then return nil, msg, code end
  local called, jobs
  called, jobs, msg, code = pcall(submit_both, o)
  if called and jobs then return jobs end
  output.clear(o.dir, { "array.sh", "merge.sh" }, made)
  if not called then error(jobs, 0) end
  return nil, msg, code
end

--- shards(n) -> the n of --shard i/n for n pieces of work: an array holds only so many tasks.
function M.shards(n) return math.min(n, most_tasks) end

-- ---- waiting ---------------------------------------------------------------------------------

local function count(list, jobs)
  local c = { over = 0, running = 0, waiting = 0, gone = true }
  for _, t in ipairs(list) do
    if not over[t.state] then c.gone = false end
    if t.id == jobs.array then
      local what = over[t.state] and "over" or t.state == "PENDING" and "waiting" or "running"
      c[what] = c[what] + 1
      if what == "over" and t.state ~= "COMPLETED" and not c.bad then c.bad = t end
    elseif over[t.state] and t.state ~= "COMPLETED" then
      c.bad_merge = t
    end
  end
  return c
end

--- wait(jobs, dir [, progress]) -> true | nil, msg, code: when the merge is over. Why it didn't come to that, or the
-- merge's own failure, is said with the log to read.
-- progress{done =, total =, name =, seconds =}: tasks.
function M.wait(jobs, dir, progress)
  local t0 = nffi.C.nb_now()
  local c
  repeat
    local list, msg, code = tasks_of(jobs)
    if not list then return nil, msg, code end
    c = count(list, jobs)
    if progress then
      progress { done = math.min(c.over, jobs.tasks), total = jobs.tasks, seconds = nffi.C.nb_now() - t0, unit = "tasks",
                 name = ("Slurm %s: %d running, %d waiting"):format(jobs.array, c.running, c.waiting) }
    end
    if not c.gone then nffi.sleep(1) end
  until c.gone
  if c.bad then
    return nil, ("task %s of Slurm's job %s ended as %s; its log: %s/%s_%s.log"):format(tostring(c.bad.task), jobs.array, c.bad.state,
      dir, jobs.array, tostring(c.bad.task)), "eio"
  end
  if c.bad_merge and c.bad_merge.state == "CANCELLED" then
    return nil, ("not all tasks of Slurm's job %s ended well, so %s doesn't merge; logs are in %s"):format(jobs.array, jobs.merge, dir),
      "eio"
  end
  if c.bad_merge then
    return nil, ("the merge, Slurm's job %s, ended as %s; its log: %s/%s.log"):format(jobs.merge, c.bad_merge.state, dir, jobs.merge),
      "eio"
  end
  return true
end

--- how_to_look(jobs, dir) -> text: what to say where nobody waits.
function M.how_to_look(jobs, dir)
  return ("Slurm's job %s (%d tasks), then %s merges; squeue --jobs=%s,%s shows them, logs are in %s; "
    .. "the nodes must see this folder and the paths of this command"):format(jobs.array, jobs.tasks, jobs.merge, jobs.array,
    jobs.merge, dir)
end

return M
