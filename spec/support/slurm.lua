-- A whole Slurm on this machine (scripts/slurm-here) for the specs that need one: started, asked, ended.
local files = require "spec.support.files"
local checkpoint = require "nibble.checkpoint"
local ffi = require "ffi"
ffi.cdef [[int setenv(const char *name, const char *value, int overwrite); int unsetenv(const char *name);]]

local M = {}
local Slurm = {}
Slurm.__index = Slurm

local function sleep(seconds) os.execute("sleep " .. seconds) end

--- start([cpus=4]) -> slurm: munged, slurmctld and slurmd run, and jobs can; SLURM_CONF is set for what the spec runs.
-- They end with slurm:stop(), and when this process ends, however it does: they live as long as a pipe from it is open.
function M.start(cpus)
  local dir = files.temporary()
  local holder = assert(io.popen(("exec scripts/slurm-here %s %d >%s/out 2>&1"):format(dir, cpus or 4, dir), "w"))
  local s = setmetatable({ dir = dir, holder = holder }, Slurm)
  for _ = 1, 600 do
    if checkpoint.exists(dir .. "/ready") or checkpoint.exists(dir .. "/failed") then break end
    sleep(0.1)
  end
  if not checkpoint.exists(dir .. "/ready") then
    local why = checkpoint.exists(dir .. "/failed") and files.read(dir .. "/failed") or "slurm-here: not ready within 60 s"
    s:stop()
    error(why, 2)
  end
  ffi.C.setenv("SLURM_CONF", dir .. "/slurm.conf", 1)
  return s
end

--- stop(): cancels what runs, ends the daemons and waits for that.
function Slurm.stop(s)
  if not s.holder then return end
  s.holder:close()
  s.holder = nil
  ffi.C.unsetenv "SLURM_CONF"
  os.execute("rm -rf " .. s.dir)
end

--- tell(command) -> what a shell command prints on both outputs, without the last newline.
function M.tell(command)
  local p = assert(io.popen(command .. " 2>&1"))
  local text = p:read "*a"
  p:close()
  return (text:gsub("%s+$", ""))
end

--- wait(what, ready [, seconds=60]): until ready() gives something, which it returns.
function M.wait(what, ready, seconds)
  for _ = 1, (seconds or 60) * 10 do
    local got = ready()
    if got then return got end
    sleep(0.1)
  end
  error("not within " .. (seconds or 60) .. " s: " .. what .. "\n" .. M.tell "squeue", 2)
end

--- idle(): no job waits or runs.
function Slurm.idle() return M.tell "squeue --noheader" == "" end

return M
