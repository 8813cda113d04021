-- repair.scales: scales that consumers share or can't use: NVFP4's global scale of what is loaded as one matrix, and the
-- scales of experts that calibration never reached (FORMATS 4, 6).
local json = require "nibble.json"
local layers = require "nibble.select.layers"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local text = require "nibble.text"

-- ---- one global scale (CTM-NVFP4, FORMATS 4) -----------------------------------------------------

-- Where a format keeps it, and whether a larger number means a smaller range.
local function global_of(rec)
  if rec.tensors.weight_global_scale then return "weight_global_scale", true end
  if rec.tensors.weight_scale_2 then return "weight_scale_2", false end
end

local function number(view, info)
  local t, msg, code = view:read(info)
  if not t then return nil, msg, code end
  return t:get(1)
end

local function finite(x) return x == x and x > 0 and x < math.huge end

-- e4m3 scales times ratio -> the new ones, the largest relative change of one, how many became 0
local function rescaled(scales, ratio)
  local was = scales:cast "f32"
  local now = was:clone()
  local p, count = now:ptr(), now:numel()
  for i = 0, count - 1 do p[i] = p[i] * ratio end
  local stored = now:cast("f8_e4m3", { saturate = true })
  local back = stored:cast "f32"
  local a, b, worst, lost = was:ptr(), back:ptr(), 0, 0
  for i = 0, count - 1 do
    local wanted = a[i] * ratio
    if wanted ~= 0 then
      if b[i] == 0 then lost = lost + 1 end
      worst = math.max(worst, math.abs(b[i] - wanted) / math.abs(wanted))
    end
  end
  was:free() now:free() back:free()
  return stored, worst, lost
end

local function ratio_of(own, target, divisor)
  return divisor and target / own or own / target -- of numbers, at most 1
end

-- One member of a group onto the group's global scale.
local function share(view, rec, suffix, divisor, own, target, leader, report)
  local ratio, old = ratio_of(own, target, divisor), rec.tensors
  local scales, msg, code = view:read(old.weight_scale)
  if not scales then return nil, msg, code end
  local stored, worst, lost = rescaled(scales, ratio)
  stored:free()
  local global = old[suffix]
  view:rewrite(rec.name, { weight_scale = { "f8_e4m3", old.weight_scale.shape }, [suffix] = { "f32", global.shape } }, function()
    local source, why, kind = view:read(old.weight_scale)
    if not source then return nil, why, kind end
    return { weight_scale = (rescaled(source, ratio)), [suffix] = tensor.new("f32", global.shape, { target }) }
  end)
  local how = worst == 0 and "block scales times a power of two, exact" or ("block scales are rounded, by at most %.2g %%%s"):format(
    worst * 100, lost > 0 and (", and %d become 0"):format(lost) or "")
  report.change { module = rec.name, was = ("%s %.9g"):format(suffix, own), now = ("%.9g"):format(target),
    why = ("shared with %s; %s"):format(leader, how) }
  return true
end

local function members_of(by_name, parent, group)
  local out = {}
  for _, leaf in ipairs(group) do
    local rec = by_name[parent .. "." .. leaf]
    if rec and rec.scheme and rec.scheme.strategy == "tensor_group" and global_of(rec) and rec.tensors.weight_scale then
      out[#out + 1] = rec
    end
  end
  return out
end

local function unite(view, members, as, report)
  local suffix, divisor = global_of(members[1])
  local numbers, best = {}, nil
  for i, rec in ipairs(members) do
    local x, msg, code = number(view, rec.tensors[suffix])
    if not x then return nil, msg, code end
    if not finite(x) then
      return report.cannot(("%s: %s is %s, so %s can't share one: quantize it again"):format(rec.name, suffix, tostring(x), as))
    end
    numbers[i] = x
    if not best or (divisor and x < numbers[best]) or (not divisor and x > numbers[best]) then best = i end
  end
  for i, rec in ipairs(members) do
    if numbers[i] ~= numbers[best] then
      local ok, msg, code = share(view, rec, suffix, divisor, numbers[i], numbers[best], text.leaf(members[best].name), report)
      if not ok then return nil, msg, code end
    end
  end
  return true
end

local function global_scale(view, _, report)
  local modules, by_name, seen = view:modules(), {}, {}
  for _, rec in ipairs(modules) do by_name[rec.name] = rec end
  local groups = { (layers.structure(view.config)), (layers.structure(nil)) }
  for _, rec in ipairs(modules) do
    nffi.stop_check()
    local parent, leaf = text.split_name(rec.name)
    for _, list in ipairs(groups) do
      for _, group in ipairs(list) do
        local key = parent .. "." .. group.as
        if group[1] == leaf and not seen[key] then
          seen[key] = true
          local members = members_of(by_name, parent, group)
          if #members > 1 then
            local ok, msg, code = unite(view, members, key, report)
            if ok == nil and msg then return nil, msg, code end
          end
        end
      end
    end
  end
end

-- ---- experts that no token reached -------------------------------------------------------------------

-- Suffix -> "scales" (a tensor, taken from the nearest expert) or which of the other experts' numbers serves.
local kinds = { weight_scale = "scales", weight_scale_inv = "scales", scales = "scales", weight_global_scale = "least",
  weight_scale_2 = "most", input_scale = "most", input_global_scale = "least" }

local function expert_of(name) return name:match "^(.*%f[^.%z]experts)%.(%d+)%.([^.]+)$" end

-- Whether none of its numbers can be used: all are 0, NaN or infinite.
local function dead(view, info, rec)
  local t, msg, code = view:read(info)
  if not t then return nil, msg, code end
  local e8m0 = info.dtype == "u8" and (rec.scheme or {}).scale_dtype == "e8m0"
  local s = (e8m0 and t:as("f8_e8m0", t:size()) or t):scan()
  if t:numel() > 1 then t:drop() end
  return s.zeros + s.nan + s.inf == s.numel, s
end

-- What the other experts' tensors give: the nearest's scales, or the least or most of their numbers | nil: none is sound
local function replacement(view, siblings, suffix, index)
  local how, best, best_key = kinds[suffix], nil, nil
  for _, other in ipairs(siblings) do
    local info = other.rec.tensors[suffix]
    if info and not other.dead[suffix] then
      local key
      if how == "scales" then key = math.abs(other.index - index) + (other.index > index and 0.5 or 0)
      else key = (how == "least" and 1 or -1) * view:read(info):get(1) end
      if not best or key < best_key then best, best_key = other, key end
    end
  end
  return best
end

local function said(s)
  return s.zeros == s.numel and "0" or s.nan == s.numel and "NaN" or s.inf == s.numel and "infinite" or "0, NaN or infinite"
end

local function revive(view, expert, siblings, report)
  local parts, sources, told = {}, {}, {}
  for _, suffix in ipairs(json.keys(expert.dead)) do
    local from = replacement(view, siblings, suffix, expert.index)
    if not from then
      report.cannot(("%s: %s is %s, and no other expert of its layer has a sound one"):format(expert.rec.name, suffix,
        said(expert.dead[suffix])))
    else
      local info = expert.rec.tensors[suffix]
      parts[suffix], sources[suffix] = { info.dtype, info.shape }, from.rec.tensors[suffix]
      told[#told + 1] = { suffix = suffix, from = from.index, was = said(expert.dead[suffix]) }
    end
  end
  if not next(parts) then return end
  view:rewrite(expert.rec.name, parts, function()
    local out = {}
    for suffix, info in pairs(sources) do
      local t, msg, code = view:read(info)
      if not t then return nil, msg, code end
      out[suffix] = t:reshape(parts[suffix][2]):clone()
    end
    return out
  end)
  for _, x in ipairs(told) do
    report.change { module = expert.rec.name, was = ("%s %s"):format(x.suffix, x.was), now = ("expert %d's"):format(x.from),
      why = "no token reached it in calibration; its codes are as they were" }
  end
end

local function dead_experts(view, _, report)
  local blocks, order = {}, {}
  for _, rec in ipairs((view:modules())) do
    nffi.stop_check()
    local block, index, leaf = expert_of(rec.name)
    if block and rec.scheme then
      local key = block .. "\0" .. leaf
      if not blocks[key] then blocks[key], order[#order + 1] = {}, key end
      local e = { rec = rec, index = tonumber(index), dead = {} }
      for suffix, info in pairs(rec.tensors) do
        if kinds[suffix] then
          local yes, s, code = dead(view, info, rec)
          if yes == nil then return nil, s, code end
          if yes then e.dead[suffix] = s end
        end
      end
      table.insert(blocks[key], e)
    end
  end
  for _, key in ipairs(order) do
    for _, e in ipairs(blocks[key]) do
      if next(e.dead) then revive(view, e, blocks[key], report) end
    end
  end
end
nffi.interpreted(dead_experts)

return {
  { kind = "dead-expert-scale", about = "scales of 0, NaN or infinity of experts that calibration never reached", run = dead_experts },
  { kind = "global-scale", about = "NVFP4's global scale of q/k/v, gate/up and w1/w3, which consumers take as one", run = global_scale },
}
