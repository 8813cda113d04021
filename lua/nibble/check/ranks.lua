-- check.ranks: which layers a consumer refuses, or runs by a slower method, at which tensor-parallel size (the oracle's
-- tables, with their requirement numbers).
local oracle = require "nibble.check.oracle"
local text = require "nibble.text"

local function kernels(context, add)
  oracle.tell(context, add, "kernel", function(r)
    if r.says:find("has no table for", 1, true) then -- a gap in what nibble knows, no refusal
      return { rule = "kernel-unknown", severity = "note", says = r.says, fix = "ask the consumer's own documents" }
    end
    local change = r.decision.change
    return { fix = change or "take another scheme, group size or device; nibble explain shows what each kernel asks for",
      repair = change and change:find "^pad" and { kind = "padding", tp = 1 } or nil }
  end)
end

local function list(tps) return table.concat(tps, ", ") end

-- The sizes at which heads don't divide: one finding, and the layers' own are not asked about.
local function heads(context, add)
  local c = context.config
  local n = c and c.num_attention_heads
  local bad = {}
  context.no_tp = {}
  if type(n) ~= "number" or not context.facts.oracle then return end
  for _, tp in ipairs(context.tp) do
    if n % tp ~= 0 then
      bad[#bad + 1], context.no_tp[tp] = tp, true
    end
  end
  if #bad > 0 then
    add { severity = context.asked_tp and "error" or "note", file = "config.json", says = ("%d attention heads don't divide among %s "
      .. "tensor-parallel ranks"):format(n, list(bad)), fix = "take a tensor-parallel size that divides the heads" }
  end
end

local function worst(a, b) return (a == "refuse" or b == "refuse") and "refuse" or a or b end

-- What happens to a layer at each size where it isn't fine: {layer, action, tps, decision of the first, kernel = the one
-- that takes it at a size that is}
local function outcomes(context, s)
  local out, order, kernel = {}, {}, {}
  for _, tp in ipairs(context.tp) do
    if not context.no_tp[tp] then
      for _, d in ipairs(s:at(tp):all()) do
        local bad = d.action == "refuse" or d.action == "fallback"
        local o = out[d.layer]
        if bad and not o then
          o = { layer = d.layer, tps = {}, decision = d, kernel = kernel[d.layer] }
          out[d.layer], order[#order + 1] = o, o
        elseif not bad then kernel[d.layer] = kernel[d.layer] or d.backend
        end
        if bad then
          o.action = worst(o.action, d.action)
          o.tps[#o.tps + 1] = tp
          if d.action == "refuse" and o.decision.action ~= "refuse" then o.decision = d end
        end
      end
    end
  end
  return order
end

-- The largest size below the first bad one.
local function smaller(context, tps)
  local best
  for _, tp in ipairs(context.tp) do
    if tp < tps[1] and not context.no_tp[tp] then best = math.max(best or 0, tp) end
  end
  return best
end

local padded = { down_proj = true, w2 = true, experts = true }

-- The intermediate size that all bad sizes divide into whole groups | nil: not the intermediate size's matter
local function padding(o)
  local rec = o.layer.members[1]
  local group = rec and rec.scheme and rec.scheme.group
  local size = o.layer.intermediate_full or o.layer.k_full
  if not padded[text.leaf(o.layer.name)] or not group or group < 1 or not size then return nil end
  local step = group * o.tps[#o.tps]
  local to = math.ceil(size / step) * step
  if to ~= size then return to, o.tps[#o.tps] end
end

local function fixes(context, o)
  local out, best, change = {}, smaller(context, o.tps), o.decision.change
  if best then out[1] = ("tensor-parallel size %d"):format(best) end
  local to = padding(o)
  if to then out[#out + 1] = ("pad the intermediate size to %d"):format(to) end
  if change and not change:find "^tp " then out[#out + 1] = change end
  if #out == 0 then out[1] = "another group size, or sizes padded to its multiples" end
  return table.concat(out, ", or ")
end

local function ranks(context, add)
  local s = oracle.selection(context)
  if not s or s.refused then return end
  for _, o in ipairs(outcomes(context, s)) do
    if not oracle.explained(context, o.layer) then
      local d, refused = o.decision, o.action == "refuse"
      local says, requirement = oracle.why(d, o.kernel)
      local to, tp = padding(o)
      add { rule = refused and "ranks-refused" or "ranks-fallback", module = o.layer.name,
        severity = refused and (context.asked_tp or o.tps[1] == 1) and "error" or "warning",
        says = ("at tp %s %s: %s"):format(list(o.tps), refused and "nothing takes it" or tostring(d.method) .. " runs it", says),
        fix = fixes(context, o), source = oracle.source(context, { requirement = requirement or d.requirement }),
        repair = to and { kind = "padding", tp = tp, intermediate = to } or nil }
    end
  end
end

return {
  { id = "kernel-refused", about = "layers that no kernel of the consumer takes on this device", consumer = true, run = kernels },
  { id = "ranks-heads", about = "attention heads that don't divide among the ranks", consumer = true, run = heads },
  { id = "ranks", about = "ranks-refused, ranks-fallback: layers that are refused or fall back at a tensor-parallel size", consumer = true,
    run = ranks },
}
