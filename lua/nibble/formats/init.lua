-- formats: what the modules of a checkpoint are, and one reader and writer a format.
--
-- A format is a file beside this one and returns
--   name, title
--   detect(ck) -> bool                         by the quantization config's quant_method
--   settings(ck) -> table | nil,msg,code       the config, parsed and checked once a checkpoint
--   probe(ck, module, tensors, settings)       -> rec | nil (not this format's) | nil,msg,code; {parts={rec, …}}
--                                              where its tensors hold several modules
--                                              headers only (16 bytes of weight_shape and, where the config
--                                              says act-order, g_idx apart)
--   row_step(rec) -> rows                      tiles begin at row 1 + a multiple of it; they end on one or at n
--   layout(rec) -> {{suffix=,dtype=,shape=,rows=}, ...}   what is written, in order; rows(a,b) -> first and
--                                              last row of this tensor that the weight's rows a..b fill, or
--                                              nil when they fill columns or all of it
--   read(src, rec, a, b, q) -> true | nil,msg,code        rows a..b, 1-based and inclusive, into the tile q of
--                                              b-a+1 rows (one without codes gets all the rest); src: suffix
--                                              -> whole tensor. Checks the scales.
--   write(dst, rec, a, b, q [, base])          -> true | nil,msg,code; dst: suffix -> whole tensor, or with
--                                              base the part from weight row `base` on where layout has `rows`
--   config(records, opts) -> table | nil,msg   the quantization_config; records: all modules written
--   can(scheme, n, k) -> true | false,reason
--   scale_dtype(scheme, model_dtype) -> dtype of the scales it writes (absent: it has none)
--   input(tensors, rec) -> {scale=, zero_point=, global=} | nil,msg,code   what the input is quantized with, where
--                                              calibration fixed it (absent: compressed-tensors' names)
--   part(ck, rec, suffix) -> tensor | nil,msg,code   a module's own tensor where the file has it only within another
-- rec, a module's record: {name=, kind="linear"|"embedding"|"norm"|"other", format=, scheme=|nil, dtype=, n=,
-- k=, params=, bytes=, bits_per_weight=, bias=bool, tensors={suffix -> info}, unreadable=sentence|nil,
-- note=sentence|nil, variant=word|nil}; bits_per_weight counts every stored tensor of the module; variant: how
-- its tensors differ from what the format's writer lays out, so that copying them is not writing the format.
local ffi = require "ffi"
local tensor = require "nibble.tensor"
local nffi = require "nibble.ffi"
local C = nffi.C
local scheme = require "nibble.scheme"
local regex = require "nibble.regex"
local text = require "nibble.text"
local units = require "nibble.units"
local common = require "nibble.formats.common"

local M = {}

-- Asked in this order; plain takes what names no quantization.
local files = { "compressed_tensors", "gptq", "gptq_v2", "awq", "fp8", "modelopt", "mxfp4", "plain" }
local aliases = { ct = "compressed-tensors", compressed_tensors = "compressed-tensors", gptq_v1 = "gptq",
  ["awq-gemm"] = "awq", ["pack-quantized"] = "compressed-tensors" }

local loaded

local function registry()
  if not loaded then
    loaded = {}
    for i, file in ipairs(files) do loaded[i] = require("nibble.formats." .. file) end
  end
  return loaded
end

--- names() -> array of the formats' names.
function M.names()
  local out = {}
  for i, f in ipairs(registry()) do out[i] = f.name end
  return out
end

--- get(name) -> format | nil, msg, code: by name or alias ("ct"), with a suggestion when there is none.
function M.get(name)
  local wanted = aliases[name] or name
  for _, f in ipairs(registry()) do
    if f.name == wanted then return f end
  end
  return nil, ("unknown format %q%s"):format(tostring(name), text.did_you_mean(name, M.names())), "einval"
end

local plain_suffixes = { weight = true, bias = true }

-- The checkpoints of a quant_method that nothing here reads: listed, and refused module by module.
local function opaque(ck)
  local plain = require "nibble.formats.plain"
  local method = require("nibble.formats.overrides").method(ck)
  local f = { name = method, title = method .. " (not readable yet)" }
  function f.settings() return {} end
  function f.probe(c, module, tensors)
    local rec = plain.probe(c, module, tensors)
    for suffix in pairs(tensors) do
      if not plain_suffixes[suffix] then return common.unreadable(module, tensors, method) end
    end
    if rec.kind == "other" and tensors.weight and #tensors.weight.shape == 2 then
      return common.unreadable(module, tensors, method)
    end
    return rec
  end
  return f
end

--- of(ck) -> format: of the checkpoint as a whole; one that nothing here reads still lists its modules.
function M.of(ck)
  for _, f in ipairs(registry()) do
    if f.detect(ck) then return f end
  end
  return opaque(ck)
end

-- Suffixes that only quantized modules have: a checkpoint with them and no config can't be read.
local telling = { qweight = true, weight_packed = true, qzeros = true, weight_scale_inv = true }

local function no_config(ck, module, suffix)
  return common.fail("eformat", "%s: it holds %s.%s, but neither config.json nor a side file has a quantization config",
    ck.name or tostring(ck.path), module, suffix)
end

-- Scales of the key-value cache lie beside the projections' weights, but are none of theirs: each its own module, so
-- that they go along whatever becomes of the weight.
local cache_scales = { "k_scale", "v_scale" }
local cache_scale_texts = ffi.new("nb_text[?]", #cache_scales)
for i, suffix in ipairs(cache_scales) do cache_scale_texts[i - 1].data, cache_scale_texts[i - 1].bytes = suffix, #suffix end

-- fn(module, tensors, bytes, params) for every module in natural order; tensors: by the name's last part; bytes and
-- params: their sums. true | nil, msg, code.
local function each_module(ck, faults, fn)
  local infos, i = ck.tensors, 0
  local count = #infos
  local texts, module_bytes = ffi.new("nb_text[?]", count + 1), ffi.new("int64_t[?]", count + 1)
  local order, module = ffi.new("int64_t[?]", count + 1), ffi.new("int64_t[?]", count + 1)
  for j = 1, count do texts[j - 1].data, texts[j - 1].bytes = infos[j].name, #infos[j].name end
  nffi.must(C.nb_module_order(order, module, module_bytes, texts, count, cache_scale_texts, #cache_scales))
  while i < count do
    nffi.stop_check()
    local name, tensors, bytes, params = nil, {}, 0, 0
    local number = module[i]
    repeat
      local info, own = infos[tonumber(order[i]) + 1], tonumber(module_bytes[i])
      name = name or info.name:sub(1, own)
      local suffix = info.name:sub(own + 2)
      if telling[suffix] and not ck.quantization then
        if not faults then return no_config(ck, name, suffix) end
        faults.packed = faults.packed or info.name
      end
      tensors[suffix], bytes, params = info, bytes + info.bytes, params + info.params
      i = i + 1
    until i >= count or module[i] ~= number
    local ok, msg, code = fn(name, tensors, bytes, params)
    if not ok then return nil, msg, code end
  end
  return true
end

-- Sizes of a record whose tensors take so many bytes and hold so many numbers: spread over its weights.
local function measured(rec, bytes, stored)
  rec.bytes, rec.params = bytes, rec.scheme and rec.n * rec.k + (rec.bias and rec.n or 0) or stored
  rec.bits_per_weight = rec.params > 0 and bytes * 8 / rec.params or 0
  return rec
end

-- The same where the sums are not known yet.
local measure = nffi.interpreted(function(rec)
  local bytes, stored = 0, 0
  for _, info in pairs(rec.tensors) do bytes, stored = bytes + info.bytes, stored + info.params end
  return measured(rec, bytes, stored)
end)

local function probe_one(ck, f, plain, st, module, tensors, bytes, params)
  local rec
  if f ~= plain then
    local msg, code
    rec, msg, code = f.probe(ck, module, tensors, st)
    if msg and not rec then return nil, msg, code end
  end
  if not rec then
    rec = plain.probe(ck, module, tensors)
    rec.format = plain.name
  end
  if rec.parts then
    for _, part in ipairs(rec.parts) do
      part.format = part.format or f.name
      measure(part)
    end
    return rec
  end
  rec.format = rec.format or f.name
  if rec.tensors == tensors then return measured(rec, bytes, params) end
  return measure(rec)
end

local cache = setmetatable({}, { __mode = "k" })

-- A module that its format refuses, listed all the same.
local function refused(ck, module, tensors, msg)
  local rec = common.unreadable(module, tensors, "")
  rec.format, rec.unreadable = M.of(ck).name, msg
  return measure(rec)
end

-- faults: takes what is wrong instead of the first of it being an error.
local function build(ck, faults)
  local f = M.of(ck)
  local st, msg, code = f.settings(ck)
  if not st then
    if not faults then return nil, msg, code end
    faults.config, f, st = msg, opaque(ck), {}
  end
  local plain, list = require "nibble.formats.plain", {}
  local ok
  ok, msg, code = each_module(ck, faults, function(module, tensors, bytes, params)
    local rec, why, which = probe_one(ck, f, plain, st, module, tensors, bytes, params)
    if not rec then
      if not faults then return nil, why, which end
      rec = refused(ck, module, tensors, why)
      faults[#faults + 1] = rec
    end
    if rec.parts then
      for _, part in ipairs(rec.parts) do list[#list + 1] = part end
    else
      list[#list + 1] = rec
    end
    return true
  end)
  if not ok then return nil, msg, code end
  return { list = list, format = f, settings = st }
end

-- From this many tensors on the collector rests meanwhile: all that is made stays.
local MANY = 4096

local function opened(ck)
  local all = cache[ck]
  if all then return all end
  local found, msg, code
  if (ck.count or 0) >= MANY then found, msg, code = nffi.uncollected(build, ck) else found, msg, code = build(ck) end
  if not found then return nil, msg, code end
  cache[ck] = found
  return found
end

--- modules(ck) -> array of records in natural order ("layers.2" before "layers.10") | nil, msg, code
-- From headers alone. A config that the tensors contradict is nil, msg with both facts.
function M.modules(ck)
  local all, msg, code = opened(ck)
  if not all then return nil, msg, code end
  return all.list
end

--- survey(ck) -> array of records, faults: modules(ck) that goes on where modules are wrong
-- faults: array of the records that the format refuses, each with why in `unreadable`; config: why the config can't be
-- used; packed: the name of a quantized tensor where there is no config. For an object of the caller's own: what is
-- wrong is an error for modules(ck) no longer.
function M.survey(ck)
  local faults = {}
  if not cache[ck] then cache[ck] = assert(build(ck, faults)) end
  return cache[ck].list, faults
end

-- Candidates for "did you mean": names as long, give or take two letters.
local function lookalikes(all, name)
  local out = {}
  for _, rec in ipairs(all.list) do
    if math.abs(#rec.name - #name) <= 2 and #out < 2000 then out[#out + 1] = rec.name end
  end
  return out
end

--- record(ck, name) -> record | nil, msg, code: of one module; name with or without ".weight".
function M.record(ck, name)
  local all, msg, code = opened(ck)
  if not all then return nil, msg, code end
  if not all.by_name then -- when first asked for: a look at the whole needs none
    all.by_name = {}
    for _, r in ipairs(all.list) do all.by_name[r.name] = r end
  end
  local rec = all.by_name[name] or all.by_name[(name:gsub("%.weight$", ""))]
  if rec then return rec end
  return nil, ("%s has no module %q%s"):format(ck.name or "the checkpoint", name, text.hint(name, lookalikes(all, name))),
    "einval"
end

--- source(ck, rec) -> suffix -> mapped tensor | nil, msg, code: what read() takes.
function M.source(ck, rec)
  local src = {}
  for suffix, info in pairs(rec.tensors) do
    local t, msg, code = ck:tensor(info.name)
    if not t then return nil, msg, code end
    src[suffix] = t
  end
  return src
end
nffi.interpreted(M.source)

-- The numbers of compressed-tensors' names, where the module has them.
local input_parts = { { "scale", "input_scale" }, { "zero_point", "input_zero_point" }, { "global", "input_global_scale" } }

local function named_input(src, rec)
  local out = {}
  for _, part in ipairs(input_parts) do
    local t = src[part[2]]
    if t and t:numel() ~= 1 then
      return common.fail("eformat", "%s: %s is %s, expected one number", rec.name, part[2], text.shape(t:size()))
    end
    out[part[1]] = t and tonumber(t:get(1)) or nil
  end
  return out
end

--- input(ck, name) -> {activations=, scale=, zero_point=, global=} | false | nil, msg, code
-- How a module's input is quantized and what calibration fixed of it, as act.quantize_dequantize takes it: numbers,
-- each nil where the checkpoint has none. false: the input stays as it is.
function M.input(ck, name)
  local rec, msg, code = M.record(ck, name)
  if not rec then return nil, msg, code end
  local activations = rec.scheme and rec.scheme.activations
  if not activations then return false end
  local f, src
  f, msg, code = M.get(rec.format)
  if not f then return nil, msg, code end
  src, msg, code = M.source(ck, rec)
  if not src then return nil, msg, code end
  local numbers
  numbers, msg, code = (f.input or named_input)(src, rec)
  if not numbers then return nil, msg, code end
  numbers.activations = activations
  return numbers
end

local TILE_ELEMENTS = 4 * 1024 * 1024

--- tile_rows(format, rec [, elements]) -> rows of a tile of about so many elements (default 4 Mi), a
-- multiple of row_step.
function M.tile_rows(f, rec, elements)
  local step = f.row_step(rec)
  local rows = math.floor((elements or TILE_ELEMENTS) / math.max(1, rec.k) / step) * step
  return math.min(rec.n, math.max(step, rows))
end

-- The format and tensors of a quantized module, or why it can't be read.
local function reader(ck, rec)
  if rec.unreadable then return nil, rec.unreadable, "eunsupported" end
  if not rec.scheme then return nil, rec.name .. ": not quantized", "einval" end
  local f, msg, code = M.get(rec.format)
  if not f then return nil, msg, code end
  local src
  src, msg, code = M.source(ck, rec)
  if not src then return nil, msg, code end
  return f, src
end

--- quantized(ck, name) -> Quantized | nil, msg, code: the whole module.
function M.quantized(ck, name)
  local rec, msg, code = M.record(ck, name)
  if not rec then return nil, msg, code end
  local f, src
  f, src, code = reader(ck, rec)
  if not f then return nil, src, code end
  local q = scheme.quantized(rec.scheme, rec.n, rec.k, rec.dtype)
  local ok
  ok, msg, code = f.read(src, rec, 1, rec.n, q)
  if not ok then return nil, msg, code end
  return q
end

-- What a weight becomes where nothing is asked for: its scales' dtype, or bf16 where that holds no weights.
local function natural_dtype(rec)
  return (rec.dtype == "f32" or rec.dtype == "f16") and rec.dtype or "bf16"
end

-- Tile by tile, so that the codes of a large module are never all in memory.
local function dequantized(ck, rec, dtype)
  local f, src, code = reader(ck, rec)
  if not f then return nil, src, code end
  local out = tensor.new(dtype or natural_dtype(rec), { rec.n, rec.k })
  local rows = M.tile_rows(f, rec)
  local tile = scheme.quantized(rec.scheme, rows, rec.k, rec.dtype)
  for a = 1, rec.n, rows do
    nffi.stop_check()
    local b = math.min(rec.n, a + rows - 1)
    local q = b - a + 1 == rows and tile or tile:top(b - a + 1)
    local ok, msg
    ok, msg, code = f.read(src, rec, a, b, q)
    if not ok then return nil, msg, code end
    q:dequantize(nil, out:rows(a, b))
  end
  return out
end

local function as(t, dtype)
  if not dtype or t:type() == dtype then return t end
  return t:cast(dtype)
end

--- weight(ck, name [, dtype]) -> tensor | nil, msg, code
-- The weight of a module, or any tensor by its full name. A stored float is a mapped view (cast when
-- dtype asks for another); a quantized module is dequantized, by default to its scales' dtype.
function M.weight(ck, name, dtype)
  local rec, msg, code = M.record(ck, name)
  if not rec then
    if ck:info(name) then rec = { tensors = { weight = { name = name } } } else return nil, msg, code end
  end
  if rec.unreadable then return nil, rec.unreadable, "eunsupported" end
  if rec.scheme then return dequantized(ck, rec, dtype) end
  local info = rec.tensors.weight or rec.tensors[""]
  if not info then return nil, ("%s: it has no weight"):format(name), "einval" end
  local t
  t, msg, code = ck:tensor(info.name)
  if not t then return nil, msg, code end
  return as(t, dtype)
end

--- matcher(pattern) -> function(name) -> bool | nil, msg, code
-- A glob over module names (* any run, ? one character) or "re:" and a pattern; a word without either is
-- looked for anywhere in the name.
function M.matcher(pattern)
  local source = pattern:match "^re:(.*)$"
  if source then
    local r, msg = regex.compile(source)
    if not r then return nil, msg, "einval" end
    return function(name) return r:search(name) end
  end
  if not pattern:find "[*?]" then return function(name) return name:find(pattern, 1, true) ~= nil end end
  local lua = "^" .. pattern:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".") .. "$"
  return function(name) return name:find(lua) ~= nil end
end

--- grep(ck, pattern) -> array of records whose names match | nil, msg, code
-- pattern: a glob ("*.mlp.*"), "re:" and a regular expression, or a part of the name.
function M.grep(ck, pattern)
  local all, msg, code = opened(ck)
  if not all then return nil, msg, code end
  local matches
  matches, msg, code = M.matcher(pattern)
  if not matches then return nil, msg, code end
  local out = {}
  for _, rec in ipairs(all.list) do
    nffi.stop_check()
    if matches(rec.name) then out[#out + 1] = rec end
  end
  return out
end

-- "16 bf16" of a plain module, or its scheme.
local function what_is(rec)
  if rec.scheme then return scheme.describe(rec.scheme) end
  return rec.dtype or (rec.unreadable and "not readable yet") or rec.kind
end

local function describe(rec)
  local shape = rec.n and ("[%d×%d]"):format(rec.n, rec.k) or ""
  return ("%s  %s %s  %s  %s  %.2f bits  %s"):format(require("nibble.show").printable(rec.name), rec.kind, shape, what_is(rec), rec.format,
    rec.bits_per_weight, units.bytes(rec.bytes))
end

local lazy = {
  weight = function(ck, rec) return M.weight(ck, rec.name) end,
  quantized = function(ck, rec) return M.quantized(ck, rec.name) end,
}

--- module(ck, name) -> module | nil, msg, code
-- The record's fields, .checkpoint, and .weight (tensor; dequantized when quantized) and .quantized (Quantized), read
-- when first asked for; a weight that can't be read is an error.
function M.module(ck, name)
  local rec, msg, code = M.record(ck, name)
  if not rec then return nil, msg, code end
  return setmetatable({}, {
    __index = function(self, key)
      if key == "checkpoint" then return ck end
      if not lazy[key] then return rec[key] end
      if key == "quantized" and not rec.scheme and not rec.unreadable then return nil end
      local value, why = lazy[key](ck, rec)
      if value == nil then error(why, 2) end
      rawset(self, key, value)
      return value
    end,
    __tostring = function() return describe(rec) end,
    __fields = { rec, lazy }, -- for completion
  })
end

--- target(format, name, scheme, n, k [, opts]) -> record of a module to be written
-- opts: dtype (the model's: a plain weight's, and of scales where neither format nor scheme says), bias_dtype
-- (a bias is written). rec.dtype is the scales' dtype to write; rec.tensors have dtype, shape, bytes, params.
function M.target(f, name, s, n, k, opts)
  opts = opts or {}
  if type(f) == "string" then f = assert(M.get(f)) end
  local rec = { name = name, kind = "linear", format = f.name, n = n, k = k, bias = opts.bias_dtype ~= nil,
    bias_dtype = opts.bias_dtype, dtype = opts.dtype or "bf16", tensors = {} }
  if f.scale_dtype then
    local dtype = f.scale_dtype(s, rec.dtype)
    rec.dtype, rec.scheme = scheme.scale_storage(dtype), common.with(s, { scale_dtype = dtype })
  end
  for _, entry in ipairs(f.layout(rec)) do
    local params = 1
    for _, d in ipairs(entry.shape) do params = params * d end
    local bits = tonumber(nffi.C.nb_dtype_bits(tensor.dtype_id(entry.dtype)))
    rec.tensors[entry.suffix] = { name = name .. "." .. entry.suffix, dtype = entry.dtype, shape = entry.shape,
      params = params, bytes = params * bits / 8 }
  end
  return measure(rec)
end

return M
