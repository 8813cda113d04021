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
-- (convert_module.lua makes and proves one module; here is what is around it.)
--
-- The folder while running: .nibble-journal, NAME.partial, copied side files. At
-- the end: files renamed, config.json and nibble.json (the certificate) written,
-- the journal removed.
local nffi = require "nibble.ffi"
local calibrate = require "nibble.calibrate"
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local modules = require "nibble.convert_module"
local output = require "nibble.output"
local plans = require "nibble.plan"
local scheme_m = require "nibble.scheme"
local units = require "nibble.units"
local C = nffi.C

local M = {}

-- Output bytes that may be written and not yet proven: the writer works on them meanwhile.
local ahead_bytes = 32 * 2 ^ 20

-- ---- the output folder -----------------------------------------------------------

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

local function begin_journal(journal, dir, id, source)
  local first = journal.lines[1]
  if first and first ~= "plan " .. id then
    return nil, ("%s holds an unfinished run of another plan (another recipe, model or version); "
      .. "run that command again to finish it, or remove the folder"):format(dir), "eio"
  end
  local done, same = claims(journal.lines, source)
  for _, line in ipairs { not first and "plan " .. id or false, not same and source or false } do
    local ok, msg, code
    if line then ok, msg, code = journal:append(line) else ok = true end
    if not ok then return nil, msg, code end
  end
  return done
end

-- -> journal, claims | nil, msg, code
local function open_journal(dir, id, model)
  local journal, msg, code = checkpoint.journal(dir .. "/" .. output.journal)
  if not journal then return nil, msg, code end
  local done
  done, msg, code = begin_journal(journal, dir, id, "source " .. model:stamp())
  if done then return journal, done end
  journal:close()
  return nil, msg, code
end

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

local function all_tensors(plan)
  local list = {}
  for _, job in ipairs(plan.jobs) do
    for _, t in ipairs(job.layout) do
      list[#list + 1] = { name = plans.tensor_name(job, t), dtype = t.dtype, shape = t.shape }
    end
  end
  return list
end

-- What the journal claims is compared with the files: after a power loss the
-- journal may know more than the disk.
local function keep_proven(run, done)
  local kept = 0
  for _, job in ipairs(run.plan.jobs) do
    local claim = done[job.name]
    if claim and modules.written_hash(run, job) == claim.hash then
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

local function run_jobs(run)
  local plan, t0 = run.plan, C.nb_now()
  local totals = { done = 0, total = #plan.jobs, bytes = 0, total_bytes = plan.totals.bytes_in }
  for _, job in ipairs(plan.jobs) do
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
  if run.writer then run.writer:close() end
  if run.journal then run.journal:close() end
end

local function proved_some(run)
  if next(run.done) then return true end
  for _, job in ipairs(run.plan.jobs) do
    if job.hash then return true end
  end
  return false
end

-- A failure that no second run could mend, or before anything was proven: everything that this plan writes goes.
local function clear(run)
  local names = { output.journal, output.certificate, "config.json", "model.safetensors.index.json" }
  for _, list in ipairs { run.writer and run.writer.files or {}, run.plan.model.other_files or {} } do
    for _, name in ipairs(list) do names[#names + 1] = name end
  end
  close(run)
  output.clear(run.dir, names, run.made)
end

-- The run's progress while the text goes through the model.
local function calibration_progress(run)
  return function(p)
    run.progress { done = p.tokens, unit = "tokens", share = p.done / p.total, name = "calibration", seconds = p.seconds }
  end
end

local function execute(run, dir)
  local plan = run.plan
  local ok, msg, code = copy_side_files(run, dir)
  if not ok then return nil, msg, code end
  run.input_scales, run.importance, code = calibrate.of_plan(plan, { journal = run.journal, lines = run.journal.lines,
    progress = run.progress and calibration_progress(run) })
  if not run.input_scales then return nil, run.importance, code end
  run.writer, msg, code = checkpoint.writer { dir = dir, tensors = all_tensors(plan), shard_bytes = plan.shard_bytes,
    metadata = plan.metadata or { format = "pt" }, resume = run.state == "resume" }
  if not run.writer then return nil, msg, code end
  run.resumed = run.state == "resume" and keep_proven(run, run.done) or 0
  ok, msg, code = run_jobs(run)
  if not ok then return nil, msg, code end
  ok, msg, code = run.writer:finish()
  if not ok then return nil, msg, code end
  ok, msg, code = (plan.texts and write_texts or write_config)(run, dir)
  if not ok then return nil, msg, code end
  ok, msg, code = write_certificate(run, dir)
  if not ok then return nil, msg, code end
  return run.journal:remove()
end

--- execute(plan, dir [, {progress = fn, measure = bool, ahead_bytes =}]) -> result | nil, msg, code
-- Writes the plan's output into dir, resuming an unfinished run of the same plan, and
-- proves every module. A failure that no second run could mend leaves no folder that
-- this call made; an interruption or a full disk leaves what the next run goes on from.
-- progress: default M.progress, which a session on a terminal sets.
-- ahead_bytes: output written and not yet proven, default 32 MiB: what a killed run may have to do again.
-- measure: also the error of every quantized module (on where the recipe's accept needs it).
function M.execute(plan, dir, options)
  options = options or {}
  local t0 = C.nb_now()
  dir = dir:gsub("/+$", "")
  local id = plan:id()
  local state, msg, code = output.look(dir, plan.model, id)
  if not state then return nil, msg, code end
  local certificate = state == "complete" and msg
  local accept = plan.recipe and plan.recipe.accept or {}
  local lacking = plans.lacks_input_scale(plan)
  local text = plan.recipe and plan.recipe.calibrate or {}
  if lacking and not certificate and not (text.text or text.ids) then
    local what = scheme_m.static_activations(lacking.out.scheme) and "the scale of the layer's input"
      or "how large the layer's inputs are"
    return nil, ("%s: %s needs %s, which comes from calibration: name a text in the recipe's "
      .. "`calibrate` (--set calibrate.text=FILE)"):format(lacking.name, scheme_m.describe(lacking.out.scheme), what), "einval"
  end
  local by_name = {}
  for _, job in ipairs(plan.jobs) do by_name[job.name] = job end
  local run = { plan = plan, dir = dir, state = state, jobs = by_name, absmax = {}, waiting = {}, waiting_bytes = 0,
                made_count = 0, next_proof = 1, ahead = options.ahead_bytes or ahead_bytes, scratch = {}, proof_scratch = {}, pool = {},
                progress = options.progress or M.progress, measure = options.measure or accept.sqnr_db ~= nil }
  if certificate then
    recall(plan, certificate)
    return summarize(run, dir, C.nb_now() - t0, state)
  end
  run.made, msg, code = output.make(dir)
  if not run.made then return nil, msg, code end
  local done
  run.journal, done, code = open_journal(dir, id, plan.model)
  if not run.journal then
    output.unmake(run.made)
    return nil, done, code
  end
  run.done = done
  for _, job in ipairs(plan.jobs) do job.hash, job.error = nil, nil end -- another folder's run may have set them
  local called, ok
  called, ok, msg, code = pcall(execute, run, dir)
  local hopeless = code == "eformat" or code == "einexact" or code == "einval"
  if called and not ok and (hopeless or not proved_some(run)) then
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
