-- convert: runs a plan. Tensors flow from the mapped source through row tiles to
-- the writer; every module is decoded again from the written file and must give
-- the codes, zero-points and scales that were meant, bit for bit; only then does
-- the journal name it. So a run may be killed at any moment, and the same command
-- goes on with the first module that the journal lacks.
--
--   source tensors ──read/quantize──▶ tile ──write──▶ buffers ──▶ writer ──▶ *.partial
--                                      │ hash                                  │ read back
--                                      └────────────── equal? ◀── hash ────────┘
--
-- The folder while running: .nibble-journal, NAME.partial, copied side files. At
-- the end: files renamed, config.json and nibble.json (the certificate) written,
-- the journal removed.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local checkpoint = require "nibble.checkpoint"
local json = require "nibble.json"
local formats = require "nibble.formats"
local plans = require "nibble.plan"
local quant = require "nibble.quant"
local scheme_m = require "nibble.scheme"
local tensors = require "nibble.tensor"
local output = require "nibble.output"
local units = require "nibble.units"
local C = nffi.C

local M = {}

-- Elements of a row tile: large enough that the threads' start costs little, small enough for the last cache.
local tile_elements = 2 ^ 21
-- Output bytes between two proofs: what a killed run may have to do again.
local batch_bytes = 128 * 2 ^ 20

-- ---- hashes -------------------------------------------------------------------

local function new_hash()
  local h = C.nb_hash_new()
  if h == nil then error("out of memory for a hash", 0) end
  return ffi.gc(h, C.nb_hash_free)
end

local hex = ffi.new "char[33]"
local function digest(h)
  C.nb_hash_hex(h, hex)
  return ffi.string(hex)
end

-- Block by block: a mapped tensor's pages are let go again behind the hash.
local function hash_tensor(h, t)
  local block, bytes = 16 * 2 ^ 20, t:bytes()
  if bytes == 0 then return end
  local all = t:as("u8", { bytes })
  for at = 1, bytes, block do
    nffi.stop_check()
    local part = all:rows(at, math.min(bytes, at + block - 1))
    C.nb_hash_update(h, part.data, part:bytes())
    part:drop()
  end
end

-- ---- tiles --------------------------------------------------------------------

-- Rows of a tile: a multiple of 128 (whole cache lines of words that lie along n), and of
-- what each format's packing along n begins on.
local function tile_rows(job, ...)
  local n, k = job.rec.n, job.rec.k
  local step = 128
  for _, format_rec in ipairs { ... } do
    local need = format_rec[1].row_step(format_rec[2])
    while step % need ~= 0 do step = step * 2 end
  end
  return math.min(n, math.max(step, math.floor(tile_elements / k / step) * step))
end

-- Calls fn(a, b, q) over rows a..b (1-based, inclusive), q being a tile of that many rows.
local function each_tile(cache, job, rows, scheme, scale_dtype, g_idx, fn)
  local n, k = job.rec.n, job.rec.k
  local key = table.concat({ scheme_m.describe(scheme), rows, k, scale_dtype, tostring(g_idx) }, "|")
  if cache.key ~= key then
    cache.key, cache.q = key, scheme_m.quantized(scheme, rows, k, scale_dtype, g_idx)
  end
  for a = 1, n, rows do
    nffi.stop_check()
    local b = math.min(n, a + rows - 1)
    local q = b - a + 1 == rows and cache.q or cache.q:rows(1, b - a + 1)
    local ok, msg, code = fn(a, b, q)
    if not ok then return nil, msg, code end
  end
  return true
end

-- ---- the three ways of making a module -------------------------------------------
-- Each fills dst (suffix -> heap tensor of the output layout) and returns the
-- content hash of what was meant, or nil, msg, code.

local function make_quantized(run, job, dst)
  local rec, method, scheme = job.rec, job.method, job.out.scheme
  local source, msg, code = run.plan.model:weight(rec.name, rec.scheme and "f32" or nil)
  if not source then return nil, msg, code end
  local h, sums = new_hash(), run.measure and {} or nil
  local rows = quant.row_local(method, scheme) and tile_rows(job, { job.format, job.out }) or rec.n
  local ok
  ok, msg, code = each_tile(run.scratch, job, rows, scheme, job.scale_dtype, nil, function(a, b, q)
    local w = source:rows(a, b)
    local done, why, kind = method.tile(q, w, scheme, job.options)
    if not done then return nil, ("%s, rows %d to %d: %s"):format(rec.name, a, b, why), kind end
    q:hash_into(h)
    if sums then quant.add_error(sums, q, w) end
    done, why, kind = job.format.write(dst, job.out, a, b, q)
    if not done then return nil, why, kind end
    w:drop()
    return true
  end)
  if not ok then return nil, msg, code end
  if sums then job.error = quant.finish_error(sums) end
  return digest(h)
end

local function make_converted(run, job, dst)
  local rec, h = job.rec, new_hash()
  local from = assert(formats.get(rec.format))
  local src, msg, code = formats.source(run.plan.model, rec)
  if not src then return nil, msg, code end
  local rows = tile_rows(job, { from, rec }, { job.format, job.out })
  local ok
  ok, msg, code = each_tile(run.scratch, job, rows, rec.scheme, rec.dtype, nil, function(a, b, q)
    local done, why, kind = from.read(src, rec, a, b, q)
    if not done then return nil, why, kind end
    q:hash_into(h)
    return job.format.write(dst, job.out, a, b, q)
  end)
  for _, t in pairs(src) do t:drop() end
  if not ok then return nil, msg, code end
  return digest(h)
end

local function make_dequantized(run, job, dst)
  local w, msg, code = run.plan.model:weight(job.name, job.out.dtype)
  if not w then return nil, msg, code end
  nffi.must(C.nb_tensor_copy(dst.weight, w))
  local h = new_hash()
  hash_tensor(h, w)
  return digest(h)
end

local makers = { quantize = make_quantized, convert = make_converted, dequantize = make_dequantized }

-- ---- writing and proving -------------------------------------------------------

-- A tensor that goes along as it is: into the writer, its content's hash out.
local function pass_on(run, name, source_name)
  local tensor, msg, code = run.plan.model:tensor(source_name)
  if not tensor then return nil, msg, code end
  local h = new_hash()
  hash_tensor(h, tensor)
  local ok
  ok, msg, code = run.writer:put(name, tensor)
  if not ok then return nil, msg, code end
  return digest(h)
end

-- The layout's tensors that hold the weight; a bias passes by.
local function weight_tensors(job)
  local out = {}
  for _, t in ipairs(job.layout) do
    if job.action ~= "copy" and t.suffix ~= "bias" then out[#out + 1] = t end
  end
  return out
end

local function make_module(run, job)
  local parts, dst = {}, {}
  local own = weight_tensors(job)
  for _, t in ipairs(own) do dst[t.suffix] = tensors.new(t.dtype, t.shape) end
  if #own > 0 then
    local hash, msg, code = makers[job.action](run, job, dst)
    if not hash then return nil, msg, code end
    parts[1] = hash
  end
  for _, t in ipairs(job.layout) do
    local name = plans.tensor_name(job, t)
    local ok, msg, code
    if dst[t.suffix] then
      ok, msg, code = run.writer:put(name, dst[t.suffix])
      dst[t.suffix]:free()
    else
      ok, msg, code = pass_on(run, name, job.rec.tensors[t.suffix].name)
      parts[#parts + 1] = ok
    end
    if not ok then return nil, msg, code end
  end
  return table.concat(parts, "+")
end

local function hash_decoded(run, job, src)
  local h, out = new_hash(), job.out
  local rows = tile_rows(job, { job.format, out })
  local ok, msg, code = each_tile(run.proof_scratch, job, rows, out.scheme, job.scale_dtype, nil, function(a, b, q)
    local done, why, kind = job.format.read(src, out, a, b, q)
    if not done then return nil, why, kind end
    q:hash_into(h)
    return true
  end)
  if not ok then return nil, msg, code end
  return digest(h)
end

-- What the written file says, by the format's own reader.
local function hash_written(run, job)
  local src, parts = {}, {}
  for _, t in ipairs(job.layout) do
    local tensor, msg, code = run.writer:tensor(plans.tensor_name(job, t))
    if not tensor then return nil, msg, code end
    src[t.suffix] = tensor
  end
  if job.action == "quantize" or job.action == "convert" then
    local hash, msg, code = hash_decoded(run, job, src)
    if not hash then return nil, msg, code end
    parts[1] = hash
  end
  for _, t in ipairs(job.layout) do
    if #parts == 0 or t.suffix == "bias" or job.action == "copy" or job.action == "dequantize" then
      local h = new_hash()
      hash_tensor(h, src[t.suffix])
      parts[#parts + 1] = digest(h)
    end
  end
  for _, t in pairs(src) do t:drop() end
  return table.concat(parts, "+")
end

-- The journal's line for a module: name and hash; the hash is proven before it is written.
local function prove_batch(run)
  if #run.batch == 0 then return true end
  local ok, msg, code = run.writer:flush()
  if not ok then return nil, msg, code end
  for _, item in ipairs(run.batch) do
    local found, why, kind = hash_written(run, item.job)
    if not found then return nil, why, kind end
    if found ~= item.hash then
      return nil, ("%s: what was written does not decode to what was meant (%s, expected %s); the output is not to be used")
        :format(item.job.name, found, item.hash), "eformat"
    end
    item.job.hash = item.hash
    local line = "done " .. item.hash .. " " .. item.job.name
    if item.job.error then line = line .. "\t" .. json.encode(item.job.error) end
    ok, msg, code = run.journal:append(line)
    if not ok then return nil, msg, code end
  end
  run.batch, run.batch_bytes = {}, 0
  return true
end

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

-- The certificate: no time, host or path in it, so that equal runs write equal bytes.
local function write_certificate(run, dir)
  local plan = run.plan
  local modules = {}
  for i, job in ipairs(plan.jobs) do
    modules[i] = { name = job.name, action = job.action, hash = job.hash, __order = { "name", "action", "scheme", "hash", "error" },
                   scheme = job.out.scheme and scheme_m.describe(job.out.scheme) or nil, error = job.error }
  end
  local text = json.encode({ nibble = nffi.version, plan = plan:id(), format = plan.format.name,
    recipe = plan.recipe and plan.recipe.name or nil, accept = plan.recipe and plan.recipe.accept or nil,
    modules = json.array(modules), __order = { "nibble", "plan", "format", "recipe", "accept", "modules" } }, { indent = 2 })
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

-- What the journal claims is proven again against the files: after a power loss
-- the journal may know more than the disk.
local function reprove(run, done)
  local kept = 0
  for _, job in ipairs(run.plan.jobs) do
    local claim = done[job.name]
    if claim and hash_written(run, job) == claim.hash then
      job.hash, job.error = claim.hash, claim.error
      kept = kept + 1
    end
  end
  return kept
end

local function run_jobs(run)
  local plan, t0 = run.plan, C.nb_now()
  local totals = { done = 0, total = #plan.jobs, bytes = 0, total_bytes = plan.totals.bytes_in }
  for _, job in ipairs(plan.jobs) do
    nffi.stop_check()
    if not job.hash then
      local hash, msg, code = make_module(run, job)
      if not hash then return nil, msg, code end
      run.batch[#run.batch + 1] = { job = job, hash = hash }
      run.batch_bytes = run.batch_bytes + job.bytes_out
      if run.batch_bytes >= run.batch_limit then
        local ok
        ok, msg, code = prove_batch(run)
        if not ok then return nil, msg, code end
      end
    end
    totals.done, totals.bytes = totals.done + 1, totals.bytes + job.bytes_in
    totals.name, totals.seconds = job.name, C.nb_now() - t0
    if run.progress then run.progress(totals) end
  end
  return prove_batch(run)
end

local function summarize(run, dir, seconds, state)
  local plan, worst = run.plan, nil
  for _, job in ipairs(plan.jobs) do
    if job.error and (not worst or job.error.sqnr_db < worst.sqnr_db) then
      worst = { name = job.name, sqnr_db = job.error.sqnr_db }
    end
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
    return ("%s: %d modules, %s → %s in %.2f s (%s)%s; every module decoded from the written file and found equal%s"):format(
      r.dir, r.modules, units.bytes(r.bytes_in), units.bytes(r.bytes_out), r.seconds,
      units.rate(r.bytes_in, r.seconds), r.resumed and r.resumed > 0 and (", %d of them from before"):format(r.resumed) or "",
      r.worst and ("; worst %s at %.1f dB"):format(r.worst.name, r.worst.sqnr_db) or "")
  end })
end

local function close(run)
  if run.writer then run.writer:close() end
  if run.journal then run.journal:close() end
end

-- A failure that no second run could mend: everything that this plan writes goes.
local function clear(run)
  local names = { output.journal, output.certificate, "config.json", "model.safetensors.index.json" }
  for _, list in ipairs { run.writer and run.writer.files or {}, run.plan.model.other_files or {} } do
    for _, name in ipairs(list) do names[#names + 1] = name end
  end
  close(run)
  output.clear(run.dir, names, run.made)
end

local function execute(run, dir)
  local plan = run.plan
  local ok, msg, code = copy_side_files(run, dir)
  if not ok then return nil, msg, code end
  run.writer, msg, code = checkpoint.writer { dir = dir, tensors = all_tensors(plan), shard_bytes = plan.shard_bytes,
    metadata = { format = "pt" }, resume = run.state == "resume" }
  if not run.writer then return nil, msg, code end
  run.resumed = run.state == "resume" and reprove(run, run.done) or 0
  ok, msg, code = run_jobs(run)
  if not ok then return nil, msg, code end
  ok, msg, code = run.writer:finish()
  if not ok then return nil, msg, code end
  ok, msg, code = write_config(run, dir)
  if not ok then return nil, msg, code end
  ok, msg, code = write_certificate(run, dir)
  if not ok then return nil, msg, code end
  return run.journal:remove()
end

--- execute(plan, dir [, {progress = fn, measure = bool, tile_elements =, batch_bytes =}]) -> result | nil, msg, code
-- Writes the plan's output into dir, resuming an unfinished run of the same plan, and
-- proves every module. A failure that no second run could mend leaves no folder that
-- this call made; an interruption or a full disk leaves what the next run goes on from.
-- progress: default M.progress, which a session on a terminal sets.
-- measure: also the error of every quantized module (on where the recipe's accept needs it).
function M.execute(plan, dir, options)
  options = options or {}
  local t0 = C.nb_now()
  dir = dir:gsub("/+$", "")
  local id = plan:id()
  local state, msg, code = output.look(dir, plan.model, id)
  if not state then return nil, msg, code end
  local accept = plan.recipe and plan.recipe.accept or {}
  local run = { plan = plan, dir = dir, state = state, batch = {}, batch_bytes = 0,
                batch_limit = options.batch_bytes or batch_bytes, scratch = {}, proof_scratch = {},
                progress = options.progress or M.progress, measure = options.measure or accept.sqnr_db ~= nil }
  if state == "complete" then return summarize(run, dir, C.nb_now() - t0, state) end
  run.made, msg, code = output.make(dir)
  if not run.made then return nil, msg, code end
  local done
  run.journal, done, code = open_journal(dir, id, plan.model)
  if not run.journal then
    output.unmake(run.made)
    return nil, done, code
  end
  run.done = done
  local called, ok
  called, ok, msg, code = pcall(execute, run, dir)
  if called and not ok and (code == "eformat" or code == "einexact" or code == "einval") then
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
