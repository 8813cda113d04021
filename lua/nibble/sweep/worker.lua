-- worker: one job of a sweep, in a process of its own: quantize, evaluate, write result.json.
local checkpoint = require "nibble.checkpoint"
local eval = require "nibble.eval"
local ffi = require "ffi"
local folder = require "nibble.sweep.folder"
local identity = require "nibble.sweep.identity"
local lock = require "nibble.lock"
local nffi = require "nibble.ffi"
local plans = require "nibble.plan"
local process = require "nibble.process"
local results = require "nibble.sweep.results"
local scheme = require "nibble.scheme"

local M = {}

-- Exit statuses beyond the command's own: another process does the job just now.
M.CLAIMED = 75
-- How long a job waits for one who is about to let go of it, seconds.
local patience = 2

local function sleep(seconds) process.poll({}, seconds) end

-- The peak of this program's own memory: getrusage's also knows the parent's, which started it.
local function peak_bytes()
  local f = io.open "/proc/self/status"
  local kilobytes = f and f:read("*a"):match "VmHWM:%s*(%d+)"
  if f then f:close() end
  return kilobytes and kilobytes * 1024 or tonumber(nffi.C.nb_peak_rss())
end

--- blank(job, recipe, attempts) -> a result without figures: what is known before anything was done.
function M.blank(job, recipe, attempts)
  local r = { figures = {}, modules = {}, attempts = attempts, host = process.host(),
              processor = ffi.string(nffi.C.nb_cpu_name()):gsub("%s+$", ""), recipe_text = recipe and recipe.text }
  for _, k in ipairs { "job", "recipe", "recipe_hash", "set", "model", "model_hash", "text", "text_hash", "context", "windows",
    "activations", "version" } do r[k] = job[k] end
  return r
end

-- ---- claims ------------------------------------------------------------------------------

--- claim(dir, hash [, wait]) -> lock, attempts | nil, msg, code: the job is this process's until it ends or releases.
function M.claim(dir, hash, wait)
  local ok, msg, code = checkpoint.mkdir(folder.path(dir, hash))
  if not ok then return nil, msg, code end
  local until_, held = nffi.C.nb_now() + (wait or 0)
  repeat
    nffi.stop_check()
    held, msg, code = lock.take(folder.path(dir, hash, "claim"))
    if not held and code ~= "ebusy" then return nil, msg, code end
    if not held and wait then sleep(0.05) end
  until held or nffi.C.nb_now() >= until_
  if not held then return nil, msg, code end
  return held, (tonumber(held:said():match "^attempt (%d+)") or 0)
end

-- ---- the job -----------------------------------------------------------------------------

-- What the sweep was planned with must still be there.
local function unchanged(what, found, hash)
  if found.hash == hash then return true end
  return nil, ("the %s %s has changed since the sweep was planned; name it again in a new `nibble sweep` to plan for what it is now")
    :format(what, found.path), "eformat"
end

local function text_unchanged(path, hash)
  local text, msg, code = identity.text(path)
  if not text then return nil, msg, code end
  return unchanged("text", text, hash)
end

local function opened(dir, job, kept)
  local cache = folder.hashes(dir)
  local model, msg, code = identity.model(job.model_path, { cache = cache })
  if not model then return nil, msg, code end
  local ok
  ok, msg, code = folder.keep_hashes(dir, cache)
  if ok then ok, msg, code = unchanged("model", model, job.model_hash) end
  if not ok then return nil, msg, code end
  ok, msg, code = text_unchanged(job.text_path, job.text_hash)
  local calibrate = kept and kept.calibrate
  if ok and calibrate then ok, msg, code = text_unchanged(calibrate.path, calibrate.hash) end
  if not ok then return nil, msg, code end
  return checkpoint.open(job.model_path)
end

local function modules_of(plan)
  local out = {}
  for i, j in ipairs(plan.jobs) do
    local e = j.error or {}
    out[i] = { name = j.name, scheme = j.out.scheme and scheme.describe(j.out.scheme) or nil, action = j.action,
               bytes = j.bytes_out, params = j.rec.params, sqnr_db = e.sqnr_db, mse = e.mse }
  end
  return out
end

-- Quantizes into out; fills the result.
local function run(r, ck, kept, out, say)
  local recipe, msg, code = identity.load_recipe(kept)
  if not recipe then return nil, msg, code end
  local plan
  plan, msg, code = plans.new(recipe, ck)
  if not plan then return nil, msg, code end
  local options = { measure = true, progress = function(p) say("run", p.share or p.done / p.total) end }
  local there = checkpoint.exists(out)
  local done
  done, msg, code = plan:run(out, options)
  if not done and there then -- of another folder's model, or damaged: from the start
    folder.remove_tree(out)
    done, msg, code = plan:run(out, options)
  end
  if not done then return nil, msg, code end
  local t, f = plan.totals, r.figures
  r.modules = modules_of(plan)
  f.bytes, f.bytes_model, f.bits_per_weight = t.bytes_out, t.bytes_in, t.params > 0 and t.bytes_out * 8 / t.params or nil
  f.worst_sqnr_db, f.worst = done.worst and done.worst.sqnr_db, done.worst and done.worst.name
  f.accepted, r.message = done.accepted, done.why
  return recipe
end

local function size_of(f, ck)
  local recs, msg, code = ck:modules()
  if not recs then return nil, msg, code end
  local bytes, params = 0, 0
  for _, rec in ipairs(recs) do bytes, params = bytes + rec.bytes, params + (rec.params or 0) end
  f.bytes, f.bytes_model, f.bits_per_weight = bytes, bytes, params > 0 and bytes * 8 / params or nil
  return true
end

-- Whether a file of ids holds windows: they have their own length.
local function are_windows(path)
  local file = checkpoint.open(path)
  local info = file and (file:info "ids" or file:info "input_ids")
  return info and #info.shape == 2
end

local function evaluate(r, job, model, against, say)
  local ids = job.text_path:match "%.safetensors$" and job.text_path or nil
  local context = not (ids and are_windows(ids)) and job.context or nil
  local e, msg, code = eval.run { model = model, against = against, text = not ids and job.text_path or nil, ids = ids, context = context,
    windows = job.windows, activations = job.activations, progress = function(p) say("eval", p.done / p.total) end }
  if not e then return nil, msg, code end
  r.context = e.context
  for _, warning in ipairs(e.warnings) do io.stderr:write("nibble: ", warning, "\n") end
  for _, k in ipairs { "ppl", "nll", "tokens", "ppl_against", "kl", "top1_agreement" } do r.figures[k] = e[k] end
  return e
end

-- Fills the result | nil, msg, code
local function perform(r, dir, job, kept, say)
  local ck, msg, code = opened(dir, job, kept)
  if not ck then return nil, msg, code end
  if not kept then
    local ok
    ok, msg, code = size_of(r.figures, ck)
    if ok then ok, msg, code = evaluate(r, job, ck, nil, say) end
    return ok, msg, code
  end
  local out, t0 = folder.path(dir, job.job, "checkpoint"), nffi.C.nb_now()
  local recipe
  recipe, msg, code = run(r, ck, kept, out, say)
  if not recipe then return nil, msg, code end
  local t1 = nffi.C.nb_now()
  r.seconds_run = t1 - t0
  local made, e
  made, msg, code = checkpoint.open(out)
  if not made then return nil, msg, code end
  e, msg, code = evaluate(r, job, made, ck, say)
  if not e then return nil, msg, code end
  r.seconds_eval = nffi.C.nb_now() - t1
  local why = eval.judge(recipe.accept or {}, e)
  if why then r.figures.accepted, r.message = false, r.message or why end
  return true
end

-- The claimed job from its start to its result.json.
local function work(dir, job, kept, attempts, o)
  local r, t0 = M.blank(job, kept, attempts), nffi.C.nb_now()
  local told = -1
  local function say(stage, share)
    if o.tell and (share >= 1 or nffi.C.nb_now() - told > 0.1) then
      told = nffi.C.nb_now()
      o.tell(stage, share)
    end
  end
  local called, ok, msg = pcall(perform, r, dir, job, kept, say)
  if not called and tostring(ok):match "interrupted$" then error(ok, 0) end
  if not called then ok, msg = nil, tostring(ok):gsub("^[^%s:]+%.lua:%d+: ", "") end
  r.status, r.seconds, r.peak_bytes = ok and "done" or "failed", nffi.C.nb_now() - t0, peak_bytes()
  if not ok then
    r.message = msg:gsub("%s*\n%s*", " "):gsub("; what was proven stays, and the same command goes on$", "")
    r.figures, r.modules = {}, {}
    io.stderr:write("nibble: ", r.message, "\n")
  end
  -- First this, so that a kill leaves nothing large behind and a full disk has room for the result.
  if not o.keep or r.status == "failed" then folder.remove_tree(folder.path(dir, job.job, "checkpoint")) end
  local code
  ok, msg, code = results.write(dir, r)
  if not ok then return nil, msg, code end
  return r
end

--- run(dir, hash [, {keep =, retry_failed =, tell = fn(stage, share)}]) -> result | nil, msg, code
-- Does the job unless it has a result, claims it meanwhile ("ebusy": another process has it), and writes result.json, also
-- of a failure. keep: the checkpoint stays; retry_failed: a failure counts as no result.
function M.run(dir, hash, o)
  o = o or {}
  local job, kept, code = folder.job(dir, hash)
  if not job then return nil, kept, code end
  local held, attempts
  held, attempts, code = M.claim(dir, hash, patience)
  if not held then return nil, attempts, code end
  local there, damage = results.read(dir, hash)
  if damage then
    io.stderr:write("nibble: ", damage, "; it is set aside and the job runs again\n")
    results.set_aside(dir, hash)
  end
  if there and not (o.retry_failed and there.status == "failed") then
    held:release()
    return there
  end
  if there then os.remove(folder.path(dir, hash, "result.json")) end
  local ok, msg
  ok, msg, code = held:say(("attempt %d by %s"):format(attempts + 1, folder.me()))
  if not ok then return nil, msg, code end
  local r
  r, msg, code = work(dir, job, kept, attempts + 1, o)
  held:release()
  return r, msg, code
end

return M
