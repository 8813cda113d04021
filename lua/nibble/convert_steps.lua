-- convert_steps: what a run of a whole plan (convert) and of one file's part of it (convert_parts) share: the
-- journal, what its claims are worth, and the list of modules (run.todo) that is made and proven.
local nffi = require "nibble.ffi"
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local modules = require "nibble.convert_module"
local new_pool = require("nibble.tensor").pool
local plans = require "nibble.plan"
local scheme_m = require "nibble.scheme"
local C = nffi.C

local M = {}

-- Output bytes that may be written and not yet proven: the writer works on them meanwhile.
local ahead_bytes = 32 * 2 ^ 20

--- start(plan, dir, {progress=, measure=, ahead_bytes=}) -> run, whose todo are all of the plan's jobs.
function M.start(plan, dir, options)
  local by_name = {}
  for _, job in ipairs(plan.jobs) do by_name[job.name] = job end
  local accept = plan.recipe and plan.recipe.accept or {}
  return { plan = plan, dir = dir, jobs = by_name, todo = plan.jobs, absmax = {}, waiting = {}, waiting_bytes = 0,
           made_count = 0, next_proof = 1, ahead = options.ahead_bytes or ahead_bytes, scratch = {}, proof_scratch = {},
           pool = new_pool(), progress = options.progress, device = options.device, measure = options.measure or accept.sqnr_db ~= nil }
end

--- calibrates(plan) -> true | nil, msg, code: whether a plan that needs calibration names its text.
function M.calibrates(plan)
  local lacking = plans.lacks_input_scale(plan)
  local text = plan.recipe and plan.recipe.calibrate or {}
  if not lacking or text.text or text.ids then return true end
  local what = scheme_m.static_activations(lacking.out.scheme) and "the scale of the layer's input"
    or "how large the layer's inputs are"
  return nil, ("%s: %s needs %s, which comes from calibration: name a text in the recipe's "
    .. "`calibrate` (--set calibrate.text=FILE)"):format(lacking.name, scheme_m.describe(lacking.out.scheme), what), "einval"
end

--- hopeless(code) -> whether no second run could mend a failure of this kind.
function M.hopeless(code) return code == "eformat" or code == "einexact" or code == "einval" end

--- calibration_progress(run) -> the run's progress while the text goes through the model.
function M.calibration_progress(run)
  return run.progress and function(p)
    run.progress { done = p.tokens, unit = "tokens", share = p.done / p.total, name = "calibration", seconds = p.seconds }
  end
end

-- ---- the journal ------------------------------------------------------------------

-- Module name -> what the journal says of it since the model was as it is now, and whether it was.
local function claims(lines, source)
  local done, current = {}, nil
  for _, line in ipairs(lines) do
    local hash, rest = line:match "^done (%S+) (.*)$"
    if hash then
      local name, extra = rest:match "^([^\t]*)\t?(.*)$"
      done[name] = { hash = hash, error = extra ~= "" and json.decode(extra) or nil }
    elseif line:match "^source " then
      done, current = {}, line
    end
  end
  if current ~= source then return {}, false end
  return done, true
end

--- another_plan(dir) -> nil, msg, code: what is said of a folder where another plan's run stopped.
function M.another_plan(dir)
  return nil, ("%s holds an unfinished run of another plan (another recipe, model or version); "
    .. "run that command again to finish it, or remove the folder"):format(dir), "eio"
end

local function begin_journal(journal, dir, id, source)
  local first = journal.lines[1]
  if first and first ~= "plan " .. id then return M.another_plan(dir) end
  local done, same = claims(journal.lines, source)
  for _, line in ipairs { not first and "plan " .. id or false, not same and source or false } do
    if line then
      local ok, msg, code = journal:append(line)
      if not ok then return nil, msg, code end
    end
  end
  return done
end

--- open_journal(path, plan, dir) -> journal, claims | nil, msg, code
-- claims: module name -> {hash=, error=}, of those that were proven since the model was as it is now; the journal's
-- last line is its `source` where none was. dir: the output's folder, for sentences.
function M.open_journal(path, plan, dir)
  local journal, msg, code = checkpoint.journal(path)
  if not journal then return nil, msg, code end
  local done
  done, msg, code = begin_journal(journal, dir, plan:id(), "source " .. plan.model:stamp())
  if done then return journal, done end
  journal:close()
  return nil, msg, code
end

-- ---- the modules --------------------------------------------------------------------

--- tensors(plan) -> {{name=, dtype=, shape=}, …}: the output's, in the order in which files hold them.
function M.tensors(plan)
  local list = {}
  for _, job in ipairs(plan.jobs) do
    for _, t in ipairs(job.layout) do
      list[#list + 1] = { name = plans.tensor_name(job, t), dtype = t.dtype, shape = t.shape }
    end
  end
  return list
end

--- writer(plan, dir, options) -> the writer of the plan's output, all of it or (only =) one file | nil, msg, code
function M.writer(plan, dir, options)
  return checkpoint.writer { dir = dir, tensors = M.tensors(plan), shard_bytes = plan.shard_bytes,
    metadata = plan.metadata or { format = "pt" }, resume = options.resume, only = options.only }
end

-- Whether all of the module is in files that this run's writer holds.
local function held(run, job)
  for _, t in ipairs(job.layout) do
    if not run.writer:holds(plans.tensor_name(job, t)) then return false end
  end
  return true
end

--- keep_proven(run, claims) -> how many: modules that need not be made again.
-- What the journal claims is compared with the files: after a power loss the journal may know more than the disk.
function M.keep_proven(run, done)
  local kept = 0
  for _, job in ipairs(run.todo) do
    nffi.stop_check()
    local claim = done[job.name]
    if claim and held(run, job) and modules.written_hash(run, job) == claim.hash then
      job.hash, job.error = claim.hash, claim.error
      kept = kept + 1
    end
  end
  return kept
end

-- Proves the oldest module that waits for it, then lets the journal name it.
local function prove_oldest(run)
  local item = run.waiting[run.next_proof] -- a queue of thousands where modules are small: nothing is moved up
  run.waiting[run.next_proof], run.next_proof = nil, run.next_proof + 1
  run.waiting_bytes = run.waiting_bytes - item.job.bytes_out
  local ok, msg, code = run.writer:wait(item.mark)
  if not ok then return nil, msg, code end
  local hash
  hash, msg, code = modules.prove(run, item.job, item.expect)
  if not hash then return nil, msg, code end
  item.job.hash = hash
  local line = "done " .. hash .. " " .. item.job.name
  if item.job.error then line = line .. "\t" .. json.encode(item.job.error) end
  return run.journal:append(line)
end

-- Proofs run behind the writer, which runs behind the making: by one module, and by
-- more while they are small.
local function prove_down_to(run, count, bytes)
  while run.made_count - run.next_proof + 1 > count and run.waiting_bytes > bytes do
    nffi.stop_check()
    local ok, msg, code = prove_oldest(run)
    if not ok then return nil, msg, code end
  end
  return true
end

local function bytes_in(jobs)
  local sum = 0
  for _, job in ipairs(jobs) do sum = sum + job.bytes_in end
  return sum
end

--- run_jobs(run) -> true | nil, msg, code: makes and proves what of run.todo has no hash yet.
function M.run_jobs(run)
  local t0 = C.nb_now()
  local totals = { done = 0, total = #run.todo, bytes = 0, total_bytes = bytes_in(run.todo) }
  for _, job in ipairs(run.todo) do
    nffi.stop_check()
    if not job.hash then
      local expect, msg, code = modules.make(run, job)
      if not expect then return nil, msg, code end
      run.made_count = run.made_count + 1
      run.waiting[run.made_count] = { job = job, expect = expect, mark = run.writer:mark() }
      run.waiting_bytes = run.waiting_bytes + job.bytes_out
      local ok
      ok, msg, code = prove_down_to(run, 1, run.ahead)
      if not ok then return nil, msg, code end
    end
    totals.done, totals.bytes = totals.done + 1, totals.bytes + job.bytes_in
    totals.name, totals.seconds = job.name, C.nb_now() - t0
    if run.progress then run.progress(totals) end
  end
  return prove_down_to(run, 0, -1)
end

--- proved_some(run) -> whether something stands that a next run goes on from.
function M.proved_some(run)
  if next(run.done) then return true end
  for _, job in ipairs(run.todo) do
    if job.hash then return true end
  end
  return false
end

--- close(run): what was proven stays for the next run.
function M.close(run)
  if run.writer then run.writer:close() end
  if run.journal then run.journal:close() end
end

return M
