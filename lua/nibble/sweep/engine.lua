-- engine: a list of jobs on this machine, each in a process of its own, so that its peak memory and its crash are its own.
local checkpoint = require "nibble.checkpoint"
local folder = require "nibble.sweep.folder"
local jobs_m = require "nibble.sweep.jobs"
local nffi = require "nibble.ffi"
local process = require "nibble.process"
local results = require "nibble.sweep.results"
local worker = require "nibble.sweep.worker"
local C = nffi.C

local M = {}

-- The file descriptor on which a job tells how far it is.
M.CHANNEL = 3
-- Signals that are meant for the sweep, not the job's failure: hangup, interrupt, user's, terminate.
local asked_to_stop = { [1] = true, [2] = true, [10] = true, [12] = true, [15] = true }
-- How long children may take to stop before they are killed (what they proved stays), seconds.
local patience = 10

-- ---- one job ------------------------------------------------------------------------------

local function start(e, job)
  local dir = e.dir
  local ok, msg, code = checkpoint.mkdir(folder.path(dir, job.job))
  if not ok then return nil, msg, code end
  local p
  local command = { process.program(), "sweep", "--out", dir, "--job", job.job, "--threads", tostring(e.threads), argv0 = "nibble",
                    log = folder.path(dir, job.job, "log"), pipes = { [M.CHANNEL] = true } }
  if e.keep then command[#command + 1] = "--keep" end
  if e.retry_failed then command[#command + 1] = "--retry-failed" end
  p, msg, code = process.spawn(command)
  if not p then return nil, msg, code end
  e.running[#e.running + 1] = { process = p, job = job, title = jobs_m.title(job), share = 0, started = C.nb_now() }
  return true
end

local function last_line(dir, hash)
  local text = checkpoint.read_file(folder.path(dir, hash, "log")) or ""
  return (text:match "([^\n]+)%s*$" or "it ended without a word"):gsub("^nibble: ", "")
end

-- The result of a job that could not write its own.
local function crashed(e, item, ended)
  local held, attempts, code = worker.claim(e.dir, item.job.job)
  if not held then
    if code == "ebusy" then return { status = "claimed" } end
    return nil, attempts, code
  end
  local _, kept = folder.job(e.dir, item.job.job)
  local r = worker.blank(item.job, kept, attempts)
  r.status, r.seconds, r.peak_bytes = "failed", C.nb_now() - item.started, ended.peak_bytes
  r.message = ended.signal and process.killed(ended.signal) or last_line(e.dir, item.job.job)
  folder.remove_tree(folder.path(e.dir, item.job.job, "checkpoint"))
  local ok, msg
  ok, msg, code = results.write(e.dir, r)
  held:release()
  if not ok then return nil, ("%s (and the job: %s)"):format(msg, r.message), code end
  return r
end

-- What came of a job that has ended: its result, or {status = "claimed" | "stopped"} | nil, msg, code
local function outcome(e, item)
  local ended = item.process:wait()
  if ended.status == worker.CLAIMED then return { status = "claimed" } end
  local r = results.read(e.dir, item.job.job)
  if r then return r end
  if asked_to_stop[ended.signal or ended.status - 128] then return { status = "stopped" } end
  return crashed(e, item, ended)
end

-- ---- all of them --------------------------------------------------------------------------

-- Whether memory is left for one more like the largest that was seen.
local function room(e)
  if #e.running == 0 or e.largest == 0 then return true end
  local f = io.open "/proc/meminfo"
  local kilobytes = f and f:read("*a"):match "MemAvailable:%s*(%d+)"
  if f then f:close() end
  return not kilobytes or kilobytes * 1024 > 1.1 * e.largest
end

local function stop(e)
  for _, item in ipairs(e.running) do item.process:kill(process.SIGINT) end
  local deadline = C.nb_now() + patience
  for _, item in ipairs(e.running) do
    local fd, open = item.process.pipes[M.CHANNEL], true
    while open and C.nb_now() < deadline do open = process.poll({ fd }, 0.5)[fd] ~= false end
    if open then item.process:kill(process.SIGKILL) end
    item.process:wait()
  end
  e.running = {}
end

local function note(e, r)
  e.counts[r.status] = e.counts[r.status] + 1
  if r.status == "done" and r.figures.accepted == false then e.counts.missed = e.counts.missed + 1 end
  e.largest = math.max(e.largest, r.peak_bytes or 0)
end

local function tell(e, item, r)
  if not e.progress then return end
  local c = e.counts
  e.progress { total = e.total, done = c.done + c.failed + c.claimed + c.stopped, failed = c.failed, running = e.running,
    seconds = C.nb_now() - e.started, job = item and item.job, result = r }
end

-- Reads what the running ones say, and takes out those that have ended.
local function listen(e, seconds)
  local fds = {}
  for i, item in ipairs(e.running) do fds[i] = item.process.pipes[M.CHANNEL] end
  local came = process.poll(fds, seconds)
  for i = #e.running, 1, -1 do
    local item, text = e.running[i], came[fds[i]]
    if text then
      local stage, share = text:match "(%a+) ([%d.]+)\n[^\n]*$"
      item.stage, item.share = stage or item.stage, tonumber(share) or item.share
    elseif text == false then
      table.remove(e.running, i)
      local r, msg, code = outcome(e, item)
      if not r then return nil, msg, code end
      note(e, r)
      tell(e, item, r)
    end
  end
  tell(e)
  return true
end

local function loop(e, jobs)
  local at = 1
  while jobs[at] or #e.running > 0 do
    nffi.stop_check()
    while jobs[at] and #e.running < e.parallel and room(e) do
      local ok, msg, code = start(e, jobs[at])
      if not ok then return nil, msg, code end
      at = at + 1
    end
    local ok, msg, code = listen(e, 0.5)
    if not ok then return nil, msg, code end
  end
  return true
end

--- run(dir, jobs [, {jobs = 1, keep =, retry_failed =, progress = fn}]) -> {done =, failed =, claimed =, stopped =, missed =}
--    | nil, msg, code
-- jobs: side by side, with an equal part of the threads each, as memory allows. progress{total, done, failed, running =
-- {{title, stage, share}}, seconds, job, result}: now and then, and with job and result when one has ended; a result's status
-- is "done", "failed", "claimed" (another process does it) or "stopped" (a signal ended it: it has no result). Counts:
-- missed = those done that missed a bound. Ctrl-C stops the children, waits for them and raises "interrupted".
function M.run(dir, jobs, o)
  local parallel = o.jobs or 1
  local e = { dir = dir, parallel = parallel, keep = o.keep, retry_failed = o.retry_failed, progress = o.progress,
              running = {}, largest = 0,
              counts = { done = 0, failed = 0, claimed = 0, stopped = 0, missed = 0 }, total = #jobs, started = C.nb_now(),
              threads = math.max(1, math.floor(C.nb_threads() / parallel)) }
  local called, ok, msg, code = pcall(loop, e, jobs)
  if not called or not ok then stop(e) end
  if not called then error(ok, 0) end
  if not ok then return nil, msg, code end
  return e.counts
end

return M
