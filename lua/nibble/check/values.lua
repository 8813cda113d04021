-- check.values: what the numbers of a checkpoint must not be. One pass over every tensor's bytes at the rate of
-- memory (tensor:scan), each tensor judged by its part in the module (values_judge). Modules with the same fault in the
-- same tensor are one finding.
local nffi = require "nibble.ffi"
local judge_of = require "nibble.check.values_judge"
local text = require "nibble.text"

local plural = judge_of.plural
local M = {}

-- ---- the pass ------------------------------------------------------------------------------

-- Same rule, severity and tensor in other modules: one finding.
local function collector()
  local list, by = {}, {}
  local function add(rec, info, suffix, rule, severity, says, fix, repair)
    local key = table.concat({ rule, severity, suffix, rec.format }, "|")
    local f = by[key]
    if not f then
      f = { rule = rule, severity = severity, module = rec.name, modules = {}, count = 0, tensor = info.name, tensors = {},
        file = info.file, says = ("%s: %s"):format(info.name, says), fix = fix, repair = repair,
        source = rec.format == "plain" and "safetensors" or rec.format }
      by[key], list[#list + 1] = f, f
    end
    f.count = f.count + 1
    f.modules[f.count], f.tensors[f.count] = rec.name, info.name
  end
  local function finish()
    for _, f in ipairs(list) do
      if f.repair then f.repair.tensors = f.tensors end
      if f.count > 1 then f.says = ("%s (and %s like it)"):format(f.says, plural(f.count - 1, "other")) else f.modules = nil end
      f.tensors = nil
    end
    return list
  end
  return add, finish
end

local unscanned = { f4 = true, f6_e2m3 = true, f6_e3m2 = true, i4 = true, u4 = true, c64 = true }

local function judge(ck, rec, suffix, info, add)
  if unscanned[info.dtype] then return true end
  local t, msg, code = ck:tensor(info.name)
  if not t then return nil, msg, code end
  local part = judge_of.part(rec, suffix, info)
  local scanned = judge_of.as_stored(t, rec, part)
  local words = part == "groups" or part == "zeros" or part == "shape"
  judge_of.judges[part](scanned, not words and scanned:scan() or nil, rec, function(...) add(rec, info, suffix, ...) end, suffix, ck)
  if info.bytes >= 2 ^ 20 then t:drop() end
  return true
end

-- The tensors of all modules in the order of the files, each once: experts that lie in one tensor share it.
local function tensors_of(modules)
  local list, seen, bytes = {}, {}, 0
  for _, rec in ipairs(modules) do
    for _, suffix in ipairs(text.natural_sort((function()
      local names = {}
      for s in pairs(rec.tensors) do names[#names + 1] = s end
      return names
    end)())) do
      local info = rec.tensors[suffix]
      if not seen[info.name] then
        seen[info.name] = true
        bytes = bytes + info.bytes
        list[#list + 1] = { rec = rec, suffix = suffix, info = info }
      end
    end
  end
  return list, bytes
end
nffi.interpreted(tensors_of)

--- findings(context) -> array of findings with their rules | nil, msg, code
-- context: {ck=, modules=, progress=}. Reads every tensor; made once for a context.
function M.findings(context)
  if context.value_findings then return context.value_findings end
  local add, finish = collector()
  local list, total = tensors_of(context.modules)
  local bytes, start, shown = 0, nffi.C.nb_now(), 0
  for i, item in ipairs(list) do
    nffi.stop_check()
    local ok, msg, code = judge(context.ck, item.rec, item.suffix, item.info, add)
    if not ok then return nil, msg, code end
    bytes = bytes + item.info.bytes
    if context.progress and (bytes - shown > 2 ^ 26 or i == #list) then
      shown = bytes
      context.progress { done = i, total = #list, name = item.rec.name, bytes = bytes, total_bytes = total,
        seconds = nffi.C.nb_now() - start }
    end
  end
  context.value_findings = finish()
  return context.value_findings
end

local about = {
  { "nonfinite", "weights, biases and norms hold no NaN and no infinity" },
  { "fp8-nan", "FP8 bytes are not those of NaN (0x7f, 0xff)" },
  { "e8m0-nan", "E8M0 scales are not 255, which is NaN" },
  { "scale-nonfinite", "scales are finite" },
  { "scale-zero", "a scale is 0 only where its group is all zeros" },
  { "scale-negative", "scales are above 0 (ModelOpt: never below)" },
  { "scale-subnormal", "scales keep their precision" },
  { "global-scale", "the scale of a whole tensor is finite and above 0" },
  { "input-scale", "the scale of a layer's input is finite and above 0" },
  { "dead-expert", "every expert was reached in calibration" },
  { "all-zero", "no weight is all zeros" },
  { "zero-rows", "no row of a weight is all zeros" },
  { "g-idx-range", "column groups are among those that have scales" },
  { "zero-points", "zero-points are those that the config says and fit their bits" },
  { "zero-points-wrapped", "GPTQ v1's zero-points mean the same everywhere" },
  { "weight-shape", "weight_shape is the weight's shape" },
}

-- The rules: {id=, about=, run=function(context, add)}, as check.lua takes them; nothing unless context.values.
for i, rule in ipairs(about) do
  M[i] = { id = rule[1], about = rule[2], run = function(context, add)
    if not context.values then return end
    for _, f in ipairs(assert(M.findings(context))) do
      if f.rule == rule[1] then add(f) end
    end
  end }
end

return M
