-- sweep: recipes x models x texts as jobs that are named by their contents and run once each; any number of processes
-- may share the folder, and each may be killed at any moment.
local checkpoint = require "nibble.checkpoint"
local engine = require "nibble.sweep.engine"
local folder = require "nibble.sweep.folder"
local jobs = require "nibble.sweep.jobs"
local nffi = require "nibble.ffi"
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
    if not ours[job.job] and job.version == nffi.version and not results.read(dir, job.job) then n = n + 1 end
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
    if checkpoint.exists(dir .. "/results.jsonl") == "file" then return results.lines(dir) end
    return nil, ("%s holds no sweep: neither jobs nor results.jsonl"):format(dir), "eio"
  end
  local list, msg, code = results.all(dir)
  if not list then return nil, msg, code end
  return list
end

--- table(results) -> text: by model, text and bits per weight.
function M.table(list) return require("nibble.sweep.text").table(list) end

-- ---- running -------------------------------------------------------------------------------

--- sweep:pending([{shard = {i, n}, retry_failed =}]) -> array of the jobs that have no result yet (of the i-th of n shares).
function Sweep.pending(s, o)
  local out, shard = {}, o and o.shard or { 1, 1 }
  for i, job in ipairs(s.jobs) do
    if (i - shard[1]) % shard[2] == 0 then
      local r = results.read(s.dir, job.job)
      if not r or (o and o.retry_failed and r.status == "failed") then out[#out + 1] = job end
    end
  end
  return out
end

-- The sweep's own results.
local function own(s, list)
  local ours, out = {}, {}
  for _, job in ipairs(s.jobs) do ours[job.job] = true end
  for _, r in ipairs(list) do if ours[r.job] then out[#out + 1] = r end end
  return out
end

--- sweep:merge() -> results of this sweep's jobs | nil, msg, code: writes results.jsonl and report.html from what is done.
function Sweep.merge(s)
  local list, notes, code = results.merge(s.dir)
  if not list then return nil, notes, code end
  for _, note in ipairs(notes) do s.notes[#s.notes + 1] = note end
  return own(s, list)
end

--- sweep:run{jobs = 1, shard = {i, n}, keep =, retry_failed =, progress =} -> counts, results | nil, msg, code
-- Runs what has no result yet: alone in the folder, or as the i-th of n shares beside others. counts and progress:
-- nibble.sweep.engine.run's. results: of all this sweep's jobs; results.jsonl and report.html are written, by shards when
-- nothing is left to do.
function Sweep.run(s, o)
  o = o or {}
  local held, msg, code = folder.hold(s.dir, o.shard ~= nil)
  if not held then return nil, msg, code end
  local called, counts
  called, counts, msg, code = pcall(engine.run, s.dir, s:pending(o), o)
  held:release()
  if not called then error(counts, 0) end
  if not counts then return nil, msg, code end
  local list
  if o.shard and #s:pending() > 0 then
    list, msg, code = results.all(s.dir)
    list = list and own(s, list)
  else
    list, msg, code = s:merge()
  end
  if not list then return nil, msg, code end
  return counts, list
end

function Sweep.__tostring(s)
  return ("sweep %s: %d jobs, %d without a result"):format(s.dir, #s.jobs, #s:pending())
end

return M
