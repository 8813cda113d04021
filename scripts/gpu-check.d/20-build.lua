-- Build: registers, spills and instruction counts of every kernel, by scripts/cuda-check where nvcc is; else the kernels
-- that this build carries are what they were where it was made.
local cuda = require "nibble.cuda"
local process = require "nibble.process"
local tools = require "tools"

return {
  title = "kernels as nvcc makes them",
  seconds = 40,
  run = function(ctx, add)
    local kernels, why = cuda.kernels()
    add { name = "kernels", carried = kernels, status = kernels and "passed" or "failed", why = why }
    if ctx.emulated then return { status = "skipped", why = "the emulator's kernels are g++'s" } end
    if not tools.find "nvcc" then
      return { status = "skipped", why = "no nvcc here: the kernels were compiled, and checked, where this build was made" }
    end
    local r, msg = process.run { "timeout", "-s", "KILL", tostring(ctx.seconds), ctx.root .. "/scripts/cuda-check" }
    if not r then return { status = "skipped", why = msg } end
    for line in r.out:gmatch "[^\n]+" do
      local file, target, kernel, registers, rest = line:match "^(%S+%.cu) (%S+): ([%w_]+), (%d+) registers(.*)$"
      if file then
        add { name = kernel .. " " .. target, file = file, registers = tonumber(registers), status = rest == "" and "passed" or "failed",
              why = rest ~= "" and rest:gsub("^[, ]+", "") or nil }
      end
    end
    if r.status ~= 0 then return { status = "failed", why = r.signal and "its time was over" or "cuda-check: " .. r.out:sub(-200) } end
  end,
}
