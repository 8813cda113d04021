-- convert_module: one module of a plan: making its tensors, and proving what was written of them.
--
-- make() fills the output layout's tensors and hands them to the writer; prove() reads them back from the
-- written file by the format's own reader and compares with what make() meant:
--   content  the hash of codes, scales and zero-points, decoded tile by tile
--   params   scales and zero-points, where the words are moved whole: the writer proves those by the way
--            back to the source's words as it writes them, while they are in the caches
--   bytes    tensors that went along as they were
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local actorder = require "nibble.actorder"
local direct = require "nibble.formats.direct"
local floats = require "nibble.formats.floats"
local formats = require "nibble.formats"
local plans = require "nibble.plan"
local quant = require "nibble.quant"
local quant_float = require "nibble.quant_float"
local quantized = require "nibble.quantized"
local scheme_m = require "nibble.scheme"
local tensors = require "nibble.tensor"
local C = nffi.C

local M = {}

-- Elements of a row tile: large enough that the threads' start costs little, small enough for the last cache.
local tile_elements = 2 ^ 21

-- ---- hashes -------------------------------------------------------------------

local function new_hash()
  local h = C.nb_hash_new()
  if h == nil then error("out of memory for a hash", 0) end
  return ffi.gc(h, C.nb_hash_free)
end

-- Frees the hash, too: the collector doesn't see how large it is.
local hex = ffi.new "char[33]"
local function digest(h)
  C.nb_hash_hex(h, hex)
  C.nb_hash_free(ffi.gc(h, nil))
  return ffi.string(hex)
end

local function digest_of(t)
  nffi.must(C.nb_tensor_hash(hex, t))
  return ffi.string(hex)
end

-- ---- tiles --------------------------------------------------------------------

-- Rows of a tile: a multiple of 128 (whole cache lines of words that lie along n), and of
-- what each format's packing along n begins on.
local function tile_rows(job, ...)
  local n, k = job.rec.n, job.rec.k
  local step = 128
  for _, format_rec in ipairs { ... } do
    local need, common = format_rec[1].row_step(format_rec[2]), step
    while common % need ~= 0 do common = common + step end
    step = common
  end
  return math.min(n, math.max(step, math.floor(tile_elements / k / step) * step))
end

-- Calls fn(a, b, q) over rows a..b (1-based, inclusive), q being a tile of that many rows.
local function each_tile(cache, job, rows, scheme, scale_dtype, g_idx, fn)
  local n, k = job.rec.n, job.rec.k
  local key = table.concat({ scheme_m.describe(scheme), rows, k, scale_dtype }, "|")
  if cache.key ~= key then
    cache.key, cache.q = key, scheme_m.quantized(scheme, rows, k, scale_dtype)
  end
  cache.q.g_idx = g_idx
  for a = 1, n, rows do
    nffi.stop_check()
    local b = math.min(n, a + rows - 1)
    local q = b - a + 1 == rows and cache.q or cache.q:top(b - a + 1)
    local ok, msg, code = fn(a, b, q)
    if not ok then return nil, msg, code end
  end
  return true
end

-- ---- making ----------------------------------------------------------------------
-- Each returns what the proof must find and the tensors that it filled (suffix -> heap tensor of the output
-- layout), or nil, msg, code.

-- Tensors for the layout's parts of the weight but `without`; a bias, and all of a copied module, goes along
-- as it is. Words that rows don't fill keep the zeroes of new memory in their rest.
local function own_tensors(run, job, without)
  local dst, bits = {}, job.out.scheme and job.out.scheme.bits or 8
  local filled = job.rec.k * bits % 32 == 0 and job.rec.n * bits % 32 == 0
  for _, t in ipairs(job.layout) do
    if t.suffix ~= "bias" and t.suffix ~= without then
      dst[t.suffix] = (filled and run.pool.take or tensors.new)(t.dtype, t.shape)
    end
  end
  return dst
end

local function name_of(job, suffix)
  for _, t in ipairs(job.layout) do
    if t.suffix == suffix then return plans.tensor_name(job, t) end
  end
end

-- The error as the journal and the certificate can hold it, which know no infinity: without sqnr_db where
-- nothing was lost, and 1000 dB below a weight of zeros that came out as something else.
local function written_error(sums)
  local e = quant.finish_error(sums)
  if e.sqnr_db == math.huge then e.sqnr_db = nil elseif e.sqnr_db == -math.huge then e.sqnr_db = -1000 end
  return e
end

local function source_weight(run, job)
  return run.plan.model:weight(job.name, job.rec.scheme and "f32" or nil)
end

-- The largest magnitude of a module's weight, a tile at a time; remembered, because siblings ask for it, too.
local function absmax_of(run, job)
  local known = run.absmax[job.name]
  if known then return known end
  local w, msg, code = source_weight(run, job)
  if not w then return nil, msg, code end
  local rows, most = tile_rows(job), 0
  for a = 1, job.rec.n, rows do
    nffi.stop_check()
    local tile = w:rows(a, math.min(job.rec.n, a + rows - 1))
    local m
    m, msg, code = quant_float.absmax(tile)
    if not m then return nil, ("%s, from row %d on: %s"):format(job.name, a, msg), code end
    most = math.max(most, m)
    tile:drop()
  end
  if job.rec.scheme then w:free() end
  run.absmax[job.name] = most
  return most
end

-- What tiles need that only the whole weight (and its siblings') tells: a first pass; nil where they need nothing.
local function first_pass(run, job, source)
  if not quant_float.needs_whole(job.out.scheme) then return nil end
  local most = 0
  for _, name in ipairs(job.shares or { job.name }) do
    local m, msg, code = absmax_of(run, run.jobs[name])
    if not m then return nil, msg, code end
    most = math.max(most, m)
  end
  return quant_float.whole(job.out.scheme, most, source:type(), job.scale_dtype, job.options)
end

-- What calibration found of the layer's input, into the tile.
local function set_inputs(run, job, q)
  q.input_scale, q.input_zero, q.input_global = nil, nil, nil
  if not scheme_m.static_activations(job.out.scheme) then return end
  local given = run.input_scales[job.name]
  if type(given) == "number" then
    given = { [job.out.scheme.activations.strategy == "tensor_group" and "global" or "scale"] = given }
  end
  if given.scale then q.input_scale = tensors.new("f32", { 1 }, { given.scale }) end
  if given.global then q.input_global = tensors.new("f32", { 1 }, { given.global }) end
  if given.zero_point then q.input_zero = tensors.new("i8", { 1 }, { given.zero_point }) end
end

local function make_quantized(run, job)
  local rec, method, scheme, dst = job.rec, job.method, job.out.scheme, own_tensors(run, job)
  local source, msg, code = source_weight(run, job)
  if not source then return nil, msg, code end
  local whole
  whole, msg, code = first_pass(run, job, source)
  if msg then return nil, msg, code end
  local h, sums = new_hash(), run.measure and {} or nil
  local order = scheme.actorder == "group" and actorder.order(run.importance[rec.name]) or nil
  local g_idx = order and actorder.g_idx(order, scheme.group)
  local rows = quant.row_local(method, scheme) and tile_rows(job, { job.format, job.out }) or rec.n
  local ok
  ok, msg, code = each_tile(run.scratch, job, rows, scheme, job.scale_dtype, g_idx, function(a, b, q)
    local w = source:rows(a, b)
    q.row0, q.factor, q.input_factor = a, nil, nil -- the last module's
    set_inputs(run, job, q)
    local done, why, kind = quant.tile(method, q, w, scheme, job.options, { order = order, whole = whole })
    if not done then return nil, ("%s, rows %d to %d: %s"):format(rec.name, a, b, why), kind end
    floats.settle(q, rec, job.format, true)
    q:hash_into(h)
    if sums then quant.add_error(sums, q, w) end
    done, why, kind = job.format.write(dst, job.out, a, b, q)
    if not done then return nil, why, kind end
    w:drop()
    return true
  end)
  if not ok then return nil, msg, code end
  if sums then job.error = written_error(sums) end
  return { content = digest(h) }, dst
end

-- Words whole, without codes between; nil (and no message) where that way doesn't serve.
local function make_direct(run, job, src)
  local rec, from = job.rec, assert(formats.get(job.rec.format))
  local direct_way = direct.find(rec.format, job.format.name, rec)
  if not direct_way or not run.writer:holds(name_of(job, direct_way.to_words)) then return nil end
  local q = quantized.params(rec.scheme, rec.n, rec.k, rec.dtype, run.pool.take)
  local ok, msg, code = from.read(src, rec, 1, rec.n, q)
  if not ok then return nil, msg, code end
  if C.nb_scales_sound(q.scales) == 0 then return nil end -- the way through codes names the first that isn't
  local to, words = direct_way.to_words, src[direct_way.from_words]
  local moved = run.writer:repack(name_of(job, to), words, direct_way.way) -- goes on beside what follows
  local dst = own_tensors(run, job, to)
  ok, msg, code = job.format.write(dst, job.out, 1, rec.n, q)
  if not ok then return nil, msg, code end
  return { params = q, moved = moved, moved_suffix = to, words = words }, dst
end

local function make_through_codes(run, job, src)
  local rec, h, dst = job.rec, new_hash(), own_tensors(run, job)
  local from = assert(formats.get(rec.format))
  local rows = tile_rows(job, { from, rec }, { job.format, job.out })
  local ok, msg, code = each_tile(run.scratch, job, rows, rec.scheme, rec.dtype, nil, function(a, b, q)
    q.factor, q.input_factor = nil, nil -- the last module's
    local done, why, kind = from.read(src, rec, a, b, q)
    if done then done, why, kind = floats.settle(q, rec, job.format, run.plan.lossy) end
    if not done then return nil, why, kind end
    q:hash_into(h)
    return job.format.write(dst, job.out, a, b, q)
  end)
  for _, t in pairs(src) do t:drop() end
  if not ok then return nil, msg, code end
  return { content = digest(h) }, dst
end

local function make_converted(run, job)
  local src, msg, code = formats.source(run.plan.model, job.rec)
  if not src then return nil, msg, code end
  local expect, dst
  expect, dst, code = make_direct(run, job, src)
  if expect or dst then return expect, dst, code end
  return make_through_codes(run, job, src)
end

local function make_dequantized(run, job)
  local w, msg, code = run.plan.model:weight(job.name, job.out.dtype)
  if not w then return nil, msg, code end
  local dst = own_tensors(run, job)
  nffi.must(C.nb_tensor_copy(dst.weight, w))
  local expect = { bytes = { weight = digest_of(w) } }
  w:free()
  return expect, dst
end

local function make_copy() return {}, {} end

-- repair: the model's tensors are already what is meant.
local makers = { quantize = make_quantized, convert = make_converted, dequantize = make_dequantized, copy = make_copy,
  repair = make_copy }

-- The source's tensor where the module has none of its own: a bias, or all of a copy.
local function passing(run, job, suffix, expect)
  local from = formats.get(job.rec.format)
  local tensor, msg, code
  if from and from.part then tensor, msg, code = from.part(run.plan.model, job.rec, suffix)
  else tensor, msg, code = run.plan.model:tensor(job.rec.tensors[suffix].name) end
  if not tensor then return nil, msg, code end
  expect.bytes[suffix] = digest_of(tensor)
  return tensor
end

--- make(run, job) -> what prove() must find | nil, msg, code
-- Hands every tensor of the module to run.writer, but for those in files that others write: they stay in memory
-- until the proof.
function M.make(run, job)
  local expect, dst, code = makers[job.action](run, job)
  if not expect then return nil, dst, code end
  expect.bytes, expect.reusable, expect.elsewhere = expect.bytes or {}, {}, {}
  for _, t in ipairs(job.layout) do
    local own, name, tensor, ok, msg = dst[t.suffix], plans.tensor_name(job, t), nil, true, nil
    if own then
      tensor = own
      table.insert(expect.reusable, own) -- the writer reads it until the proof
    elseif t.suffix ~= expect.moved_suffix then
      tensor, msg, code = passing(run, job, t.suffix, expect)
      if not tensor then return nil, msg, code end
    end
    if tensor and not run.writer:holds(name) then expect.elsewhere[t.suffix] = tensor
    elseif tensor then ok, msg, code = run.writer:put(name, tensor) end
    if not ok then return nil, msg, code end
  end
  return expect
end

-- ---- proving ---------------------------------------------------------------------

local function written_tensors(run, job, elsewhere)
  local src = {}
  for _, t in ipairs(job.layout) do
    local tensor, msg, code = elsewhere[t.suffix], nil, nil
    if not tensor then tensor, msg, code = run.writer:tensor(plans.tensor_name(job, t)) end
    if not tensor then return nil, msg, code end
    src[t.suffix] = tensor
  end
  return src
end

local function decodes_to(run, job, src, content)
  local h, out = new_hash(), job.out
  local rows = tile_rows(job, { job.format, out })
  local ok, msg, code = each_tile(run.proof_scratch, job, rows, out.scheme, job.scale_dtype, nil, function(a, b, q)
    local done, why, kind = job.format.read(src, out, a, b, q)
    if not done then return nil, why, kind end
    q:hash_into(h)
    return true
  end)
  if not ok then return nil, msg, code end
  return digest(h) == content
end

-- Scales and zero-points; the words beside them are proven by who moved them.
local function gives_params(run, job, src, params)
  local out = job.out
  local q = quantized.params(out.scheme, out.n, out.k, job.scale_dtype, run.pool.take)
  local ok, why, kind = job.format.read(src, out, 1, out.n, q)
  if not ok then return nil, why, kind end
  local equal = q:equal(params)
  for _, p in ipairs { q, params } do
    run.pool.give(p.scales)
    if p.zeros then run.pool.give(p.zeros) end
  end
  return equal
end

-- One hash over the module's tensors in the layout's order, and whether those that went along are the same.
-- bytes: suffix -> the hash it must have; hashes: suffix -> the hash that was found already.
local function file_hash(job, src, bytes, hashes)
  local all, same = new_hash(), true
  for _, t in ipairs(job.layout) do
    local one = hashes[t.suffix] or digest_of(src[t.suffix])
    same = same and (not bytes[t.suffix] or bytes[t.suffix] == one)
    C.nb_hash_update(all, one, #one)
  end
  return digest(all), same
end

--- written_hash(run, job) -> hash of the module's tensors as the file has them | nil, msg, code
function M.written_hash(run, job)
  local src, msg, code = written_tensors(run, job, {})
  if not src then return nil, msg, code end
  return (file_hash(job, src, {}, {}))
end

--- prove(run, job, expect) -> hash of the written tensors | nil, msg, code
-- expect: what make() returned for the job; its tensors must be in the page cache.
function M.prove(run, job, expect)
  local src, msg, code = written_tensors(run, job, expect.elsewhere)
  if not src then return nil, msg, code end
  local ok = true
  if expect.content then ok, msg, code = decodes_to(run, job, src, expect.content)
  elseif expect.params then ok, msg, code = gives_params(run, job, src, expect.params) end
  if ok == nil then return nil, msg, code end
  local hashes = {}
  if expect.moved then
    local hash, proven, kind = expect.moved:result()
    if not hash then return nil, proven, kind end
    expect.words:drop()
    hashes[expect.moved_suffix], ok = hash, ok and proven
  end
  local hash, same = file_hash(job, src, expect.bytes, hashes)
  for _, t in pairs(src) do t:drop() end
  for _, t in ipairs(expect.reusable) do run.pool.give(t) end
  if ok and same then return hash end
  return nil, ("%s: what was written does not decode to what was meant; the output is not to be used"):format(job.name),
    "eformat"
end

return M
