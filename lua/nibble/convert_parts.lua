-- convert_parts: a run in parts, one file of the output each, so that many processes, on many machines that share a
-- file system, write one checkpoint; and how one run gathers them.
--
--   DIR/.nibble-parts/PLAN/            PLAN: the plan's id
--     NAME.safetensors                 the part's journal; who works on the part holds its lock
--     calibration                      the journal of the calibration, done by who comes first
--     calibration.json                 what it found, beside calibration.safetensors/ (sums of columns)
--
-- A module whose tensors lie in two files is made by both parts: each writes its own tensors, keeps the others in
-- memory, and proves the whole module. The run that gathers locks every part, takes their claims for its own and goes
-- on as after an interruption: it compares every claim with the files, makes what is missing, and ends with the same
-- bytes as a run in one piece.
local nffi = require "nibble.ffi"
local calibrate = require "nibble.calibrate"
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local output = require "nibble.output"
local plans = require "nibble.plan"
local steps = require "nibble.convert_steps"
local units = require "nibble.units"
local C = nffi.C

local M = {}

local function folder(plan, dir) return ("%s/%s/%s"):format(dir, output.parts, plan:id()) end

-- The parts' folder, made if missing | nil, msg, code; the folders that this made for it.
local function make_folder(plan, dir)
  local path = folder(plan, dir)
  local made, msg, code = output.make(path)
  if not made then return nil, msg, code end
  local all
  all, msg, code = checkpoint.list(dir .. "/" .. output.parts) -- afterwards: of two that make one at once both find it
  if all and #all == 1 then return path, made end
  output.unmake(made)
  if all then return steps.another_plan(dir) end
  return nil, msg, code
end

-- The same, where no run in one piece has begun.
local function begin_folder(plan, dir)
  local path, made, code = make_folder(plan, dir)
  if not path then return nil, made, code end
  if made[#made] ~= path or not checkpoint.exists(dir .. "/" .. output.journal) then return path, made end
  output.unmake(made)
  return nil, ("%s holds an unfinished run in one piece: the same command without --shard goes on with it"):format(dir), "eio"
end

-- The names of the output's files in order | nil, msg, code
local function files(plan, dir)
  local writer, msg, code = steps.writer(plan, dir, { only = 0, resume = true })
  if not writer then return nil, msg, code end
  writer:close()
  return writer.files
end

--- parts(plan, dir) -> how many parts, files of the output, the plan has; the folders made | nil, msg, code
-- For who is about to start shards: dir and what shards need in it are made, and refused as a shard would.
function M.parts(plan, dir)
  local state, msg, code = output.look(dir, plan.model, plan:id())
  if not state then return nil, msg, code end
  local ok
  ok, msg, code = steps.calibrates(plan)
  if not ok then return nil, msg, code end
  local path, made
  path, made, code = begin_folder(plan, dir)
  if not path then return nil, made, code end
  local names
  names, msg, code = files(plan, dir)
  if not names then return nil, msg, code end
  return #names, made
end

-- ---- calibration ----------------------------------------------------------------------

-- What was found, if it was of this plan and the model as it is: input scales, importance | nil
local function stored(plan, path)
  local text = checkpoint.exists(path .. ".json") and checkpoint.read_file(path .. ".json")
  local found = text and json.decode(text)
  if not found or found.plan ~= plan:id() or found.source ~= plan.model:stamp() then return nil end
  local importance = {}
  if found.importance then
    local ck, msg, code = checkpoint.open(path .. ".safetensors")
    if not ck then return nil, msg, code end
    for name, key in pairs(found.importance) do importance[name] = assert(ck:tensor(key)) end
  end
  return found.input_scales, importance
end
nffi.interpreted(stored)

-- Modules that see the same input share a tensor: each is written once.
local function write_importance(path, importance)
  local keys, tensors, list, names = {}, {}, {}, {}
  for name in pairs(importance) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local t = importance[name]
    local address = tostring(t:ptr())
    if not tensors[address] then
      list[#list + 1] = { name = name, dtype = "f64", shape = t:size(), tensor = t }
      tensors[address] = name
    end
    keys[name] = tensors[address]
  end
  if #list == 0 then return false end
  local folder_of = path .. ".safetensors"
  checkpoint.remove_file(folder_of .. "/model.safetensors")
  local writer, msg, code = checkpoint.writer { dir = folder_of, tensors = list, shard_bytes = 2 ^ 50 }
  if not writer then return nil, msg, code end
  for _, item in ipairs(list) do
    local ok
    ok, msg, code = writer:put(item.name, item.tensor)
    if not ok then return nil, msg, code end
  end
  local ok
  ok, msg, code = writer:finish()
  if not ok then return nil, msg, code end
  return keys
end
nffi.interpreted(write_importance)

local function store(plan, path, scales, importance)
  local keys, msg, code = write_importance(path, importance)
  if keys == nil then return nil, msg, code end
  return checkpoint.write_file(path .. ".json", json.encode { plan = plan:id(), source = plan.model:stamp(),
    input_scales = scales, importance = keys or nil })
end

-- A lock that another process holds is worth waiting for, or leaving the part to that one.
local function is_held(msg) return msg:find(" is in use: ", 1, true) ~= nil end

local seconds_between_looks = 0.5

--- calibration(run) -> input scales, importance | nil, msg, code
-- Found by who comes first, read by the others, who wait for it.
function M.calibration(run)
  local plan, dir = run.plan, run.dir
  local path = folder(plan, dir) .. "/calibration"
  if not calibrate.wanted(plan) and not calibrate.ordered(plan) then return calibrate.of_plan(plan, {}) end
  while true do
    local scales, importance, code = stored(plan, path)
    if scales or importance then return scales, importance, code end
    local journal, msg
    journal, msg, code = steps.open_journal(path, plan, dir)
    if journal then
      scales, importance, code = calibrate.of_plan(plan, { journal = journal, lines = journal.lines,
        progress = steps.calibration_progress(run), device = run.device })
      local ok = scales
      if scales then ok, msg, code = store(plan, path, scales, importance) else msg = importance end
      if not ok and (steps.hopeless(code) or #journal.lines == 2) then journal:remove() else journal:close() end
      if not ok then return nil, msg, code end
      return scales, importance
    end
    if not is_held(msg) then return nil, msg, code end
    nffi.sleep(seconds_between_looks)
  end
end

-- ---- a part ----------------------------------------------------------------------------

-- Since the model was as it is now.
local function is_whole(journal) return journal.lines[#journal.lines] == "whole" end

-- The plan's jobs with a tensor in the file that the writer writes.
local function jobs_of(plan, writer)
  local list = {}
  for _, job in ipairs(plan.jobs) do
    local touches = false
    for _, t in ipairs(job.layout) do touches = touches or writer:holds(plans.tensor_name(job, t)) end
    if touches then
      job.hash, job.error = nil, nil -- another folder's run may have set them
      list[#list + 1] = job
    end
  end
  return list
end

local function write_part(run, number)
  local msg, code
  run.input_scales, run.importance, code = M.calibration(run)
  if not run.input_scales then return nil, run.importance, code end
  run.writer, msg, code = steps.writer(run.plan, run.dir, { only = number, resume = true })
  if not run.writer then return nil, msg, code end
  run.todo = jobs_of(run.plan, run.writer)
  run.resumed = steps.keep_proven(run, run.done)
  local ok
  ok, msg, code = steps.run_jobs(run)
  if not ok then return nil, msg, code end
  ok, msg, code = run.writer:finish()
  if not ok then return nil, msg, code end
  return run.journal:append "whole"
end

-- Nothing that a failed part began stays, unless others are at work.
local function clear_part(run, name, made)
  if run.writer then run.writer:close() end
  checkpoint.remove_file(run.dir .. "/" .. name .. ".partial")
  run.journal:remove()
  output.unmake { run.dir .. "/" .. output.parts, folder(run.plan, run.dir) }
  output.unmake(made)
end

-- -> "written", run | "before" | "held" (by another process) | nil, msg, code
local function part(plan, dir, number, name, options, made)
  local path = folder(plan, dir) .. "/" .. name
  local journal, claims, code = steps.open_journal(path, plan, dir)
  if not journal then
    if is_held(claims) then return "held" end
    return nil, claims, code
  end
  local state, msg
  state, msg, code = output.look(dir, plan.model, plan:id()) -- again: the parts may have been gathered meanwhile
  if state ~= "resume" or is_whole(journal) then
    local gathered = state == "complete"
    if gathered then journal:remove() else journal:close() end
    if gathered then output.unmake { dir .. "/" .. output.parts, folder(plan, dir) } end
    if not state then return nil, msg, code end
    return "before"
  end
  local run = steps.start(plan, dir, options)
  run.journal, run.done, run.todo = journal, claims, {}
  local called, ok
  called, ok, msg, code = pcall(write_part, run, number)
  if called and not ok and (steps.hopeless(code) or not steps.proved_some(run)) then
    clear_part(run, name, made)
    return nil, msg, code
  end
  steps.close(run)
  if not called then error(ok, 0) end
  if not ok then return nil, msg .. "; what was proven stays, and the same command goes on", code end
  return "written", run
end

-- ---- a share of the parts ----------------------------------------------------------------

local Share = {}
Share.__index = Share

function Share.totable(r)
  local out = {}
  for k, v in pairs(r) do out[k] = v end
  return out
end

function Share.__tostring(r)
  local says = {}
  local function say(n, text) if n > 0 then says[#says + 1] = text:format(n) end end
  say(r.written, ("%%d written and proven (%d modules, %s in %.2f s)"):format(r.modules, units.bytes(r.bytes_in), r.seconds))
  say(r.before, "%d done before")
  say(r.held, "%d in the hands of another process")
  local what = #says > 0 and table.concat(says, ", ") or "none falls to this shard"
  local hint = r.files == 1 and "; one file is one part: a smaller output.shard gives more" or ""
  return ("%s: shard %d of %d, of %d files: %s%s; --merge ends the run when all are done"):format(r.dir, r.shard, r.shards,
    r.files, what, hint)
end

--- run(plan, dir, {shard = {i, n}, progress =, measure =}) -> result | nil, msg, code
-- Writes the output's files i, i + n, i + 2n … (as NAME.partial) and proves their modules; a file that is done or that
-- another process works on is left alone. result: {files, written, before, held, modules, bytes_in, seconds, …}.
-- plan, dir: as convert.execute has looked at them.
function M.run(plan, dir, options)
  local t0, i, n = C.nb_now(), options.shard[1], options.shard[2]
  local path, made, code = begin_folder(plan, dir)
  if not path then return nil, made, code end
  local names, msg
  names, msg, code = files(plan, dir)
  if not names then return nil, msg, code end
  local result = setmetatable({ dir = dir, shard = i, shards = n, files = #names, written = 0, before = 0, held = 0,
                                modules = 0, bytes_in = 0, resumed = 0, accepted = true }, Share)
  for number = i, #names, n do
    local state, run
    state, run, code = part(plan, dir, number, names[number], options, made)
    if not state then return nil, run, code end
    result[state] = result[state] + 1
    if state == "written" then
      result.modules, result.resumed = result.modules + #run.todo, result.resumed + run.resumed
      for _, job in ipairs(run.todo) do result.bytes_in = result.bytes_in + job.bytes_in end
    end
  end
  result.seconds = C.nb_now() - t0
  return result
end

-- ---- gathering -------------------------------------------------------------------------

--- gather(run, strict) -> true | nil, msg, code
-- Where run.dir has parts: locks all, and adds what they claim to run.done. strict: every part must be done.
function M.gather(run, strict)
  local dir = run.dir
  if not checkpoint.exists(dir .. "/" .. output.parts) then
    if not strict then return true end
    return nil, ("%s holds no parts to merge; --shard i/n writes them"):format(dir), "eio"
  end
  local path, made, code = make_folder(run.plan, dir)
  if not path then return nil, made, code end
  local names, msg
  names, msg, code = files(run.plan, dir)
  if not names then return nil, msg, code end
  run.parts = { journals = {} }
  local missing = {}
  for number, name in ipairs(names) do
    local journal, claims
    journal, claims, code = steps.open_journal(path .. "/" .. name, run.plan, dir)
    if not journal then return nil, claims, code end
    table.insert(run.parts.journals, journal)
    if not is_whole(journal) then missing[#missing + 1] = number end
    for module, claim in pairs(claims) do run.done[module] = claim end
  end
  if strict and missing[1] then
    return nil, ("%s: %d of %d files are not done yet, the first is %s: run --shard %d/%d, "
      .. "or run without --shard to do the rest here"):format(dir, #missing, #names, names[missing[1]], missing[1], #names), "eio"
  end
  return true
end
nffi.interpreted(M.gather)

--- release(run): others may work on the parts.
function M.release(run)
  for _, journal in ipairs(run.parts and run.parts.journals or {}) do journal:close() end
end

--- remove(run): the output is complete, or nothing of it stays: the parts' folder goes.
function M.remove(run)
  local path = folder(run.plan, run.dir)
  if not checkpoint.exists(path) then return end
  for _, name in ipairs(checkpoint.list(path) or {}) do os.remove(path .. "/" .. name) end
  for _, name in ipairs { "model.safetensors", "model.safetensors.partial" } do
    os.remove(path .. "/calibration.safetensors/" .. name)
  end
  M.release(run)
  output.unmake { run.dir .. "/" .. output.parts, path, path .. "/calibration.safetensors" }
end

return M
