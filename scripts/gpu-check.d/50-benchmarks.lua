-- Benchmarks: nibble's functions and, in the same run, others' kernels (baselines.py); each twice, the second time after
-- all others have had their first.
local bars = require "bars"
local pieces = require "pieces"
local results = require "results"
local timing = require "timing"

-- The second pass of a case goes into the row of its first: the faster of the two, and how far they lie apart.
local function put(first, second)
  if second.status ~= "passed" or first.status ~= "passed" then
    if second.status == "failed" then first.status, first.why = "failed", second.why end
    return
  end
  local a, b = first.seconds_each, second.seconds_each
  first.passes, first.seconds_each, first.spread = { a, b }, math.min(a, b), math.abs(a - b) / math.min(a, b)
  if first.do_bench_seconds and second.do_bench_seconds then
    first.do_bench_seconds = math.min(first.do_bench_seconds, second.do_bench_seconds)
  end
  if first.rate then first.rate = math.max(first.rate, second.rate) end
end

-- The rows of two passes become one each, in the order of the first.
local function merge(rows)
  local by_name, kept = {}, {}
  for _, row in ipairs(rows) do
    local first = by_name[row.name]
    if first then put(first, row) else by_name[row.name], kept[#kept + 1] = row, row end
  end
  for i = #rows, 1, -1 do rows[i] = kept[i] end
end

local function copy_rate(ctx, rows)
  for _, list in ipairs { rows, (results.stage(ctx.document, "provenance") or {}).rows or {} } do
    for _, row in ipairs(list) do
      if row.name == "copy" and row.rate then return row.rate end
    end
  end
end

return {
  title = "speeds",
  seconds = 170, emulated_seconds = 30,
  python = "benchmarks", python_seconds = 35,
  cases = function(ctx)
    local list = { not ctx.once and timing.copy_case() or nil }
    for _, case in ipairs(pieces.collect("benchmarks", ctx)) do list[#list + 1] = case end
    if ctx.emulated or ctx.once then return list end
    for i = 1, #list do list[#list + 1] = list[i] end
    return list
  end,
  finish = function(ctx, rows)
    merge(rows)
    bars.judge(rows, copy_rate(ctx, rows))
  end,
}
