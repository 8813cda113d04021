-- report.axis: from figures to places on a line: linear or logarithmic, with round ticks.
local M = {}

-- More than this from the smallest to the largest figure, and the axis is logarithmic.
local LOG_FROM = 6

-- The smallest of 1, 2, 2.5, 5 times a power of ten that is at least v.
local function round_step(v)
  local power = 10 ^ math.floor(math.log10(v))
  for _, m in ipairs { 1, 2, 2.5, 5 } do
    if m * power >= v * (1 - 1e-9) then return m * power end
  end
  return 10 * power
end

local function linear(lo, hi, count)
  if hi <= lo then
    local around = math.max(math.abs(lo) * 0.05, 1e-6)
    lo, hi = lo - around, hi + around
  end
  local step = round_step((hi - lo) / count)
  local first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
  local ticks = {}
  for i = first, last do ticks[#ticks + 1] = i * step end
  lo, hi = first * step, last * step
  return { ticks = ticks, place = function(v) return (v - lo) / (hi - lo) end }
end

local function logarithmic(lo, hi)
  local from, to = math.log10(lo), math.log10(hi)
  local margin = 0.04 * (to - from)
  from, to = from - margin, to + margin
  local decades, fine = {}, {}
  for power = math.floor(from), math.ceil(to) do
    for _, m in ipairs { 1, 2, 5 } do
      local at = math.log10(m) + power
      if at >= from and at <= to then
        fine[#fine + 1] = m * 10 ^ power
        if m == 1 then decades[#decades + 1] = 10 ^ power end
      end
    end
  end
  local ticks = #fine > 8 and #decades >= 2 and decades or fine
  while #ticks > 8 do -- thirty powers of ten: every other one, until there is room
    local half = {}
    for i = 1, #ticks, 2 do half[#half + 1] = ticks[i] end
    ticks = half
  end
  return { log = true, ticks = ticks, place = function(v) return (math.log10(v) - from) / (to - from) end }
end

--- new(values, o) -> {ticks=, place=function(v) -> 0..1, log=true|nil}
-- values: finite numbers, at least one. o: count (about how many steps), unit (ticks are round numbers of it), log=false (never).
function M.new(values, o)
  local lo, hi, unit = math.huge, -math.huge, o and o.unit or 1
  for _, v in ipairs(values) do lo, hi = math.min(lo, v / unit), math.max(hi, v / unit) end
  local log = lo > 0 and hi / lo > LOG_FROM and not (o and o.log == false)
  local axis = log and logarithmic(lo, hi) or linear(lo, hi, o and o.count or 5)
  local place = axis.place
  for i, v in ipairs(axis.ticks) do axis.ticks[i] = v * unit end
  axis.place = function(v) return place(v / unit) end
  return axis
end

return M
