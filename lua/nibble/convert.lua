-- convert: runs a plan. Tensors flow from the mapped source through row tiles to
-- the writer; every module is decoded again from the written file and must give
-- the codes, zero-points and scales that were meant, bit for bit; only then does
-- the journal name it. So a run may be killed at any moment, and the same command
-- goes on with the first module that the journal lacks.
--
--   source tensors ──read/quantize──▶ tile ──write──▶ buffers ──▶ writer ──▶ *.partial
--                                      │                                       │ read back
--                                      └────────── meant = decoded? ◀──────────┘
--
-- (convert_module.lua makes and proves one module, convert_steps.lua a list of them;
-- here is what is around them. convert_parts.lua runs a plan in parts.)
--
-- The folder while running: .nibble-journal, NAME.partial, copied side files. At
-- the end: files renamed, config.json and nibble.json (the certificate) written,
-- the journal removed.
local nffi = require "nibble.ffi"
local calibrate = require "nibble.calibrate"
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local output = require "nibble.output"
local parts = require "nibble.convert_parts"
local plans = require "nibble.plan"
local scheme_m = require "nibble.scheme"
local steps = require "nibble.convert_steps"
local units = require "nibble.units"
local C = nffi.C

local M = {}

-- ---- the output folder -----------------------------------------------------------

-- config.json of the output: the source's keys in their order, with its
-- quantization_config replaced (or taken out where nothing is quantized).
local function write_config(run, dir)
  local plan = run.plan
  local source = plan.model.dir .. "/config.json"
  local text, msg, code = "{}", nil, nil
  if checkpoint.exists(source) then text, msg, code = checkpoint.read_file(source) end
  if not text then return nil, msg, code end
  text, msg, code = json.replace(text, "quantization_config", plan.quantization_config)
  if not text then return nil, msg, code end
  local ok
  ok, msg, code = checkpoint.write_file(dir .. "/config.json", text)
  if not ok then return nil, msg, code end
  if plan.quantization_config and plan.format.side_file then
    local config = json.encode(plan.quantization_config, { indent = 2 }) .. "\n"
    return checkpoint.write_file(dir .. "/" .. plan.format.side_file, config)
  end
  return true
end

-- The texts that a plan brings along (nibble.repair's) in place of the config of a format.
local function write_texts(run, dir)
  for _, name in ipairs(json.keys(run.plan.texts)) do
    local ok, msg, code = checkpoint.write_file(dir .. "/" .. name, run.plan.texts[name])
    if not ok then return nil, msg, code end
  end
  return true
end

-- The certificate: no time, host or path in it, so that equal runs write equal bytes.
local function write_certificate(run, dir)
  local plan = run.plan
  local list = {}
  for i, job in ipairs(plan.jobs) do
    list[i] = { name = job.name, action = job.action, hash = job.hash, __order = { "name", "action", "scheme", "hash", "error" },
                   scheme = job.out.scheme and scheme_m.describe(job.out.scheme) or nil, error = job.error }
  end
  local text = json.encode({ nibble = nffi.version, plan = plan:id(), format = plan.format.name,
    recipe = plan.recipe and plan.recipe.name or nil, accept = plan.recipe and plan.recipe.accept or nil,
    repairs = plan.repairs, modules = json.array(list),
    __order = { "nibble", "plan", "format", "recipe", "accept", "repairs", "modules" } }, { indent = 2 })
  return checkpoint.write_file(dir .. "/" .. output.certificate, text .. "\n")
end

-- Files that describe the source's quantization must not follow into the output.
local stale = { ["quantize_config.json"] = true, ["quant_config.json"] = true, ["quantization_config.json"] = true,
                ["hf_quant_config.json"] = true, [output.certificate] = true }

local function copy_side_files(run, dir)
  for _, name in ipairs(run.plan.model.other_files or {}) do
    if not stale[name] then
      nffi.stop_check()
      local ok, msg, code = checkpoint.mkdir((dir .. "/" .. name):match "^(.*)/")
      if not ok then return nil, msg, code end
      ok, msg, code = checkpoint.copy_file(run.plan.model.dir .. "/" .. name, dir .. "/" .. name)
      if not ok then return nil, msg, code end
    end
  end
  return true
end

-- ---- running ----------------------------------------------------------------------

-- What the run that finished this output found: a bound that it missed is still missed.
local function recall(plan, certificate)
  local by_name = {}
  for _, module in ipairs(certificate.modules or {}) do by_name[module.name] = module end
  for _, job in ipairs(plan.jobs) do
    local module = by_name[job.name] or {}
    job.hash, job.error = module.hash, module.error
  end
end

local function summarize(run, dir, seconds, state)
  local plan, worst = run.plan, nil
  for _, job in ipairs(plan.jobs) do
    local sqnr_db = job.error and job.error.sqnr_db -- absent where nothing was lost
    if sqnr_db and (not worst or sqnr_db < worst.sqnr_db) then worst = { name = job.name, sqnr_db = sqnr_db } end
  end
  local accept = plan.recipe and plan.recipe.accept or {}
  local result = { dir = dir, modules = #plan.jobs, seconds = seconds, bytes_in = plan.totals.bytes_in,
                   bytes_out = plan.totals.bytes_out, resumed = run.resumed, proven = #plan.jobs, worst = worst,
                   accepted = true, state = state, plan = plan }
  if accept.sqnr_db and worst and worst.sqnr_db < accept.sqnr_db then
    result.accepted = false
    result.why = ("%s has %.2f dB of signal to quantization noise, the recipe accepts %.2f or more"):format(worst.name,
      worst.sqnr_db, accept.sqnr_db)
  end
  local methods = { totable = function(r)
    local out = {}
    for k, v in pairs(r) do out[k] = v end
    out.plan = plan:id()
    return out
  end }
  return setmetatable(result, { __index = methods, __tostring = function(r)
    local worst_text = r.worst and ("; worst %s at %.1f dB"):format(r.worst.name, r.worst.sqnr_db) or ""
    if r.state == "complete" then
      return ("%s: %d modules, %s: complete already, and every module was proven when it was written%s"):format(r.dir,
        r.modules, units.bytes(r.bytes_out), worst_text)
    end
    return ("%s: %d modules, %s → %s in %.2f s (%s)%s; every module decoded from the written file and found equal%s"):format(
      r.dir, r.modules, units.bytes(r.bytes_in), units.bytes(r.bytes_out), r.seconds,
      units.rate(r.bytes_in, r.seconds), r.resumed and r.resumed > 0 and (", %d of them from before"):format(r.resumed) or "",
      worst_text)
  end })
end

local function close(run)
  steps.close(run)
  parts.release(run)
end

-- A failure that no second run could mend, or before anything was proven: everything that this plan writes goes.
local function clear(run)
  local names = { output.journal, output.certificate, "config.json", "model.safetensors.index.json" }
  for _, list in ipairs { run.writer and run.writer.files or {}, run.plan.model.other_files or {} } do
    for _, name in ipairs(list) do names[#names + 1] = name end
  end
  parts.remove(run)
  close(run)
  output.clear(run.dir, names, run.made)
end

local function execute(run, dir)
  local plan = run.plan
  local ok, msg, code = copy_side_files(run, dir)
  if not ok then return nil, msg, code end
  if run.parts then run.input_scales, run.importance, code = parts.calibration(run)
  else
    run.input_scales, run.importance, code = calibrate.of_plan(plan, { journal = run.journal, lines = run.journal.lines,
      progress = steps.calibration_progress(run), device = run.device })
  end
  if not run.input_scales then return nil, run.importance, code end
  run.writer, msg, code = steps.writer(plan, dir, { resume = run.state == "resume" })
  if not run.writer then return nil, msg, code end
  run.resumed = run.state == "resume" and steps.keep_proven(run, run.done) or 0
  ok, msg, code = steps.run_jobs(run)
  if not ok then return nil, msg, code end
  ok, msg, code = run.writer:finish()
  if not ok then return nil, msg, code end
  ok, msg, code = (plan.texts and write_texts or write_config)(run, dir)
  if not ok then return nil, msg, code end
  ok, msg, code = write_certificate(run, dir)
  if not ok then return nil, msg, code end
  ok, msg, code = run.journal:remove()
  if not ok then return nil, msg, code end
  parts.remove(run) -- after the journal: as long as that stands, their claims count
  return true
end

-- -> true, and the folder is this run's alone | nil, msg, code
local function begin(run, merge)
  local msg, code
  run.made, msg, code = output.make(run.dir)
  if not run.made then return nil, msg, code end
  local path = run.dir .. "/" .. output.journal
  local had = checkpoint.exists(path)
  run.journal, run.done, code = steps.open_journal(path, run.plan, run.dir)
  if not run.journal then
    output.unmake(run.made)
    return nil, run.done, code
  end
  local ok
  ok, msg, code = parts.gather(run, merge)
  if ok then return true end
  if not had then run.journal:remove() end
  close(run)
  output.unmake(run.made)
  return nil, msg, code
end

--- execute(plan, dir [, {progress = fn, measure = bool, ahead_bytes =, shard = {i, n}, merge = true, device =}])
--- -> result | nil, msg, code
-- Writes the plan's output into dir, resuming an unfinished run of the same plan, and
-- proves every module. A failure that no second run could mend leaves no folder that
-- this call made; an interruption or a full disk leaves what the next run goes on from.
-- progress: default nffi.progress, which a session on a terminal sets.
-- ahead_bytes: output written and not yet proven, default 32 MiB: what a killed run may have to do again.
-- measure: also the error of every quantized module (on where the recipe's accept needs it).
-- shard: only the i-th of n shares of the files (convert_parts.run), whose result it gives.
-- device: "cuda", …: the model that is calibrated runs there (calibrate.ranges).
-- merge: only gathers what shards wrote; without it a run in dir gathers, too, and does what is left.
function M.execute(plan, dir, options)
  options = options or {}
  local t0 = C.nb_now()
  dir = dir:gsub("/+$", "")
  local state, msg, code = output.look(dir, plan.model, plan:id())
  if not state then return nil, msg, code end
  local run = steps.start(plan, dir, setmetatable({ progress = options.progress or nffi.progress }, { __index = options }))
  run.state = state
  if state == "complete" then
    recall(plan, msg)
    parts.remove(run) -- of a run that ended before it could
    return summarize(run, dir, C.nb_now() - t0, state)
  end
  local ok
  ok, msg, code = steps.calibrates(plan)
  if not ok then return nil, msg, code end
  if options.shard then return parts.run(plan, dir, options) end
  ok, msg, code = begin(run, options.merge)
  if not ok then return nil, msg, code end
  for _, job in ipairs(plan.jobs) do job.hash, job.error = nil, nil end -- another folder's run may have set them
  local called
  called, ok, msg, code = pcall(execute, run, dir)
  if called and not ok and (steps.hopeless(code) or not steps.proved_some(run)) then
    clear(run)
    return nil, msg, code
  end
  close(run) -- done, interrupted, or something may change: what was proven stays for the next run
  if not called then error(ok, 0) end
  if not ok then return nil, msg .. "; what was proven stays, and the same command goes on", code end
  return summarize(run, dir, C.nb_now() - t0, state)
end

--- to(checkpoint, format, dir [, {lossy =, dtype =, shard =, progress =}]) -> result | nil, msg, code
-- Changes the format, exactly or not at all (FORMATS 10); lossy steps must be asked for by name.
function M.to(ck, format, dir, options)
  local plan, msg, code = plans.conversion(ck, format, options)
  if not plan then return nil, msg, code end
  return M.execute(plan, dir, options)
end

return M
