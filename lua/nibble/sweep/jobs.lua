-- jobs: recipes x models x texts x settings as a list of jobs, each named by the hash of all that its result hangs on.
local identity = require "nibble.sweep.identity"
local nffi = require "nibble.ffi"
local show = require "nibble.show"

local M = {}

M.context = 2048

-- ---- settings ----------------------------------------------------------------------------

local function value_of(text)
  if text == "true" then return true elseif text == "false" then return false end
  return tonumber(text) or text
end

-- "a,b\,c" -> { "a", "b,c" }
local function values_of(text)
  local out = {}
  for piece in (text:gsub("\\,", "\0") .. ","):gmatch "([^,]*)," do out[#out + 1] = value_of((piece:gsub("%z", ","))) end
  return out
end

--- grid(list) -> array of {key = value} | nil, msg: every combination of "key=v1,v2" and the like, the first key slowest.
function M.grid(list)
  local keys, values = {}, {}
  for _, text in ipairs(list or {}) do
    local key, rest = text:match "^([%w_.]+)=(.*)$"
    if not key then return nil, ("--set expects key=value or key=value,value, found %q"):format(text) end
    if not values[key] then
      keys[#keys + 1], values[key] = key, {}
    end
    for _, v in ipairs(values_of(rest)) do table.insert(values[key], v) end
  end
  local out = { {} }
  for _, key in ipairs(keys) do
    local longer = {}
    for _, set in ipairs(out) do
      for _, v in ipairs(values[key]) do
        local copy = { [key] = v }
        for _, k in ipairs(keys) do if set[k] ~= nil then copy[k] = set[k] end end
        longer[#longer + 1] = copy
      end
    end
    out = longer
  end
  return out
end

--- set_text(set) -> "group=64 symmetric=false", sorted.
function M.set_text(set)
  local out = {}
  for k, v in pairs(set or {}) do out[#out + 1] = ("%s=%s"):format(k, tostring(v)) end
  table.sort(out)
  return table.concat(out, " ")
end

nffi.interpreted(M.set_text)

--- title(job) -> "any-w4a16 group=64 · tiny-llama · test.txt"
function M.title(job)
  local what = (job.recipe or "the model itself") .. (next(job.set or {}) and " " .. M.set_text(job.set) or "")
  return show.printable(("%s · %s · %s"):format(what, job.model, job.text))
end

-- ---- the list ----------------------------------------------------------------------------

-- Things with a hash, each kept once; notes tell the doubles.
local function once(list, what, notes)
  local out, seen = {}, {}
  for _, item in ipairs(list) do
    local first = seen[item.hash]
    if not first then
      seen[item.hash], out[#out + 1] = item, item
    elseif first.path == item.path then
      notes[#notes + 1] = ("%s %s is named twice: counted once"):format(what, item.path or item.name)
    else
      notes[#notes + 1] = ("%s %s holds the same as %s: counted once"):format(what, item.path, first.path)
    end
  end
  return out
end

-- Where several have one name, each gets as much of its path as tells them apart.
local function tell_apart(list)
  local first = {}
  for _, item in ipairs(list) do
    local other = first[item.name] or item
    first[item.name], item.alike, other.alike = other, other.path ~= item.path, other.alike or other.path ~= item.path
  end
  for _, item in ipairs(list) do
    if first[item.name].alike then item.title = item.path:match "([^/]+/[^/]+)$" or item.path end
  end
  return list
end

local function all_recipes(paths, sets)
  local out = {}
  for _, path in ipairs(paths) do
    for _, set in ipairs(sets) do
      local r, msg, code = identity.recipe(path, set)
      if not r then return nil, msg, code end
      out[#out + 1] = r
    end
  end
  return out
end

local function each(paths, describe)
  local out = {}
  for i, path in ipairs(paths) do
    local item, msg, code = describe(path)
    if not item then return nil, msg, code end
    out[i] = item
  end
  return out
end

local function job_of(recipe, model, text, o)
  local job = {
    recipe = recipe and (recipe.title or recipe.name), recipe_hash = recipe and recipe.hash, set = recipe and recipe.set,
    model = model.title or model.name, model_hash = model.hash, text = text.title or text.name, text_hash = text.hash,
    context = o.context or M.context, windows = o.windows, activations = o.activations or "stored", version = nffi.version,
    model_path = model.path, text_path = text.path,
  }
  job.job = identity.hash { "nibble sweep 1", job.recipe_hash or "", job.model_hash, job.text_hash, tostring(job.context),
    tostring(job.windows or "all"), job.activations, job.version }
  return job
end

--- expand{recipes =, models =, texts =, set =, context =, windows =, activations =, cache =, progress =}
--   -> {jobs =, recipes =, notes =} | nil, msg, code
-- recipes, models, texts: paths (recipes also shipped names); set: array of "key=v1,v2". jobs: of each model and text first
-- the reference (the model itself), then one of each recipe and combination of settings. recipes: as identity.recipe keeps
-- them. notes: sentences about what was named twice. cache, progress: identity.model's.
function M.expand(o)
  local notes = {}
  local sets, msg = M.grid(o.set)
  if not sets then return nil, msg, "einval" end
  local recipes, models, texts, code
  recipes, msg, code = all_recipes(o.recipes or {}, sets)
  if not recipes then return nil, msg, code end
  models, msg, code = each(o.models, function(path) return identity.model(path, o) end)
  if not models then return nil, msg, code end
  texts, msg, code = each(o.texts, identity.text)
  if not texts then return nil, msg, code end
  recipes = tell_apart(once(recipes, "recipe", notes))
  models, texts = tell_apart(once(models, "model", notes)), tell_apart(once(texts, "text", notes))
  local jobs = {}
  for _, model in ipairs(models) do
    for _, text in ipairs(texts) do
      jobs[#jobs + 1] = job_of(nil, model, text, o)
      for _, recipe in ipairs(recipes) do jobs[#jobs + 1] = job_of(recipe, model, text, o) end
    end
  end
  return { jobs = jobs, recipes = recipes, notes = notes }
end

return M
