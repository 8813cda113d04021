-- Build: registers, spills and instruction counts of every kernel, by scripts/cuda-check where nvcc is. Elsewhere the kernels
-- that this build carries were compiled and checked where it was made: then the committed budget stands for them.
local cuda = require "nibble.cuda"
local process = require "nibble.process"
local tools = require "tools"

-- What cuda-check compiles for a device of this sm: one target of nibble's.
local function target_of(sm)
  for _, target in ipairs { 120, 100, 90, 89 } do
    if sm >= target then return target == 90 and "sm_90a" or "sm_" .. target end
  end
  return "sm_80"
end

-- A line of cuda-check's as a row; nil: it is something else.
local function row_of(line)
  local file, target, kernel, registers, rest = line:match "^(%S+%.cu) (%S+): ([%w_]+), (%d+) registers(.*)$"
  if file then
    return { name = kernel .. " " .. target, file = file, registers = tonumber(registers), status = rest == "" and "passed" or "failed",
             why = rest ~= "" and rest:gsub("^[, ]+", "") or nil }
  end
  local count, kind, most, over
  file, target, kernel, count, kind, most, over =
    line:match "^(%S+%.cu) (%S+): ([%w_]+), ([%d.]+) (%u+) instructions to a tile, at most (%d+)(.*)$"
  if file then
    return { name = ("%s %s, instructions to a tile"):format(kernel, target), file = file, of = kind, found = tonumber(count),
             at_most = tonumber(most), status = over == "" and "passed" or "failed", why = over ~= "" and over:gsub("^[: ]+", "") or nil }
  end
end

-- The committed budget as rows.
local function committed(add)
  local known, budget = pcall(require, "cuda.budget")
  if not known then return end
  for _, kind in ipairs { "sass", "ptx" } do
    local names = {}
    for name in pairs(budget[kind] or {}) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      add { name = ("%s, instructions to a tile"):format(name), of = kind:upper(), at_most = budget[kind][name], committed = true }
    end
  end
end

return {
  title = "kernels as nvcc makes them",
  seconds = 40,
  run = function(ctx, add)
    local kernels, why = cuda.kernels()
    add { name = "kernels", carried = kernels, status = kernels and "passed" or "failed", why = why }
    if ctx.emulated or not tools.find "nvcc" then
      committed(add)
      return { status = "skipped", why = ctx.emulated and "the emulator's kernels are g++'s; the rows are the committed budget"
        or "no nvcc here: the kernels were compiled and checked where this build was made; the rows are the committed budget" }
    end
    local r, msg = process.run { "env", "CUDA_TARGETS=" .. target_of(ctx.document.device.sm), "timeout", "-s", "KILL",
      tostring(ctx.seconds), "sh", "-c", [[cd "$0" && ls cuda/kernels/*.cu | xargs -P "$(nproc)" -n 1 scripts/cuda-check]], ctx.root }
    if not r then return { status = "skipped", why = msg } end
    for line in r.out:gmatch "[^\n]+" do
      local row = row_of(line)
      if row then add(row) end
    end
    if r.status ~= 0 then
      local over = r.signal or r.status == 137
      return { status = over and "cut" or "failed", why = over and "its time was over: not all was compiled"
        or "cuda-check: " .. (r.out:match "[^\n]*%f[%u][%u ]+[^\n]*\n" or r.out:sub(-200)) }
    end
  end,
}
