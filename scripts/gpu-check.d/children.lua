-- children: a stage's cases in processes of their own, so that a kernel that hangs, a device that is lost or a crash
-- costs one case: the next process goes on behind it.
--
-- A child writes a line of JSON for each event: {"cases": how many}, {"begin": which, "name": its, "seconds": its time},
-- {"row": what came out}.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local process = require "nibble.process"

local M = {}

local LOST = 3 -- a child's exit status: the device no longer answers, a new process may find it well

local function say(event)
  io.stdout:write(json.encode(event), "\n")
  io.stdout:flush()
end

-- The sentence of an error: of a mistake in the check itself, where it is too.
local function sentence(err)
  local text = tostring(err)
  if text:match "^[^\n]*attempt to" or text:match "bad argument" then return (text:gsub("\n.*", "")) end
  return (text:gsub("^[^%s:]+%.lua:%d+: ", ""):gsub("\n.*", ""))
end

--- serve(cases, from, ctx) -> exit status: what a child does: the cases from number `from` on.
-- A case {name =, seconds = its time, run = function(ctx) -> row | nil} fails by an error; a row with status "skipped" says why.
function M.serve(cases, from, ctx)
  process.die_with_parent(1)
  say { cases = #cases }
  for i = from, #cases do
    say { begin = i, name = cases[i].name, seconds = cases[i].seconds }
    local start = nffi.C.nb_now()
    local ok, row = xpcall(cases[i].run, sentence, ctx)
    if not ok then row = { status = "failed", why = row } end
    row = row or {}
    row.name, row.status, row.seconds = cases[i].name, row.status or "passed", nffi.C.nb_now() - start
    say { row = row }
    collectgarbage() collectgarbage() -- device memory goes back
    local _, why = require("nibble.cuda").wait()
    if why and why:match " is lost" then return LOST end
  end
  return 0
end

-- Kills the child and what it started.
local function kill(child)
  ffi.C.nibble_kill(-child.pid, process.SIGKILL)
end

-- Reads what the child says until it ends: fn(event) for each; why it was ended | nil, what it wrote to stderr.
local function listen(child, deadline, case_limit, fn)
  local out, err = child.pipes[1], child.pipes[2]
  local open, rest, errors, case_end, ended = { [out] = true, [err] = true }, "", "", math.huge, nil
  while next(open) do
    if nffi.C.nb_stop_requested() ~= 0 then
      kill(child)
      child:wait()
      nffi.stop_check()
    end
    local now = nffi.C.nb_now()
    if not ended and now > math.min(deadline, case_end) then
      ended = now > deadline and "stage" or "case"
      kill(child)
    end
    local fds = {}
    for _, fd in ipairs { out, err } do fds[#fds + 1] = open[fd] and fd or nil end
    local came = process.poll(fds, 0.2)
    if came[err] then errors = (errors .. came[err]):sub(-2000) end
    if came[out] then
      rest = rest .. came[out]
      rest = rest:gsub("([^\n]*)\n", function(line)
        local event = json.decode(line)
        if event then
          case_end = event.begin and nffi.C.nb_now() + (event.seconds or case_limit) or math.huge
          fn(event)
        end
        return ""
      end)
    end
    for _, fd in ipairs(fds) do
      if came[fd] == false then open[fd] = nil end
    end
  end
  return ended, errors
end

local function why_ended(ended, status, errors, limit)
  if ended == "case" then return ("it took longer than %d s and was ended"):format(limit) end
  local said = errors:match "[^\n]+" or ""
  if status.signal then return ("its process was %s: %s"):format(process.killed(status.signal), said) end
  return ("its process ended with status %s: %s"):format(tostring(status.status), said)
end

--- run(o) -> a sentence about the cases that the time was too short for | nil
-- o: command {program, argument, …} to which the number of the first case is added; seconds: for all;
-- case_seconds: for one that says nothing else (default 30); add(row): called for each as it comes.
function M.run(o)
  local deadline, limit = nffi.C.nb_now() + o.seconds, o.case_seconds or 30
  local from, count, done = 1, nil, 0
  repeat
    local first, command = from, { pipes = { [1] = true, [2] = true }, unpack(o.command) }
    command[#command + 1] = tostring(from)
    local child, msg = process.spawn(command)
    if not child then
      o.add { name = command[1], status = "skipped", why = msg }
      return nil
    end
    local begun
    local ended, errors = listen(child, deadline, limit, function(event)
      if event.cases then count = event.cases end
      if event.begin then begun = event end
      if event.row then
        from, begun, done = begun.begin + 1, nil, done + 1
        o.add(event.row)
      end
    end)
    local status = child:wait()
    if ended == "stage" then
      return ("the time of %d s was over after %d of %s cases"):format(o.seconds, done, count or "its")
    end
    if status.status ~= 0 and status.status ~= LOST or begun then
      local name = begun and begun.name or count and "after case " .. from - 1 or "the start"
      o.add { name = name, status = "failed", why = why_ended(ended, status, errors, begun and begun.seconds or limit) }
      if begun then from, done = begun.begin + 1, done + 1 elseif from == first then from = math.huge end
    end
  until not count or from > count
end

return M
