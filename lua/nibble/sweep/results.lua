-- results: what came of a sweep's jobs: one result.json each, and from these alone results.jsonl and report.html.
local checkpoint = require "nibble.checkpoint"
local folder = require "nibble.sweep.folder"
local json = require "nibble.json"
local nffi = require "nibble.ffi"

local M = {}

-- A result's keys, in their order.
local keys = {
  "job", "status", "recipe", "recipe_hash", "recipe_text", "set", "model", "model_hash", "text", "text_hash", "context", "windows",
  "activations", "figures", "modules", "message", "seconds", "seconds_run", "seconds_eval", "peak_bytes", "attempts", "host",
  "processor", "version",
}
local figure_keys = { "ppl", "nll", "tokens", "ppl_against", "kl", "top1_agreement", "bits_per_weight", "bytes", "bytes_model",
                      "worst_sqnr_db", "worst", "accepted" }
local module_keys = { "name", "scheme", "action", "bytes", "params", "sqnr_db", "mse" }
-- What each is where it is there; of figures all but these are numbers.
local types = { figures = "table", modules = "table", set = "table" }
for _, k in ipairs { "context", "windows", "seconds", "seconds_run", "seconds_eval", "peak_bytes", "attempts" } do types[k] = "number" end
local figure_types = { worst = "string", accepted = "boolean" }
local module_types = { name = "string", scheme = "string", action = "string" }
-- These must be there.
local needed = { "job", "status", "model", "text", "figures", "set" }
-- These may be null, and are then written so.
local nullable = { "recipe", "recipe_hash", "recipe_text", "windows" }

local function finite(v) return type(v) ~= "number" or (v == v and v ~= math.huge and v ~= -math.huge) end

local function ordered(t, order)
  local out = { __order = order }
  for _, k in ipairs(order) do if t[k] ~= nil and finite(t[k]) then out[k] = t[k] end end
  return out
end

--- encode(result) -> one line of JSON.
function M.encode(r)
  local out, modules = ordered(r, keys), {}
  for _, k in ipairs(nullable) do if out[k] == nil then out[k] = json.null end end
  for i, m in ipairs(r.modules or {}) do modules[i] = ordered(m, module_keys) end
  out.set, out.modules = r.set or {}, json.array(modules)
  out.figures = ordered(r.figures or {}, figure_keys)
  return json.encode(out)
end

--- write(dir, result) -> true | nil, msg, code: as the job's result.json.
function M.write(dir, r) return checkpoint.write_file(folder.path(dir, r.job, "result.json"), M.encode(r) .. "\n") end

-- What is wrong with t's values, or nil; its nulls become nils.
local function mistyped(t, order, kinds, usual)
  for _, k in ipairs(order) do
    if t[k] == json.null then t[k] = nil end
    if t[k] ~= nil and type(t[k]) ~= (kinds[k] or usual) then
      return ("its %s is a %s, expected a %s"):format(k, type(t[k]), kinds[k] or usual)
    end
  end
end

local function decode(text, hash)
  local r, msg = json.decode(text)
  if type(r) ~= "table" or r == json.null then return nil, msg or "it is no JSON object" end
  msg = mistyped(r, keys, types, "string")
  if msg then return nil, msg end
  for _, k in ipairs(needed) do if r[k] == nil then return nil, ("its %s is missing"):format(k) end end
  if hash and r.job ~= hash then return nil, "it is another job's" end
  if r.status ~= "done" and r.status ~= "failed" then return nil, ("its status is %s"):format(r.status) end
  msg = mistyped(r.figures, figure_keys, figure_types, "number")
  for _, m in ipairs(r.modules or {}) do
    msg = msg or type(m) ~= "table" and "a module of it is no object" or mistyped(m, module_keys, module_types, "number")
  end
  if msg then return nil, msg end
  return r
end

--- exists(dir, hash) -> whether the job has a result.json, whatever is in it.
function M.exists(dir, hash) return checkpoint.exists(folder.path(dir, hash, "result.json")) == "file" end

--- read(dir, hash) -> result | nil | nil, msg: of one job; msg where there is a file that holds none.
function M.read(dir, hash)
  if not M.exists(dir, hash) then return nil end
  local path = folder.path(dir, hash, "result.json")
  local text, msg = checkpoint.read_file(path)
  if not text then return nil, msg end
  local r
  r, msg = decode(text, hash)
  if r then return r end
  return nil, ("%s is damaged (%s)"):format(path, msg)
end

--- set_aside(dir, hash) -> true | nil, msg: a damaged result.json gives way: the job runs again.
function M.set_aside(dir, hash)
  local path = folder.path(dir, hash, "result.json")
  return os.rename(path, path .. ".damaged")
end

-- Models together, then texts; of each the model itself first, then recipes by name and settings.
local function in_order(list)
  local said = require("nibble.sweep.jobs").set_text
  local function key(r)
    return table.concat({ r.model or "", r.model_hash or "", r.text or "", r.text_hash or "", r.recipe and "1" .. r.recipe or "0",
      said(r.set), r.job }, "\0")
  end
  local by = {}
  for _, r in ipairs(list) do by[r] = key(r) end
  table.sort(list, function(a, b) return by[a] < by[b] end)
  return list
end

--- of(dir, jobs) -> results, notes: of these jobs ({job = hash}), those that have one; notes: sentences about damaged ones.
function M.of(dir, jobs)
  local out, notes = {}, {}
  for _, job in ipairs(jobs) do
    nffi.stop_check()
    local r, why = M.read(dir, job.job)
    out[#out + 1], notes[#notes + 1] = r, why
  end
  return in_order(out), notes
end

--- all(dir) -> results, notes | nil, msg, code: every job's of the folder, also of one that sweep.json doesn't list.
function M.all(dir)
  local names, msg, code = checkpoint.list(dir .. "/jobs")
  if not names then return nil, msg, code end
  local jobs = {}
  for _, name in ipairs(names) do
    local hash = name:match "^(%x+)/$"
    jobs[#jobs + 1] = hash and { job = hash }
  end
  return M.of(dir, jobs)
end

--- lines(dir) -> results | nil, msg, code: those of results.jsonl, of a folder whose jobs are gone.
function M.lines(dir)
  local path = dir .. "/results.jsonl"
  local text, msg, code = checkpoint.read_file(path)
  if not text then return nil, msg, code end
  local out, n = {}, 0
  for line in text:gmatch "[^\n]+" do
    n = n + 1
    local r, why = decode(line)
    if not r then return nil, ("%s: line %d is damaged (%s)"):format(path, n, why), "eformat" end
    out[n] = r
  end
  return out
end

--- merge(dir) -> results, notes | nil, msg, code: writes results.jsonl and report.html anew.
function M.merge(dir)
  return folder.exclusively(dir, function()
    local list, notes, code = M.all(dir)
    if not list then return nil, notes, code end
    local lines = {}
    for i, r in ipairs(list) do lines[i] = M.encode(r) .. "\n" end
    local ok, msg
    ok, msg, code = checkpoint.write_file(dir .. "/results.jsonl", table.concat(lines))
    if not ok then return nil, msg, code end
    local found, report = pcall(require, "nibble.report")
    if found and list[1] then
      ok, msg = report.write(dir .. "/report.html", list, { title = (checkpoint.real(dir) or dir):match "[^/]+$" })
      if not ok then notes[#notes + 1] = ("no report: %s"):format(msg) end
    end
    return list, notes
  end)
end

return M
