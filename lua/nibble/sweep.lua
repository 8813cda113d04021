-- sweep: recipes x models x texts as jobs that are named by their contents and run once each; any number of processes
-- may share the folder, and each may be killed at any moment.
local checkpoint = require "nibble.checkpoint"
local engine = require "nibble.sweep.engine"
local folder = require "nibble.sweep.folder"
local jobs = require "nibble.sweep.jobs"
local nffi = require "nibble.ffi"
local output = require "nibble.output"
local results = require "nibble.sweep.results"
local words = require "nibble.text"

local M = {}
local Sweep = {}
Sweep.__index, Sweep.__methods = Sweep, Sweep

-- ---- beginning -----------------------------------------------------------------------------

local known = { recipes = true, models = true, texts = true, out = true, set = true, context = true, windows = true,
                activations = true, progress = true }

local function check_options(o)
  if type(o) ~= "table" then error("sweep.new expects a table of options, found a " .. type(o), 3) end
  local names = {}
  for k in pairs(known) do names[#names + 1] = k end
  table.sort(names)
  for k in pairs(o) do
    if not known[k] then
      error(("sweep.new: unknown option %q%s"):format(tostring(k), words.did_you_mean(tostring(k), names)), 3)
    end
  end
  if type(o.out) ~= "string" then error("sweep.new needs out = the sweep's folder", 3) end
  for _, k in ipairs { "models", "texts" } do
    if type(o[k]) ~= "table" or #o[k] == 0 then error(("sweep.new needs %s = { path, … }"):format(k), 3) end
  end
end
nffi.interpreted(check_options)

local function object(dir, list, o)
  return setmetatable({ dir = dir, jobs = list, notes = o.notes or {}, added = o.added or 0, waiting = o.waiting or 0 }, Sweep)
end

-- How many of the folder's jobs that aren't in list have no result yet.
local function others_waiting(dir, all, list)
  local ours, n = {}, 0
  for _, job in ipairs(list) do ours[job.job] = true end
  for _, job in ipairs(all) do
    if not ours[job.job] and job.version == nffi.version and not results.exists(dir, job.job) then n = n + 1 end
  end
  return n
end

--- new{recipes =, models =, texts =, out =, set =, context = 2048, windows =, activations =, progress =}
--    -> sweep | nil, msg, code
-- Makes the sweep's folder `out`, or adds these jobs to it. recipes: paths or shipped names; models: checkpoints; texts: files (a
-- .safetensors file holds token ids); set: { "group=32,64,128", … }: every combination is run. Each model and text gets
-- one job for the model itself. The same contents at another path are the same job.
-- progress: while weights are read. Fields: dir, jobs, added (how many are new), waiting (other jobs of the folder
-- without a result), notes (sentences).
function M.new(o)
  check_options(o)
  local dir = o.out:gsub("(.)/+$", "%1")
  local cache = folder.hashes(dir)
  local list, msg, code = jobs.expand { recipes = o.recipes, models = o.models, texts = o.texts, set = o.set, context = o.context,
    windows = o.windows, activations = o.activations, cache = cache, progress = o.progress }
  if not list then return nil, msg, code end
  for _, job in ipairs(list.jobs) do
    local apart
    apart, msg, code = output.apart(dir, { path = job.model_path })
    if not apart then return nil, msg, code end
  end
  local t
  t, msg, code = folder.add(dir, list.jobs, list.recipes)
  if not t then return nil, msg, code end
  local ok
  ok, msg, code = folder.keep_hashes(dir, cache)
  if not ok then return nil, msg, code end
  return object(dir, list.jobs, { notes = list.notes, added = t.added, waiting = others_waiting(dir, t.jobs, list.jobs) })
end

--- open(dir) -> sweep | nil, msg, code: all jobs of a folder, to go on with.
-- Jobs that another version of nibble planned keep their results and aren't run: a note says how many.
function M.open(dir)
  dir = dir:gsub("(.)/+$", "%1")
  local t, msg, code = folder.read(dir)
  if not t then return nil, msg, code end
  local list, notes, old, version = {}, {}, 0, nil
  for _, job in ipairs(t.jobs) do
    if job.version == nffi.version then list[#list + 1] = job
    else old, version = old + 1, job.version end
  end
  if old > 0 then
    notes[1] = ("%d job%s of nibble %s: results stay, the rest isn't run by nibble %s; name recipes, models and texts to plan them again")
      :format(old, old == 1 and "" or "s", tostring(version), nffi.version)
  end
  return object(dir, list, { notes = notes })
end

--- read(dir) -> results | nil, msg, code: every result of a sweep's folder, sorted; array of tables (README: results.jsonl).
function M.read(dir)
  dir = dir:gsub("(.)/+$", "%1")
  if checkpoint.exists(dir .. "/jobs") ~= "dir" then
    if checkpoint.exists(dir .. "/results.jsonl") == "file" then
      local list, msg, code = results.lines(dir)
      if not list then return nil, msg, code end
      return M.results(list)
    end
    return nil, ("%s holds no sweep: neither jobs nor results.jsonl"):format(dir), "eio"
  end
  local list, msg, code = results.all(dir)
  if not list then return nil, msg, code end
  return M.results(list)
end

--- results(list [, counts]) -> list, which a session shows as a table; .counts: of the run that made them.
function M.results(list, counts)
  return setmetatable(list, { __tostring = M.table, __index = { counts = counts } })
end

--- table(results) -> text: by model, text and bits per weight.
function M.table(list) return require("nibble.sweep.text").table(list) end

-- ---- running -------------------------------------------------------------------------------

-- The jobs of the i-th of n shares: i, i+n, i+2n …
local function share_of(s, shard)
  if not shard then return s.jobs end
  local out = {}
  for i = shard[1], #s.jobs, shard[2] do out[#out + 1] = s.jobs[i] end
  return out
end

--- sweep:pending([{shard = {i, n}, retry_failed =}]) -> jobs that have no result yet (of the i-th of n shares), notes
-- notes: sentences about results that are damaged: their jobs count as having none.
function Sweep.pending(s, o)
  local out, notes = {}, {}
  for _, job in ipairs(share_of(s, o and o.shard)) do
    local r, damage = results.read(s.dir, job.job)
    if damage then notes[#notes + 1] = damage .. ": it is set aside, and the job runs again" end
    if not r or (o and o.retry_failed and r.status == "failed") then out[#out + 1] = job end
  end
  return out, notes
end

-- The results of these jobs.
local function results_of(list, all)
  local ours, out = {}, M.results {}
  for _, job in ipairs(list) do ours[job.job] = true end
  for _, r in ipairs(all) do if ours[r.job] then out[#out + 1] = r end end
  return out
end

local function all_done(s)
  for _, job in ipairs(s.jobs) do
    if not results.exists(s.dir, job.job) then return false end
  end
  return true
end

--- sweep:merge() -> results of this sweep's jobs | nil, msg, code: writes results.jsonl and report.html from what is done.
function Sweep.merge(s)
  local list, notes, code = results.merge(s.dir)
  if not list then return nil, notes, code end
  for _, note in ipairs(notes) do s.notes[#s.notes + 1] = note end
  return results_of(s.jobs, list)
end

--- sweep:run{jobs = 1, shard = {i, n}, keep =, retry_failed =, progress =} -> results | nil, msg, code
-- Runs what has no result yet: alone in the folder, or as the i-th of n shares beside others. results: of this sweep's jobs, or
-- of the share; results.counts and progress: nibble.sweep.engine.run's. results.jsonl and report.html are written, by shards
-- when nothing is left to do.
function Sweep.run(s, o)
  o = o or {}
  local held, msg, code = folder.hold(s.dir, o.shard ~= nil)
  if not held then return nil, msg, code end
  local session = nffi.progress
  o = setmetatable({ progress = o.progress or session and function(p) session(require("nibble.sweep.text").progress(p)) end },
    { __index = o })
  local todo, damaged = s:pending(o)
  for _, note in ipairs(damaged) do s.notes[#s.notes + 1] = note end
  local called, counts
  called, counts, msg, code = pcall(engine.run, s.dir, todo, o)
  held:release()
  if not called then error(counts, 0) end
  if not counts then return nil, msg, code end
  local mine = share_of(s, o.shard)
  local list
  if o.shard and not all_done(s) then -- the others' results are theirs: there may be thousands
    list = results.of(s.dir, mine)
  else
    list, msg, code = s:merge()
  end
  if not list then return nil, msg, code end
  return M.results(results_of(mine, list), counts)
end

function Sweep.__tostring(s)
  return ("sweep %s: %d jobs, %d without a result"):format(s.dir, #s.jobs, #s:pending())
end

return setmetatable(M, { __call = function(_, ...) return M.new(...) end })
