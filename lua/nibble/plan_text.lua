-- plan_text: what a plan costs and how it is shown: the methods of nibble.plan's plans that decide nothing.
local nffi = require "nibble.ffi"
local quant = require "nibble.quant"
local scheme_m = require "nibble.scheme"
local show = require "nibble.show"
local summary = require "nibble.summary"
local units = require "nibble.units"
local words = require "nibble.text"

local M = {}

-- ---- estimates ----------------------------------------------------------------

local sample_rows_elements = 1024 * 256

-- What nibble.convert holds however large the modules are: the writer's queue, what waits for its
-- proof, tiles and the threads' scratch.
local fixed_bytes = (64 + 32 + 32) * 2 ^ 20
-- ... and for every module and tensor: its records, its entry in the writer, in the journal and in the certificate.
local module_bytes, tensor_bytes = 4096, 1024

-- What one module takes while it is made: its output, the one before that is being proven and one to be
-- used again; the whole weight in float32 and as codes where rows can't go one tile at a time.
local function working_bytes(job)
  if job.action == "copy" then return 0 end
  local elements, whole = job.rec.n * job.rec.k, 0
  if job.action == "quantize" then
    if not quant.row_local(job.method, job.out.scheme) then whole = 9 * elements end
    if job.rec.scheme then whole = whole + 4 * elements end
  elseif job.out.scheme then
    whole = job.rec.bytes -- words moved whole are compared with the source's
  end
  return 3 * job.bytes_out + whole
end

--- plan:estimate() -> {seconds =, memory_bytes =}
-- Times one small sample of each method here and now. memory_bytes: a bound of the peak resident
-- memory of plan:run in this process, on top of what it has already taken.
function M.estimate(p)
  if p.estimated then return p.estimated end
  local rates, seconds, largest, tensors = {}, 0, 0, 0
  for _, job in ipairs(p.jobs) do
    if job.action == "quantize" then
      local key = tostring(job.method.name) .. scheme_m.describe(job.out.scheme)
      if not rates[key] then
        local rows = math.max(1, math.min(job.rec.n, math.floor(sample_rows_elements / job.rec.k)))
        local w = p.model:weight(job.name)
        if w then
          local part = w:rows(1, rows)
          if not quant.row_local(job.method, job.out.scheme) then part = w end
          local t0 = nffi.C.nb_now()
          pcall(quant.quantize, part, job.out.scheme, { method = job.method, options = job.options })
          rates[key] = part:numel() / math.max(nffi.C.nb_now() - t0, 1e-6)
          w:drop()
        end
      end
      seconds = seconds + job.rec.n * job.rec.k / (rates[key] or 1e8)
    end
    largest, tensors = math.max(largest, working_bytes(job)), tensors + #job.layout
  end
  seconds = seconds + p.totals.bytes_in / 4e9 + p.totals.bytes_out / p.out_bytes_per_s
  local held = tonumber(nffi.C.nb_peak_rss()) + #p.jobs * module_bytes + tensors * tensor_bytes
  p.estimated = { seconds = seconds, memory_bytes = held + fixed_bytes + largest }
  return p.estimated
end

-- ---- showing ------------------------------------------------------------------

--- plan:totable() -> {recipe, format, modules = {{name, action, scheme, method, reason, bytes_in, bytes_out,
-- bits_per_weight}, …}, totals, estimate, notes}: what `plan --json` prints. After plan:select also consumer, device,
-- tp, warnings, and of each module layer, consumer_action, consumer_method, backend, backend_reason, requirement, change.
function M.totable(p)
  local list = {}
  for i, job in ipairs(p.jobs) do
    list[i] = { name = job.name, action = job.action, kind = job.rec.kind, n = job.rec.n, k = job.rec.k,
                scheme = job.out.scheme and scheme_m.describe(job.out.scheme) or nil, dtype = job.rec.dtype,
                method = job.method and job.method.name or nil, rule = job.rule, reason = job.reason,
                bytes_in = job.bytes_in, bytes_out = job.bytes_out,
                bits_per_weight = job.rec.params and job.rec.params > 0 and job.bytes_out * 8 / job.rec.params or nil }
    local d = p.selection and p.selection:of(job.name)
    if d then
      list[i].layer, list[i].consumer_method, list[i].consumer_action = d.name, d.method, d.action
      list[i].backend, list[i].backend_reason = d.backend, d.reason
      list[i].requirement, list[i].change = d.requirement, d.change
    end
  end
  return { recipe = p.recipe and p.recipe.name, model = p.model.name, format = p.format.name, id = p:id(),
           modules = list, totals = p.totals, estimate = p:estimate(), notes = p.notes,
           consumer = p.selection and p.selection.consumer, device = p.selection and p.selection.device,
           tp = p.selection and p.selection.tp, warnings = p.selection and p.selection.warnings }
end

local function collapse(rows)
  -- Rows that differ only in numbers inside the name are one line with a count.
  local out, index, parents = {}, {}, {}
  local function starred(name)
    local parent, leaf = words.split_name(name)
    if leaf == "" then return (name:gsub("%d+", "*")) end
    local stars = parents[parent]
    if not stars then
      stars = parent:gsub("%d+", "*") .. "."
      parents[parent] = stars
    end
    return stars .. (leaf:find "%d" and leaf:gsub("%d+", "*") or leaf)
  end
  for _, r in ipairs(rows) do
    local stars = starred(r.name)
    local key = table.concat({ stars, r.what, r.how, r.reason, r.shape, r.kernel, r.there }, "|")
    local line = index[key]
    if line then
      line.count, line.bytes_in, line.bytes_out = line.count + 1, line.bytes_in + r.bytes_in, line.bytes_out + r.bytes_out
      line.name = stars
    else
      line = { name = r.name, what = r.what, how = r.how, reason = r.reason, shape = r.shape, kernel = r.kernel,
               there = r.there, count = 1,
               bytes_in = r.bytes_in, bytes_out = r.bytes_out, params = r.params }
      index[key] = line
      out[#out + 1] = line
    end
  end
  return out
end

-- The consumer's word on a job: its kernel or what becomes of it, and why.
local function there(p, job)
  local d = p.selection and p.selection:of(job.name)
  if not d or d.action == "skip" and not job.out.scheme then return "", "" end
  local part = d.name ~= job.name and "as " .. words.leaf(d.name) .. ": " or ""
  return d.backend or (d.action == "refuse" and "refused" or "none"), part .. d.reason
end

--- plan:lines([{all = true}]) -> array of text lines: a table of the modules (equal layers in one
-- line unless all), totals, estimate, notes.
function M.lines(p, options)
  local rows, scheme = {}, summary.schemes()
  for i, job in ipairs(p.jobs) do
    rows[i] = { name = job.name, what = job.out.scheme and scheme(job.out) or tostring(job.out.dtype or job.rec.dtype),
                how = job.action == "quantize" and job.method.name or job.action, reason = job.reason,
                shape = job.rec.n and job.rec.n .. "×" .. job.rec.k or "", count = 1, kernel = "", there = "",
                bytes_in = job.bytes_in, bytes_out = job.bytes_out }
    rows[i].kernel, rows[i].there = there(p, job)
  end
  if not (options and options.all) then rows = collapse(rows) end
  local header = { "module", "count", "shape", "scheme", "by", "why", "in", "out" }
  if p.selection then
    header[9], header[10] = "kernel", ("why at %s on %s"):format(p.selection.consumer, p.selection.device)
  end
  local cells = { header }
  for _, r in ipairs(rows) do
    cells[#cells + 1] = { r.name, tostring(r.count), r.shape, r.what, r.how, r.reason, units.bytes(r.bytes_in),
      units.bytes(r.bytes_out), p.selection and r.kernel or nil, p.selection and r.there or nil }
  end
  local out = {}
  for line in show.columns(cells, "lrllllrrll"):gmatch "[^\n]+" do out[#out + 1] = line end
  local t, e = p.totals, p:estimate()
  out[#out + 1] = ("%d modules: %d quantized, %d kept; %s → %s (%.2f bits per weight); about %.1f s, at most %s of memory"):format(
    t.modules, t.quantized, t.kept, units.bytes(t.bytes_in), units.bytes(t.bytes_out),
    t.params > 0 and t.bytes_out * 8 / t.params or 0, e.seconds, units.bytes(e.memory_bytes))
  for _, note in ipairs(p.notes) do out[#out + 1] = "note: " .. note end
  for _, warning in ipairs(p.selection and p.selection.warnings or {}) do out[#out + 1] = "warning: " .. warning end
  return out
end

return M
