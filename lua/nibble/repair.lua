-- repair: the safe repairs of a checkpoint, into a new folder: what is wrong is found, told and mended; all else is copied
-- and proven to be the same bytes.
--
-- A kind of repair is an entry of repair/<topic>.lua: {kind =, about =, always = bool (the copy is right anyway),
-- run = function(view, options, report) … end}, which finds what it can mend, lays it over the view (nibble.repair.view)
-- and says so by report.change{module | tensor | file, was, now, why}, or why it can't by report.cannot(sentence). The view
-- is then copied out by nibble.convert's run: atomic, restartable, in bounded memory.
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local names_m = require "nibble.names"
local text = require "nibble.text"
local units = require "nibble.units"
local view_m = require "nibble.repair.view"

local M = {}

-- In this order: what one mends, the next ones can read.
local topics = { "files", "modules", "config", "lists", "scales", "padding" }

local function all_kinds()
  local out = {}
  for _, topic in ipairs(topics) do
    for _, kind in ipairs(require("nibble.repair." .. topic)) do out[#out + 1] = kind end
  end
  return out
end

--- repair.kinds() -> array of {kind, about}, in the order in which they are tried.
function M.kinds()
  local out = {}
  for i, k in ipairs(all_kinds()) do out[i] = { kind = k.kind, about = k.about } end
  return out
end

-- ---- options ---------------------------------------------------------------------------------

local known_options = { "only", "tp", "consumer", "set", "progress", "shard" }

-- "a,b" or {"a", "b"} -> set | nil: all | nil, msg
local function only_of(only)
  if only == nil then return nil end
  local list, out, known = {}, {}, {}
  for _, k in ipairs(all_kinds()) do known[#known + 1] = k.kind end
  for _, word in ipairs(type(only) == "table" and only or { only }) do
    for name in word:gmatch "[^,%s]+" do list[#list + 1] = name end
  end
  for _, name in ipairs(list) do
    local found
    for _, k in ipairs(known) do found = found or k == name end
    if not found then return nil, ("unknown kind of repair %q%s"):format(name, text.did_you_mean(name, known)) end
    out[name] = true
  end
  if #list == 0 then return nil, "only: expected the name of a kind of repair; known: " .. table.concat(known, " ") end
  return out
end

-- What --set may tell: the type of its value, of a number its least.
local settable = { bits = { "number", 2 }, group_size = { "number", -1 }, block = { "number", 1 }, sym = { "boolean" },
  checkpoint_format = { "string" }, scheme = { "string" }, tie_word_embeddings = { "boolean" } }

local function set_fault(key, value)
  local is = settable[key]
  if not is then return ("set: unknown key %q%s"):format(tostring(key), text.did_you_mean(tostring(key), json.keys(settable))) end
  local bad = type(value) ~= is[1] or is[2] and not (value >= is[2] and value % 1 == 0 and value < 2 ^ 31 and value ~= 0)
  if bad then
    return ("set: %s = %s; expected a %s%s"):format(key, tostring(value), is[2] and "whole number" or is[1],
      is[2] and (" of at least %d"):format(is[2]) or "")
  end
end

local function checked(options)
  local o, msg = text.options(options, known_options)
  if not o then return nil, msg end
  o.only, msg = only_of(o.only)
  if msg then return nil, msg end
  if o.tp ~= nil and not (type(o.tp) == "number" and o.tp >= 1 and o.tp <= 1024 and o.tp % 1 == 0) then
    return nil, ("tp = %s: expected a whole number from 1 to 1024"):format(tostring(o.tp))
  end
  if o.consumer ~= nil then
    local consumer, why = require("nibble.backends").consumer(o.consumer)
    if not consumer then return nil, why end
  end
  local fault
  o.set, fault = o.set or {}, nil
  for _, key in ipairs(json.keys(o.set)) do fault = fault or set_fault(key, o.set[key]) end
  if fault then return nil, fault end
  return o
end

-- ---- finding and mending --------------------------------------------------------------------

local plan_mt = { __index = {} }
local methods = plan_mt.__index

-- What the tensors and the config still contradict each other in.
local function tell_faults(plan)
  local _, faults = plan.view:modules()
  local first = faults.config or faults[1] and faults[1].unreadable
  if first and plan.view.quantization then
    plan.cannot[#plan.cannot + 1] = #faults > 1 and ("%s; %d more modules that can't be read"):format(first, #faults - 1) or first
  end
end

--- repair.plan(path [, {only = "index,…", tp = 4, consumer =, set = {bits = 4, …}}]) -> plan | nil, msg, code
-- What can be mended of the checkpoint in the folder, and what can't. tp: pads for so many tensor-parallel ranks of the
-- consumer; set: what the tensors alone don't tell. Fields: changes, array of {kind, module | tensor | file, was, now, why};
-- cannot, array of sentences. Nothing is written before plan:run(dir).
function M.plan(path, options)
  if type(path) ~= "string" then error("repair: expected a checkpoint's folder, found " .. type(path), 2) end
  local o, msg = checked(options)
  if not o then return nil, msg, "einval" end
  local view, code
  view, msg, code = view_m.open(path)
  if not view then return nil, msg, code end
  local plan = setmetatable({ view = view, changes = {}, cannot = {}, options = o }, plan_mt)
  for _, kind in ipairs(all_kinds()) do
    nffi.stop_check()
    local report = {
      change = function(c)
        c.kind = kind.kind
        plan.changes[#plan.changes + 1] = c
      end,
      cannot = function(says) plan.cannot[#plan.cannot + 1] = ("%s: %s"):format(kind.kind, says) end,
    }
    if kind.always or not o.only or o.only[kind.kind] then
      local ok
      ok, msg, code = kind.run(view, o, report)
      if ok == nil and msg then return nil, msg, code end
    end
  end
  if not o.only then tell_faults(plan) end
  return plan
end

-- ---- telling ----------------------------------------------------------------------------------

local function place(c) return c.module or c.tensor or c.file or "" end

local function line(name, count, c)
  return ("%s  %s%s: %s → %s%s"):format(c.kind, name, count > 1 and (" (%d)"):format(count) or "", c.was, c.now,
    c.why and "; " .. c.why or "")
end

-- Changes that differ in the layers' numbers alone as one line.
local function lines_of(changes)
  local out = {}
  for i, g in ipairs(names_m.collapse(changes, place, function(c) return table.concat({ c.kind, c.was, c.now, c.why or "" }, "\1") end)) do
    out[i] = line(g.name, g.count, g.items[1])
  end
  return out
end

--- plan:lines() -> array: one a change (of modules that differ in numbers alone one for all), then what can't be mended.
function methods.lines(p)
  local out = lines_of(p.changes)
  for _, says in ipairs(p.cannot) do out[#out + 1] = "not mended: " .. says end
  if #p.changes == 0 and #p.cannot == 0 then out[1] = p.view.name .. ": nothing to repair" end
  return out
end

--- plan:totable() -> {model, changes = array, cannot = array}
function methods.totable(p)
  local list = json.array {}
  for i, c in ipairs(p.changes) do
    list[i] = { kind = c.kind, module = c.module, tensor = c.tensor, file = c.file, was = c.was, now = c.now, why = c.why,
      __order = { "kind", "module", "tensor", "file", "was", "now", "why" } }
  end
  return { model = p.view.path, changes = list, cannot = json.array(p.cannot) }
end

function plan_mt.__tostring(p) return table.concat(p:lines(), "\n") end

-- ---- writing ------------------------------------------------------------------------------------

-- The view's tensors as jobs of nibble.convert, a module each, in the order of the files.
local function jobs_of(view)
  local jobs, by, bytes = {}, {}, 0
  for _, info in ipairs(view.tensors) do
    local module, suffix = text.split_name(info.name)
    local job = by[module]
    if not job then
      job = { name = module, action = "copy", reason = "copied", layout = {}, out = {}, bytes_in = 0, bytes_out = 0,
        rec = { name = module, format = "plain", tensors = {} } }
      by[module], jobs[#jobs + 1] = job, job
    end
    job.rec.tensors[suffix] = info
    job.layout[#job.layout + 1] = { suffix = suffix, dtype = info.dtype, shape = info.shape, name = info.name }
    job.bytes_in, job.bytes_out, bytes = job.bytes_in + info.bytes, job.bytes_out + info.bytes, bytes + info.bytes
    if info.edit then job.action = "repair" end
  end
  return jobs, bytes
end

-- Files as large as the model's own, where it has several.
local function shard_bytes(p)
  if p.options.shard then return require("nibble.recipe").parse_bytes(p.options.shard) end
  local largest = 0
  for _, part in pairs(p.view.survey.parts) do largest = math.max(largest, part.bytes) end
  return #p.view.files > 1 and largest or 5e9
end

-- 32 hex digits of all that is written but the tensors' values.
local function identity(p, jobs)
  local lines = { "nibble repair 1", nffi.version, json.encode(p:totable().changes), json.encode(p.view.texts),
    json.encode(p.view.metadata), tostring(shard_bytes(p)) }
  for _, job in ipairs(jobs) do
    for _, t in ipairs(job.layout) do lines[#lines + 1] = ("%s %s %s"):format(t.name, t.dtype, text.shape(t.shape)) end
  end
  local all, hex = table.concat(lines, "\n"), require("ffi").new "char[33]"
  local h = nffi.C.nb_hash_new()
  if h == nil then error("out of memory for a hash", 0) end
  nffi.C.nb_hash_update(h, all, #all)
  nffi.C.nb_hash_hex(h, hex)
  nffi.C.nb_hash_free(h)
  return require("ffi").string(hex)
end

local result_mt = { __index = {} }

function result_mt.__tostring(r)
  return ("%s\n%s: %d modules in %.2f s, %s; %d as they were (the same hash in both files)%s"):format(table.concat(r.plan:lines(), "\n"),
    r.dir, r.modules, r.seconds, units.bytes(r.bytes_out), r.copied,
    r.state == "complete" and ", complete already" or "")
end

--- result:totable() -> the plan's table and dir, modules, copied, bytes, seconds, state.
function result_mt.__index.totable(r)
  local out = r.plan:totable()
  out.dir, out.modules, out.copied, out.bytes, out.seconds, out.state = r.dir, r.modules, r.copied, r.bytes_out, r.seconds, r.state
  return out
end

--- plan:run(dir [, {progress = fn}]) -> result | nil, msg, code
-- Writes the mended checkpoint: repaired tensors are made, all others copied and compared by hash; goes on where a killed
-- run stopped. The certificate, nibble.json, lists the changes. A plan without changes is refused.
function methods.run(p, dir, options)
  if #p.changes == 0 then return nil, p.view.name .. ": nothing to repair, so nothing was written", "einval" end
  local jobs, bytes = jobs_of(p.view)
  local id, copied = identity(p, jobs), 0
  for _, job in ipairs(jobs) do
    if job.action == "copy" then copied = copied + 1 end
  end
  local shard, why = shard_bytes(p)
  if not shard then return nil, "shard: " .. why, "einval" end
  local run, msg, code = require("nibble.convert").execute({ model = p.view, jobs = jobs, format = { name = "repair" },
    shard_bytes = shard, texts = p.view.texts, metadata = p.view.metadata, repairs = p:totable().changes,
    totals = { modules = #jobs, bytes_in = bytes, bytes_out = bytes }, id = function() return id end }, dir, options)
  if not run then return nil, msg, code end
  return setmetatable({ plan = p, dir = run.dir, modules = #jobs, copied = copied, bytes_out = bytes, seconds = run.seconds,
    state = run.state, resumed = run.resumed }, result_mt)
end

M.methods = methods
plan_mt.__methods = methods

return setmetatable(M, { __call = function(_, ...) return M.plan(...) end })
