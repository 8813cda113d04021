-- ncu on three kernels of the benchmarks: bytes of memory and their share of the peak, instructions, conflicts, occupancy, stalls.
local process = require "nibble.process"
local tools = require "tools"

-- Names of benchmarks (patterns), one call each.
local CASES = { "^product 8192x28672 .*m=1$", "^product 8192x28672 .*m=64$", "^repack gptq 4 bits, 8192x28672$" }

local METRICS = {
  seconds = "gpu__time_duration.sum", dram_read = "dram__bytes_read.sum", dram_written = "dram__bytes_write.sum",
  dram_percent = "dram__throughput.avg.pct_of_peak_sustained_elapsed", issue_percent = "sm__issue_active.avg.pct_of_peak_sustained_elapsed",
  instructions = "smsp__inst_executed.sum", bank_conflicts = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
  tensor_percent = "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
  occupancy_percent = "sm__warps_active.avg.pct_of_peak_sustained_active", registers = "launch__registers_per_thread",
}
local STALLS = "smsp__average_warps_issue_stalled_%s_per_issue_active.ratio"
for _, stall in ipairs { "long_scoreboard", "short_scoreboard", "barrier", "math_pipe_throttle", "mio_throttle", "wait", "not_selected" } do
  METRICS["stall_" .. stall] = STALLS:format(stall)
end

-- The cells of a line of CSV.
local function cells(line)
  local out = {}
  for cell in line:gmatch '"([^"]*)"' do out[#out + 1] = cell end
  return out
end

-- Each kernel of ncu's table: {kernel =, [metric] = number}, units as ncu gives them beside it.
local function kernels(text)
  local head, list, by_id, short = nil, {}, {}, {}
  for name, metric in pairs(METRICS) do short[metric] = name end
  for line in text:gmatch "[^\n]+" do
    local row = line:match '^"' and cells(line)
    if row and not head then
      head = {}
      for i, name in ipairs(row) do head[name] = i end
    elseif row and head["Metric Name"] then
      local id = row[head.ID]
      if not by_id[id] then
        by_id[id] = { kernel = row[head["Kernel Name"]], units = {} }
        list[#list + 1] = by_id[id]
      end
      local name = short[row[head["Metric Name"]]]
      if name then
        by_id[id][name] = tonumber((row[head["Metric Value"]]:gsub(",", "")))
        by_id[id].units[name] = row[head["Metric Unit"]]
      end
    end
  end
  return list
end

local function profile(ctx, ncu, pattern, seconds)
  local wanted = {}
  for _, metric in pairs(METRICS) do wanted[#wanted + 1] = metric end
  table.sort(wanted)
  local child = tools.child(ctx, "benchmarks", "--once", "--only", pattern)
  local r, msg = process.run { "timeout", "-s", "KILL", tostring(seconds), ncu, "--csv", "--clock-control", "none",
    "--kernel-name", "regex:^nb_", "--launch-count", "3", "--metrics", table.concat(wanted, ","), unpack(child) }
  if not r then return { status = "skipped", why = msg } end
  local list = kernels(r.out)
  if #list == 0 then
    return { status = "skipped", why = "ncu measured no kernel: " .. ((r.out .. r.err):match "==ERROR==[^\n]*" or r.err:sub(1, 200)) }
  end
  return { kernels = list }
end

return {
  title = "ncu on three kernels",
  seconds = 30,
  run = function(ctx, add)
    if ctx.emulated then return { status = "skipped", why = "the emulator has no counters of a GPU" } end
    local ncu = tools.find "ncu"
    if not ncu then return { status = "skipped", why = "ncu is not here" } end
    for _, pattern in ipairs(CASES) do
      local row = profile(ctx, ncu, pattern, math.floor(ctx.seconds / #CASES))
      row.name = pattern:gsub("[%^%$]", ""):gsub("%.%*", "")
      add(row)
    end
  end,
}
