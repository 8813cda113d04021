-- folder: a sweep's folder, which several processes and machines may work in at once.
--
--   sweep.json              the jobs with all that each needs, one a line; recipes as text
--   jobs/<hash>/result.json what came of it; claim (a lock: who does it, which attempt), log, checkpoint/ while it lasts
--   results.jsonl           all results, one a line; report.html: both made from the result.json files alone
--   hashes.json             what models' weights hash to, by path and time of change
--   lock, write.lock        held by who runs the sweep; by who writes one of the files above
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local lock = require "nibble.lock"
local nffi = require "nibble.ffi"
local process = require "nibble.process"

local M = { version = 1 }

local ours = { ["sweep.json"] = true, ["jobs/"] = true, ["results.jsonl"] = true, ["report.html"] = true, ["hashes.json"] = true,
               lock = true, ["write.lock"] = true, ["slurm/"] = true }

local job_keys = { "job", "recipe", "recipe_hash", "set", "model", "model_hash", "text", "text_hash", "context", "windows",
                   "activations", "version", "model_path", "text_path", "__order" }
local recipe_keys = { "hash", "name", "set", "text", "sources", "calibrate" }

--- path(dir, job, name) -> DIR/jobs/HASH/NAME
function M.path(dir, hash, name) return ("%s/jobs/%s%s"):format(dir, hash, name and "/" .. name or "") end

--- me() -> who this process is, for those who find what it holds: "host, process 12, since 2026-01-31 12:00:00".
function M.me() return ("%s, process %d, since %s"):format(process.host(), process.pid(), os.date "%Y-%m-%d %H:%M:%S") end

--- exclusively(dir, fn) -> fn()'s results: no other process writes the folder's common files meanwhile.
function M.exclusively(dir, fn)
  local held, msg, code = lock.take(dir .. "/write.lock", { wait = true })
  if not held then return nil, msg, code end
  local results = { pcall(fn) }
  held:release()
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, 4)
end

--- hold(dir, shared) -> lock | nil, msg, code: the right to run the sweep: alone, or as one of its shards.
function M.hold(dir, shared)
  local held, msg, code = lock.take(dir .. "/lock", { shared = shared })
  if held then
    local ok
    ok, msg, code = held:say((shared and "a shard on " or "") .. M.me())
    if ok then return held end
    held:release()
  end
  if code ~= "ebusy" then return nil, msg, code end
  return nil, ("%s is being swept already (%s); wait for that one, or end it"):format(dir, msg ~= "" and msg or "it doesn't say by whom"),
    code
end

-- ---- sweep.json --------------------------------------------------------------------------

local function in_order(keys, t)
  local out = { __order = keys }
  for k, v in pairs(t) do if k ~= "__order" then out[k] = v end end
  return out
end
nffi.interpreted(in_order)

local function lines_of(list, keys)
  local out = {}
  for i, item in ipairs(list) do out[i] = json.encode(in_order(keys, item)) end
  return table.concat(out, ",\n")
end

local function damaged(path, msg)
  return nil, ("%s: %s; move it away and name the recipes, models and texts again: results stay"):format(path, msg), "eformat"
end

local function absent(dir)
  return nil, ("%s holds no sweep; name recipes, models and texts to begin one there"):format(dir), "eio"
end

-- The decoded sweep.json, if it is one of ours.
local function checked(path, t, msg)
  if type(t) ~= "table" or t == json.null then return damaged(path, msg or "expected a JSON object") end
  if t.sweep ~= M.version then
    return nil, ("%s is of version %s of the sweep's format, this nibble (%s) knows version %d; use the nibble that made it, "
      .. "or another folder"):format(path, tostring(t.sweep), nffi.version, M.version), "eunsupported"
  end
  if type(t.jobs) ~= "table" or type(t.recipes) ~= "table" then return damaged(path, "it lists no jobs") end
  return t
end

--- read(dir) -> {jobs =, recipes =} | nil, msg, code: what sweep.json says.
function M.read(dir)
  local path = dir .. "/sweep.json"
  if checkpoint.exists(path) ~= "file" then return absent(dir) end
  local text, msg, code = checkpoint.read_file(path)
  if not text then return nil, msg, code end
  local t
  t, msg = json.decode(text)
  t, msg, code = checked(path, t, msg)
  if not t then return nil, msg, code end
  for i, job in ipairs(t.jobs) do
    if type(job) ~= "table" or type(job.job) ~= "string" or not job.job:match("^" .. ("%x"):rep(32) .. "$") then
      return damaged(path, ("job %d has no hash"):format(i))
    end
  end
  return t
end

--- job(dir, hash) -> job, recipe | nil, msg, code: one job and the recipe that it needs (nil: none), at any number of jobs.
function M.job(dir, hash)
  local path = dir .. "/sweep.json"
  if checkpoint.exists(path) ~= "file" then return absent(dir) end
  local text, msg, code = checkpoint.read_file(path)
  if not text then return nil, msg, code end
  local function line(key, value)
    local first = text:find(('\n{"%s":"%s",'):format(key, value), 1, true)
    return first and json.decode((text:match("[^\n]*", first + 1):gsub(",$", "")))
  end
  local job = line("job", hash)
  if not job then return nil, ("%s has no job %s"):format(path, hash), "eformat" end
  if not job.recipe_hash then return job end
  local recipe = line("hash", job.recipe_hash)
  if not recipe then return damaged(path, ("job %s's recipe isn't in it"):format(hash)) end
  return job, recipe
end

-- What a folder that is no sweep's yet may hold.
local function usable(dir)
  local kind = checkpoint.exists(dir)
  if not kind then return true end
  if kind ~= "dir" then return nil, ("%s is a file; give a folder for the sweep"):format(dir), "eio" end
  local names, msg, code = checkpoint.list(dir)
  if not names then return nil, msg, code end
  for _, name in ipairs(names) do
    if not ours[name] and not name:match "%.partial$" then
      return nil, ("%s exists and holds other files (%s); choose another folder or empty it"):format(dir, name), "eio"
    end
  end
  return true
end

--- add(dir, jobs, recipes) -> {jobs =, recipes =, added =} | nil, msg, code
-- Makes the folder, or adds what its sweep.json lacks; all that is there stays.
function M.add(dir, jobs, recipes)
  local there = checkpoint.exists(dir .. "/sweep.json") == "file"
  local ok, msg, code
  if not there then ok, msg, code = usable(dir) else ok = true end
  if ok then ok, msg, code = checkpoint.mkdir(dir .. "/jobs") end
  if not ok then return nil, msg, code end
  return M.exclusively(dir, function()
    local t = { jobs = {}, recipes = {} }
    if checkpoint.exists(dir .. "/sweep.json") == "file" then
      t, msg, code = M.read(dir)
      if not t then return nil, msg, code end
    end
    local known, added = {}, 0
    for _, job in ipairs(t.jobs) do known[job.job] = true end
    for _, r in ipairs(t.recipes) do known[r.hash] = true end
    for _, r in ipairs(recipes) do
      if not known[r.hash] then
        t.recipes[#t.recipes + 1], known[r.hash] = r, true
      end
    end
    for _, job in ipairs(jobs) do
      if not known[job.job] then
        t.jobs[#t.jobs + 1], known[job.job], added = job, true, added + 1
      end
    end
    if added > 0 then
      local text = ('{"sweep":%d,"nibble":"%s","recipes":[\n%s\n],"jobs":[\n%s\n]}\n'):format(M.version, nffi.version,
        lines_of(t.recipes, recipe_keys), lines_of(t.jobs, job_keys))
      ok, msg, code = checkpoint.write_file(dir .. "/sweep.json", text)
      if not ok then return nil, msg, code end
    end
    return { jobs = t.jobs, recipes = t.recipes, added = added }
  end)
end

-- ---- the hashes of models -----------------------------------------------------------------

--- hashes(dir) -> table for identity.model's cache; a missing or damaged file only costs time.
function M.hashes(dir)
  local path = dir .. "/hashes.json"
  local t = checkpoint.exists(path) == "file" and json.decode(checkpoint.read_file(path) or "")
  return type(t) == "table" and t ~= json.null and not json.is_array(t) and t or {}
end

--- keep_hashes(dir, cache) -> true | nil, msg, code
function M.keep_hashes(dir, cache)
  if not cache.changed then return true end
  return M.exclusively(dir, function()
    local all = M.hashes(dir)
    for k, v in pairs(cache) do if k ~= "changed" then all[k] = v end end
    return checkpoint.write_file(dir .. "/hashes.json", json.encode(all, { indent = 2 }) .. "\n")
  end)
end
nffi.interpreted(M.keep_hashes)

--- remove_tree(path): a file, link or folder and all in it; links are not followed.
function M.remove_tree(path)
  if os.remove(path) then return end
  for _, name in ipairs(checkpoint.exists(path) == "dir" and checkpoint.list(path) or {}) do
    M.remove_tree(path .. "/" .. name:gsub("/$", ""))
  end
  os.remove(path)
end

return M
