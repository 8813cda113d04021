-- plan: what a recipe does to a checkpoint, module by module and with the reason,
-- decided from headers alone (and statistics where a rule's `when` asks for them).
--
-- A plan is a list of jobs. Each job turns one module of the source into one
-- module of the output:
--   copy       every tensor of the module, byte for byte
--   quantize   a float weight (or, with requantize, a dequantized one) by a method
--   convert    a quantized weight into another format, codes and scales unchanged
--   dequantize a quantized weight into a float one
-- nibble.convert runs them.
local nffi = require "nibble.ffi"
local text = require "nibble.plan_text"
local recipes = require "nibble.recipe"
local scheme_m = require "nibble.scheme"
local formats = require "nibble.formats"
local quant = require "nibble.quant"
local layers = require "nibble.select.layers"
local rules = require "nibble.plan_rules"
local siblings = require "nibble.plan_fused"
local ffi = require "ffi"

local M = {}
local plan_mt = {}
plan_mt.__index = plan_mt

-- ---- scales of inputs -----------------------------------------------------------

--- lacks_input_scale(plan) -> the first job that needs the scale of its input and has none, or the order of its columns
-- (actorder = "group") | nil
-- plan.input_scales: module name -> scale (of tensor_group: the global one), or {scale=, zero_point=, global=}.
function M.lacks_input_scale(p)
  for _, job in ipairs(p.jobs) do
    local s = job.action == "quantize" and job.out.scheme
    if s and scheme_m.static_activations(s) and not (p.input_scales or {})[job.name] then return job end
    if s and s.actorder == "group" then return job end
  end
end

-- ---- jobs ---------------------------------------------------------------------

local function copy_of(rec)
  local layout = {}
  for suffix, info in pairs(rec.tensors) do
    layout[#layout + 1] = { suffix = suffix, dtype = info.dtype, shape = info.shape, name = info.name }
  end
  table.sort(layout, function(a, b) return a.suffix < b.suffix end)
  return layout
end

nffi.interpreted(copy_of)

-- The full name of an output tensor of a job.
function M.tensor_name(job, t) return t.name or (t.suffix == "" and job.name or job.name .. "." .. t.suffix) end

-- What modules of one shape become: {mt =, layout =, bytes =, scale_dtype =}; their records differ by
-- the name alone, so the rest is one table behind them all (without its tensors, which have names).
local function template(p, job, scheme)
  local rec = job.rec
  local bias = rec.bias and rec.tensors.bias.dtype or nil
  local key = table.concat({ job.format.name, rec.n, rec.k, p.dtype or rec.dtype, bias or "" }, "|")
  local of = p.laid[scheme or false]
  if not of then
    of = {}
    p.laid[scheme or false] = of
  end
  local t = of[key]
  if t then return t end
  local out = formats.target(job.format, rec.name, scheme, rec.n, rec.k, { dtype = p.dtype or rec.dtype, bias_dtype = bias })
  t = { layout = job.format.layout(out), bytes = out.bytes, mt = { __index = out } }
  out.name, out.tensors = nil, nil
  for _, entry in ipairs(t.layout) do
    if entry.scales or entry.suffix == "scales" or entry.suffix == "weight_scale" then t.scale_dtype = entry.dtype end
  end
  of[key] = t
  return t
end

-- Sets job.out (the record of the written module) and job.layout (its tensors).
local function lay_out(p, job, scheme)
  local rec = job.rec
  job.bytes_in = rec.bytes
  if job.action == "copy" then
    job.out, job.layout, job.bytes_out = rec, copy_of(rec), rec.bytes
    return true
  end
  job.format = job.action == "dequantize" and p.plain or p.format
  if job.action ~= "dequantize" then
    local ok, why = job.format.can(scheme, rec.n, rec.k)
    if not ok then
      return nil, ("%s [%d×%d] as %s in %s: %s"):format(rec.name, rec.n, rec.k, scheme_m.describe(scheme),
        p.format.name, why), job.action == "convert" and "einexact" or "einval"
    end
  end
  local t = template(p, job, scheme)
  job.out, job.layout, job.bytes_out, job.scale_dtype = setmetatable({ name = rec.name }, t.mt), t.layout, t.bytes, t.scale_dtype
  return true
end

local function model_matches(recipe, ck)
  for key, wanted in pairs(recipe.model or {}) do
    local found = ck.config and ck.config[key]
    local list = type(wanted) == "table" and wanted or { wanted }
    local ok = false
    for _, v in ipairs(list) do
      if found == v then ok = true end
      if type(found) == "table" then
        for _, f in ipairs(found) do if f == v then ok = true end end
      end
    end
    if not ok then
      local names = {}
      for i, v in ipairs(list) do names[i] = tostring(v) end
      return nil, ("recipe %s is for %s = %s; %s has %s; use another recipe, or change its model table")
        :format(recipe.name, key, table.concat(names, " or "), ck.name,
          type(found) == "table" and table.concat(found, ", ") or tostring(found))
    end
  end
  return true
end

-- An action for a module that stays as it is: byte for byte where the output's
-- format can hold it as it stands, else converted.
local function keep_action(p, rec)
  if not rec.scheme or (rec.format == p.format.name and not rec.variant) then return "copy" end
  return "convert"
end

-- The quantization_config of the output, made now: not every mixture of modules has one.
local function set_config(p)
  local records, quantized = {}, false
  for i, job in ipairs(p.jobs) do
    records[i] = job.out
    quantized = quantized or job.out.scheme ~= nil
  end
  if not quantized then return true end
  local config, msg, code = p.format.config(records, { fused = p.fused, source = p.model })
  if msg then return nil, msg, code end
  p.quantization_config = config
  return true
end

local function finish(p)
  local ok, msg = siblings.check(p.jobs, p.fused)
  if not ok then return nil, msg, "einval" end
  local code
  siblings.share_globals(p.jobs, p.fused)
  ok, msg, code = set_config(p)
  if not ok then return nil, msg, code end
  local t = { modules = #p.jobs, quantized = 0, kept = 0, bytes_in = 0, bytes_out = 0, params = 0 }
  for _, job in ipairs(p.jobs) do
    t.bytes_in, t.bytes_out = t.bytes_in + job.bytes_in, t.bytes_out + job.bytes_out
    t.params = t.params + (job.rec.params or 0)
    if job.action == "copy" then t.kept = t.kept + 1 else t.quantized = t.quantized + 1 end
  end
  p.totals = t
  return setmetatable(p, plan_mt)
end

local function start(ck, format_name, recipe)
  local format, msg, code = formats.get(format_name)
  if not format then return nil, msg, code end
  local modules
  modules, msg, code = ck:modules()
  if not modules then return nil, msg, code end
  local fused, routers = layers.structure(ck.config)
  return { model = ck, recipe = recipe, format = format, plain = formats.get "plain", jobs = {}, notes = {},
           fused = fused, routers = routers, modules = modules, out_bytes_per_s = 1e9, settled = {}, laid = {} }
end

-- What the recipe makes of one module: a job, laid out | nil, msg, code
local function job_of(p, rec)
  if rec.unreadable then return nil, rec.unreadable, "eunsupported" end
  local d, problem = rules.decide(p, rec)
  if not d then return nil, problem, "einval" end
  local job = { name = rec.name, rec = rec, reason = d.reason, rule = d.rule, kernels = d.kernels }
  if d.action == "quantize" then
    if rec.scheme and not p.recipe.requantize then
      return nil, ("%s is quantized already (%s, %s); skip it, convert the checkpoint, or set requantize = true "
        .. "to quantize its dequantized weights again"):format(rec.name, scheme_m.describe(rec.scheme), rec.format), "einval"
    end
    job.action, job.options = "quantize", d.options
    if not d.made then d.made, problem = quant.method(d.method, d.options) end
    job.method = d.made
    if not job.method then return nil, ("%s (%s): %s"):format(rec.name, d.reason, problem), "einval" end
  else
    job.action = d.action == "copy" and "copy" or keep_action(p, rec)
  end
  local ok, msg, code = lay_out(p, job, d.scheme or rec.scheme)
  if not ok then return nil, msg, code end
  return job
end

--- plan(recipe, checkpoint [, {input_scales = {}}]) -> plan | nil, msg, code
-- Decides every module. Refused, each with its sentence: a model that the recipe
-- isn't for; a linear layer that nothing names; a scheme that the output format or
-- the shape cannot hold; fused siblings (q/k/v, gate/up) that disagree; modules
-- that are quantized already; a recipe that matches nothing.
function M.new(recipe, ck, options)
  if type(recipe) ~= "table" or not recipe.name then
    local r, msg, code = recipes.load(recipe)
    if not r then return nil, msg, code end
    recipe = r
  end
  local ok, msg = model_matches(recipe, ck)
  if not ok then return nil, msg, "einval" end
  local output = recipe.output or {}
  local p, why, code = start(ck, output.format or "compressed-tensors", recipe)
  if not p then return nil, why, code end
  p.shard_bytes = output.shard and recipes.parse_bytes(output.shard) or 5e9
  p.skips = rules.matchers(recipe.skip or {})
  local patterns = {}
  for i, rule in ipairs(recipe.rules or {}) do patterns[i] = rule[1] end
  p.rules = rules.matchers(patterns)
  local quantized = 0
  for i, rec in ipairs(p.modules) do
    nffi.stop_check()
    p.jobs[i], msg, code = job_of(p, rec)
    if not p.jobs[i] then return nil, msg, code end
    if p.jobs[i].action == "quantize" then quantized = quantized + 1 end
  end
  if quantized == 0 then
    return nil, ("recipe %s quantizes none of the %d modules of %s; compare its patterns with `inspect`")
      :format(recipe.name, #p.modules, ck.name), "einval"
  end
  for _, list in ipairs { p.skips, p.rules } do
    for _, m in ipairs(list) do
      if m.hits == 0 then p.notes[#p.notes + 1] = ("pattern %q matches no module"):format(m.text) end
    end
  end
  p.options = options or {}
  p.input_scales = p.options.input_scales
  local lacking = M.lacks_input_scale(p)
  local calibrate = recipe.calibrate or {}
  if lacking and not (calibrate.text or calibrate.ids) then
    p.notes[#p.notes + 1] = ("%s %s: running needs a text to calibrate with, calibrate.text"):format(
      scheme_m.describe(lacking.out.scheme), scheme_m.static_activations(lacking.out.scheme)
      and "quantizes inputs by fixed scales" or "orders columns by their inputs")
  end
  return finish(p)
end

--- conversion(checkpoint, format [, {lossy =, dtype =, shard =}]) -> plan | nil, msg, code
-- The plan of `convert`: every quantized module into the format with codes, zero-points
-- and scales unchanged; to "plain": dequantized (float32 is exact, others are lossy).
function M.conversion(ck, format_name, options)
  options = options or {}
  local p, msg, code = start(ck, format_name, nil)
  if not p then return nil, msg, code end
  p.shard_bytes, p.lossy, p.options = options.shard and recipes.parse_bytes(options.shard) or 5e9, options.lossy, options
  if format_name == "plain" then
    p.dtype = options.dtype or "f32"
    if p.dtype ~= "f32" and not options.lossy then
      return nil, ("dequantizing to %s rounds every weight; say lossy to accept that, or take dtype f32, which is exact")
        :format(p.dtype), "einexact"
    end
  end
  local some
  for _, rec in ipairs(p.modules) do
    nffi.stop_check()
    if rec.unreadable then return nil, rec.unreadable, "eunsupported" end
    local job = { name = rec.name, rec = rec, reason = rec.scheme and "convert" or rec.kind }
    if not rec.scheme then job.action = "copy"
    elseif format_name == "plain" then job.action, some = "dequantize", true
    elseif rec.format == p.format.name then job.action, job.reason, some = "copy", "already " .. rec.format, true
    else job.action, some = "convert", true end
    local ok, problem, why = lay_out(p, job, rec.scheme)
    if not ok then return nil, problem, why end
    p.jobs[#p.jobs + 1] = job
  end
  if not some then
    return nil, ("%s holds no quantized module; `run` with a recipe quantizes it"):format(ck.name), "einval"
  end
  return finish(p)
end

-- ---- identity -----------------------------------------------------------------

--- plan:id() -> 32 hex digits that name this plan: recipe, source (files, names,
-- dtypes and shapes, not contents) and output layout. The same command on the same input gives the same id.
function plan_mt:id()
  if self.cached_id then return self.cached_id end
  local h = nffi.C.nb_hash_new()
  if h == nil then error("out of memory for a hash", 0) end
  h = ffi.gc(h, nffi.C.nb_hash_free)
  local lines, count = {}, 0
  local function flush()
    local s = table.concat(lines, "\n", 1, count) .. "\n"
    nffi.C.nb_hash_update(h, s, #s)
    count = 0
  end
  local function add(s)
    count = count + 1
    lines[count] = tostring(s)
    if count == 4096 then flush() end
  end
  local shapes = {} -- modules share the tables
  local function add_shape(shape)
    local said = shapes[shape]
    if not said then
      said = table.concat(shape, "x")
      shapes[shape] = said
    end
    add(said)
  end
  add("nibble plan 1") add(nffi.version) add(self.format.name) add(self.shard_bytes) add(tostring(self.dtype))
  if self.recipe then add(recipes.canonical(self.recipe)) add(self.recipe.text or "") end
  if self.input_scales then add(recipes.canonical(self.input_scales)) end
  for _, t in ipairs(self.model.tensors) do add(t.name) add(t.dtype) add_shape(t.shape) add(t.file or "") end
  for _, job in ipairs(self.jobs) do
    nffi.stop_check()
    add(job.action) add(job.name)
    for _, t in ipairs(job.layout) do add(M.tensor_name(job, t)) add(t.dtype) add_shape(t.shape) end
  end
  flush()
  local out = ffi.new "char[33]"
  nffi.C.nb_hash_hex(h, out)
  self.cached_id = ffi.string(out)
  return self.cached_id
end

-- ---- the plan's methods -----------------------------------------------------------

plan_mt.estimate, plan_mt.totable, plan_mt.lines = text.estimate, text.totable, text.lines

--- plan:select(target) -> selection | nil, msg, code: which method and kernel each written layer gets at a consumer
-- (nibble.select.new's target); the plan's text and table then tell it. The recipe's kernels count.
function plan_mt:select(target)
  local t, kernels = {}, {}
  for k, v in pairs(target or {}) do t[k] = v end
  for _, job in ipairs(self.jobs) do kernels[job.name] = job.kernels end
  if self.recipe then
    local of_all = self.recipe.kernels
    t.skip_mode = t.skip_mode or of_all and of_all.skip_mode
    t.kernels_of = t.kernels_of or function(name) return kernels[name], "the recipe" end
  end
  local s, msg, code = require("nibble.select").new(self, t)
  if not s then return nil, msg, code end
  self.selection = s
  return s
end

function plan_mt.__tostring(p) return table.concat(p:lines(), "\n") end

--- plan:run(dir [, {progress = fn, measure = true}]) -> result | nil, msg, code
-- Executes the plan into dir (nibble.convert.execute).
function plan_mt:run(dir, options) return require("nibble.convert").execute(self, dir, options) end

return M
