-- calibrate: what a model's layers see of a text: the range of each linear layer's input, for the scales that are
-- stored because they cannot be made at run time (FP8 and int8 by tensor, NVFP4's global scale); and how large each
-- column of it is, for codes in activation order (actorder).
--
-- The float model runs over windows of the text, batch by batch. Ranges only grow, so a run that stopped goes on with
-- the batch after the last one it wrote down, and ends with the same numbers. Sums of columns are not written down: a
-- run that needs them begins again.
local act = require "nibble.act"
local dispatch = require "nibble.dispatch"
local ffi = require "ffi"
local json = require "nibble.json"
local models = require "nibble.models"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local token_ids = require "nibble.token_ids"
local C = nffi.C

local M = {}

local BATCH_TOKENS = 4096 -- of one batch of windows, at most (but one window always fits)
local DEFAULTS = { samples = 128, length = 512, seed = 0 }

-- ---- windows ---------------------------------------------------------------------------

-- `count` of the numbers 1..n, ascending; which ones follows from seed alone.
local function sample(n, count, seed)
  local order, state = {}, (seed * 2654435761 + 12345) % 2147483648
  for i = 1, n do order[i] = i end
  if count >= n then return order end
  local out = {}
  for i = 1, count do
    state = (state * 1103515245 + 12345) % 2147483648
    local j = i + math.floor(state / 65536) % (n - i + 1)
    order[i], order[j] = order[j], order[i]
    out[i] = order[i]
  end
  table.sort(out)
  return out
end

--- windows(ck, model, {text=|ids=, samples=128, length=512, seed=0}) -> i32 [samples, length] | nil, msg, code
-- text: a file, for the model's tokenizer, cut into windows of BOS and length-1 tokens, of which seed takes so many;
-- ids: as eval takes them; a matrix of ids gives its rows as windows. A shorter text gives fewer windows.
function M.windows(ck, model, o)
  local ids, tok, code = token_ids.read(o, ck)
  if not ids then return nil, tok, code end
  local ok, msg
  ok, msg, code = token_ids.check(ids, model.vocab)
  if not ok then return nil, msg, code end
  local length = o.length or (ids.ndim == 1 and math.min(DEFAULTS.length, model.max_position) or nil)
  local w
  w, msg, code = token_ids.windows(ids, length, token_ids.bos(model, nil, tok), token_ids.source(o))
  if not w then return nil, msg, code end
  local chosen = sample(w.n, o.samples or DEFAULTS.samples, o.seed or DEFAULTS.seed)
  local out = tensor.new("i32", { #chosen, w.context })
  for i, at in ipairs(chosen) do w:fill(out:rows(i, i):reshape { w.context }, at, 1) end
  return out
end

-- ---- ranges ----------------------------------------------------------------------------

-- Adds x's range to what is known of the modules that see it; changed collects those whose range grew.
local function observer(ranges, wanted, changed)
  local seen = ffi.new "float[2]"
  return function(x, names)
    local measured
    for _, name in ipairs(names) do
      if wanted[name] and x:size(1) > 0 then
        if not measured then
          seen[0], seen[1] = 0, 0
          local ok, msg, code = act.extent(x, seen)
          if not ok then return nil, msg, code end
          measured = true
        end
        local r = ranges[name]
        if not r or seen[0] < r[1] or seen[1] > r[2] then
          ranges[name] = { math.min(seen[0], r and r[1] or 0), math.max(seen[1], r and r[2] or 0) }
          changed[name] = ranges[name]
        end
      end
    end
    return true
  end
end

-- Adds the squares of x's columns to what is known of the modules that see it: one tensor for those that see the same.
local function adder(sums, wanted)
  return function(x, names)
    local t
    for _, name in ipairs(names) do t = t or sums[name] end
    local added
    for _, name in ipairs(names) do
      if wanted[name] and x:size(1) > 0 then
        t = t or dispatch.new(x, "f64", { x:size(2) })
        sums[name] = sums[name] or t
        if not added then nffi.must(dispatch.call("column_squares", t, x)) end
        added = true
      end
    end
    return true
  end
end

-- Sums that lie on a device, in the computer's memory; modules that share one still do. -> true | nil, msg, code
local function bring_home(sums)
  local home = {}
  for name, t in pairs(sums) do
    if tensor.on_device(t) then
      local at, msg, code = tostring(t.t.data), nil, nil
      if not home[at] then home[at], msg, code = t:to "cpu" end
      if not home[at] then return nil, msg, code end
      sums[name] = home[at]
    end
  end
  return true
end
nffi.interpreted(bring_home)

-- Both at once.
local function both(a, b)
  return function(x, names)
    local ok, msg, code = a(x, names)
    if not ok then return nil, msg, code end
    return b(x, names)
  end
end

local function hash_of(ids)
  local hex = ffi.new "char[33]"
  nffi.must(C.nb_tensor_hash(hex, ids))
  return ffi.string(hex)
end

--- ranges(ck, wanted, options) -> {name -> {lo, hi}} | nil, msg, code
-- wanted: module name -> true. options: sums = {}, of = {name -> true}: where the sums of the squares of these modules'
-- input columns go, f64 [k]; else those of windows(), and for a run that goes on: before = {batches =, ranges =,
-- hash =} as `after` wrote it down; after(batch, batches, changed, hash) -> true | nil, msg, code, called after each
-- batch with the ranges that grew; progress{done =, total = (batches), tokens =, seconds =}. Modules that no token reached have no range.
-- device: "cuda", …: the model runs there, in float32 whatever its weights are but for attention, which is f16: ranges
-- and sums are the CPU's within a relative 0.002 (with the same inputs they are the same).
function M.ranges(ck, wanted, o)
  local start = C.nb_now()
  local device = o.device ~= "cpu" and o.device or nil
  local model, msg, code = models.load(ck, { activations = "none", device = device, dtype = device and "f32" })
  if not model then return nil, msg, code end
  local ids
  ids, msg, code = M.windows(ck, model, o)
  if not ids then return nil, ("calibrate: %s"):format(msg), code end
  local n, length = ids:size(1), ids:size(2)
  local batch, before, hash = math.max(1, math.floor(BATCH_TOKENS / length)), o.before or {}, hash_of(ids)
  if before.hash and before.hash ~= hash then
    return nil, "calibrate: the text is not the one that the run began with; give that one, or another folder", "einval"
  end
  if o.sums then before = {} end
  local ranges, batches = before.ranges or {}, math.ceil(n / batch)
  local add = o.sums and adder(o.sums, o.of)
  for i = (before.batches or 0) + 1, batches do
    nffi.stop_check()
    local changed = {}
    model.observe = observer(ranges, wanted, changed)
    if add then model.observe = both(model.observe, add) end
    local part = ids:rows((i - 1) * batch + 1, math.min(n, i * batch))
    local x
    x, msg, code = model:hidden(part:reshape { part:numel() }, length)
    if not x then return nil, ("%s: calibrate: %s"):format(ck.path, msg), code end
    if o.after then
      local ok
      ok, msg, code = o.after(i, batches, changed, hash)
      if not ok then return nil, msg, code end
    end
    if o.progress then o.progress { done = i, total = batches, tokens = math.min(n, i * batch) * length, seconds = C.nb_now() - start } end
  end
  if o.sums then
    local ok
    ok, msg, code = bring_home(o.sums)
    if not ok then return nil, msg, code end
  end
  return ranges
end

-- ---- a run's ---------------------------------------------------------------------------

--- wanted(plan) -> {name -> activations} | nil: the modules to be quantized whose input needs stored scales.
function M.wanted(plan)
  local out
  for _, job in ipairs(plan.jobs) do
    local a = job.action == "quantize" and job.out.scheme and job.out.scheme.activations
    if a and act.needs(a) and not (plan.input_scales and plan.input_scales[job.name]) then
      out = out or {}
      out[job.name] = a
    end
  end
  return out
end

--- ordered(plan) -> {name -> true} | nil: the modules to be quantized in activation order.
function M.ordered(plan)
  local out
  for _, job in ipairs(plan.jobs) do
    if job.action == "quantize" and job.out.scheme.actorder == "group" then
      out = out or {}
      out[job.name] = true
    end
  end
  return out
end

-- The journal's lines on calibration since the model was as it is now: {batches =, hash =, ranges =}.
local function remembered(lines)
  local out = { ranges = {} }
  for _, line in ipairs(lines) do
    local batch, hash, text = line:match "^range (%d+) (%x+) (.*)$"
    if batch then
      local changed = json.decode(text) or {}
      out.batches, out.hash = tonumber(batch), hash
      for name, r in pairs(changed) do out.ranges[name] = { r[1], r[2] } end
    elseif line:match "^source " then out = { ranges = {} } end
  end
  return out
end
nffi.interpreted(remembered)

local function line_of(batch, hash, changed)
  local list = {}
  for name, r in pairs(changed) do list[name] = json.array { r[1], r[2] } end
  return ("range %d %s %s"):format(batch, hash, json.encode(list))
end
nffi.interpreted(line_of)

-- An expert that no token chose gets what its siblings in the layer saw together.
local function of_siblings(ranges, name)
  local before, after = name:match "^(.*%.experts%.)%d+(%..*)$"
  local out
  for other, r in pairs(ranges) do
    local a, b = other:match "^(.*%.experts%.)%d+(%..*)$"
    if a == before and b == after and a then
      out = { math.min(r[1], out and out[1] or 0), math.max(r[2], out and out[2] or 0) }
    end
  end
  return out
end
nffi.interpreted(of_siblings)

-- The same of columns' sums.
local function sums_of_siblings(sums, name)
  local before, after = name:match "^(.*%.experts%.)%d+(%..*)$"
  local out, seen = nil, {}
  for other, t in pairs(sums) do
    local a, b = other:match "^(.*%.experts%.)%d+(%..*)$"
    if a and a == before and b == after then seen[#seen + 1] = other end
    out = out or a == before and b == after and tensor.new("f64", t:size()) or nil
  end
  table.sort(seen)
  for _, other in ipairs(seen) do
    local from, to = sums[other]:ptr(), out:ptr()
    for i = 0, out:numel() - 1 do to[i] = to[i] + from[i] end
  end
  return out
end
nffi.interpreted(sums_of_siblings)

--- of_plan(plan, {journal=, lines=, progress=, device=}) -> {name -> {scale=, zero_point=, global=}}, {name -> f64 [k]} | nil, msg, code
-- The numbers of every module that needs them: plan.input_scales', the others by the recipe's `calibrate`; and the
-- importance of the columns of those in activation order: the sum of the squares of their inputs. journal:
-- where ranges are written down batch by batch; lines: what it held. Modules that see the same input (q, k and v; gate
-- and up) get the same numbers.
function M.of_plan(plan, o)
  local out, wanted, ordered = {}, M.wanted(plan), M.ordered(plan)
  for _, job in ipairs(plan.jobs) do out[job.name] = plan.input_scales and plan.input_scales[job.name] end
  if not wanted and not ordered then return out, {} end
  wanted = wanted or {}
  local c = plan.recipe and plan.recipe.calibrate or {}
  local settings = { text = c.text, ids = c.ids, samples = c.samples, length = c.length, seed = c.seed,
    device = o.device, progress = o.progress, before = o.lines and remembered(o.lines) or nil, sums = ordered and {}, of = ordered }
  settings.after = o.journal and function(batch, _, changed, hash) return o.journal:append(line_of(batch, hash, changed)) end
  local ranges, msg, code = M.ranges(plan.model, wanted, settings)
  if not ranges then return nil, msg, code end
  for _, job in ipairs(plan.jobs) do
    local a = wanted[job.name]
    local r = a and (ranges[job.name] or of_siblings(ranges, job.name))
    if a and not r then
      return nil, ("%s: no token of the calibration text reached it, so its input's scale is unknown; give more text"):format(
        job.name), "einval"
    end
    if a then out[job.name] = act.calibrated(a, r[1], r[2]) end
    if ordered and ordered[job.name] then
      local sums = settings.sums[job.name] or sums_of_siblings(settings.sums, job.name)
      if not sums then
        return nil, ("%s: no token of the calibration text reached it, so its columns have no order; give more text"):format(
          job.name), "einval"
      end
      settings.sums[job.name] = sums
    end
  end
  return out, settings.sums or {}
end

return M
