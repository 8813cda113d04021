-- check.oracle: what a consumer's tables say of each layer, with the refusals sorted by their cause, so that one bad thing
-- is told once and by the topic that it belongs to.
local match = require "nibble.match"
local scheme_m = require "nibble.scheme"
local select_m = require "nibble.select"

local M = {}

-- Name endings of routers in models whose architecture nibble doesn't know.
local routers = { "%.gate$", "%.router$", "_gate$", "%.router%.%w+$", "%.gate%.wg$" }

--- oracle.is_router(name) -> whether it looks like one: consumers build routers unquantized.
function M.is_router(name)
  for _, pattern in ipairs(routers) do
    if name:find(pattern) then return true end
  end
  return false
end

local towers = { "vision", "visual", "audio", "image", "multi_modal", "mm_projector", "speech" }

--- oracle.is_tower(name) -> whether it is of a vision or audio tower.
function M.is_tower(name)
  for _, word in ipairs(towers) do
    if name:find(word, 1, true) then return true end
  end
  return false
end

--- oracle.selection(context) -> nibble.select's selection on one rank | false: the consumer has none, or nothing is quantized
function M.selection(context)
  if context.selection == nil then
    context.selection = false
    local unusable = context.faults.config or context.faults.packed or not context.quantization
    if context.facts.oracle and not unusable then
      local ck = context.ck
      local s, msg = select_m.new({ name = ck.name, config = context.config, modules = context.modules, headers = ck.tensors,
        stored = true, quantization = context.quantization }, { consumer = context.facts.oracle, device = context.device })
      context.selection, context.selection_fault = s or false, msg
    end
  end
  return context.selection
end

-- ---- causes ------------------------------------------------------------------------------

local function stored(layer)
  local packed, plain, unlike = nil, nil, nil
  for _, rec in ipairs(layer.members) do
    if rec.scheme then
      if packed and rec.scheme ~= packed.scheme and not unlike and not scheme_m.same(rec.scheme, packed.scheme) then unlike = rec end
      packed = packed or rec
    elseif rec.unreadable then packed = packed or rec
    else plain = plain or rec end
  end
  return packed, plain, unlike
end

-- What the config alone says of the layer: "skip", "quantize", or nil and why it contradicts itself.
local function said(s, layer)
  if not s.config then return nil end
  local d, msg = s.config:method(layer, s:options())
  if not d then return nil, msg end
  return d.action == "skip" and "skip" or "quantize"
end

local function cause_of(s, layer, d)
  local packed, plain, unlike = stored(layer)
  if layer.kind == "router" then return "router" end
  if layer.kind == "lm_head" and packed then return "head" end
  if packed and plain then return "half", packed, plain end
  if unlike then return "schemes", packed, unlike end
  if d.reason:find("act%-order") or d.reason:find("desc_act", 1, true) then return "actorder" end
  local word, why = said(s, layer)
  if why then return "words" end
  if plain then return "float", nil, plain end
  if word == "skip" then return "listed", packed end
  return "kernel"
end

-- Whether a finding is about the layer or one of its members already.
local function explained(context, layer)
  if context.explained[layer.name] then return true end
  for _, rec in ipairs(layer.members) do
    if context.explained[rec.name] then return true end
  end
  return false
end
M.explained = explained

-- "model.layers.0.mlp: …" -> "…"
local function bare(reason, name)
  if reason:sub(1, #name + 2) == name .. ": " then return reason:sub(#name + 3) end
  return reason
end

--- oracle.refusals(context) -> array of {cause, layer, decision, says, a, b}: layers that the consumer refuses on one rank
-- and no finding was about when this was first asked. cause: router, head, half (a is quantized, b is not), schemes (a and b
-- differ), actorder, words (entries of the config disagree), float (b is, and the config quantizes it), listed (a is quantized,
-- and the config says not), kernel.
function M.refusals(context)
  if rawget(context, "refused") then return context.refused end
  local out, s = {}, M.selection(context)
  for _, d in ipairs(s and not s.refused and s:all() or {}) do
    if d.action == "refuse" and not explained(context, d.layer) then
      local cause, a, b = cause_of(s, d.layer, d)
      out[#out + 1] = { cause = cause, layer = d.layer, decision = d, says = bare(d.reason, d.layer.name), a = a, b = b }
    end
  end
  context.refused = out
  return out
end

--- oracle.tell(context, add, cause, make): make(refusal) -> a finding, or nil where another tells it already, for each
-- refusal of this cause; it is marked as told.
function M.tell(context, add, cause, make)
  for _, r in ipairs(M.refusals(context)) do
    if r.cause == cause then
      context.explained[r.layer.name] = true
      local f = make(r)
      if f then
        f.module = f.module or r.layer.name
        f.says = f.says or r.cause == "kernel" and M.why(r.decision) or r.says
        f.source = f.source or M.source(context, r.decision)
        add(f)
      end
    end
  end
end

--- oracle.source(context, decision) -> "vllm-0.33 MRL-05": whose rule it is.
function M.source(context, d)
  return d.requirement and context.consumer .. " " .. d.requirement or context.consumer
end

local SHOWN = 4 -- kernels' reasons in one sentence

--- oracle.why(decision [, kernel]) -> sentence, requirement | nil: why that kernel doesn't take the layer, else why those
-- don't that the device has.
function M.why(d, kernel)
  local out, requirement = {}, nil
  for _, r in ipairs(d.rejected or {}) do
    if r.backend == kernel then return ("%s: %s"):format(r.backend, r.reason), r.requirement end
    if #out < SHOWN and not r.reason:find("package", 1, true) and not r.reason:find("installed", 1, true) then
      out[#out + 1], requirement = ("%s: %s"):format(r.backend, r.reason), requirement or r.requirement
    end
  end
  local says = bare(d.reason, d.name or "")
  if #out == 0 or says:find(out[1], 1, true) then return says, d.requirement end
  return ("%s (%s)"):format(says, table.concat(out, "; ")), d.requirement
end

--- oracle.groups(context) -> array of {name, members = {records}}: fused siblings that are all there, experts' gate and up too.
function M.groups(context)
  local out, fused = {}, {}
  for as, parts in pairs(match.fused_map(context.fused)) do fused[#fused + 1] = { as = as, parts = parts } end
  table.sort(fused, function(x, y) return x.as < y.as end)
  for _, rec in ipairs(context.modules) do
    for _, group in ipairs(fused) do
      local first = "." .. group.parts[1]
      if rec.name:sub(-#first) == first then
        local parent, members = rec.name:sub(1, -#first), { rec }
        for i = 2, #group.parts do members[i] = context.by_name[parent .. group.parts[i]] end
        if #members == #group.parts then out[#out + 1] = { name = parent .. group.as, members = members } end
      end
    end
  end
  return out
end
require("nibble.ffi").interpreted(M.groups)

return M
