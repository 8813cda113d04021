-- bench-device: the CUDA kernels' speeds here, as a share of what this device copies, measured in the same run; products
-- also in TFLOP/s, and as a share of a bf16 product through cuBLASLt. The cases are those of gpu-check, which checks
-- results too and keeps a document of them; here they run once and lines are printed. `nibble bench --device cuda
-- [PATTERN]` starts this.
local build, pattern = arg[1] or "build", arg[2] or ""
local root = arg[0]:match "^(.*)/scripts/[^/]*$" or "."
package.path = root .. "/scripts/gpu-check.d/?.lua;" .. package.path
local cuda = require "nibble.cuda"
local data = require "data"
local timing = require "timing"

local function refuse(why)
  io.stderr:write("bench: ", why, "; without --device the processor's kernels are measured\n")
  os.exit(1)
end

local why = cuda.why()
if why then refuse(why) end
local kernels, missing = cuda.kernels()
if not kernels then refuse(missing) end
local device = cuda.devices()[1]
print(("device  %s, sm_%d, %d multiprocessors, driver for CUDA %s; kernels: %s"):format(device.model, device.sm,
  device.multiprocessors, device.driver, kernels))
if device.emulated then print "emulated: no figures" end

local ctx = { root = root, build = build, emulated = device.emulated, small = device.emulated, seed = 1 }
local copy = timing.copy_case().run(ctx)
if not device.emulated then print(("copy    %.1f GB/s (read and written)"):format(copy.rate / 1e9)) end

-- What many rows are measured by: a square product of bf16 by cuBLASLt, in operations a second | nil
local function float_product()
  local library, without = cuda.cublaslt()
  if not library then return print("bf16    not measured: " .. without) end
  local size = ctx.small and 16 or 8192
  local row = timing.case({ bytes = 3 * 2 * size * size, flops = 2 * size ^ 3, setup = function()
    local function random(name) return assert(data.random("bf16", { size, size }, ctx.seed, name):to "cuda") end
    local y, x, w = assert(cuda.new("cuda", "bf16", { size, size })), random "x", random "w"
    return { function() assert(cuda.gemm(y, x, w)) end }
  end }).run(ctx)
  local rate = row.flops / row.seconds_each
  if not device.emulated then print(("bf16    %.1f TFLOP/s (%s, %d cubed)"):format(rate / 1e12, library, size)) end
  return rate
end
local bf16 = float_product()

local function figures(row)
  if device.emulated then return "ran" end
  local rate, flops = row.bytes / row.seconds_each, row.flops and row.flops / row.seconds_each
  local text = ("%9.1f us  %7.1f GB/s  %4.0f %% of copy"):format(row.seconds_each * 1e6, rate / 1e9, 100 * rate / copy.rate)
  if flops then text = ("%s  %6.1f TFLOP/s"):format(text, flops / 1e12) end
  return flops and bf16 and ("%s  %4.0f %% of bf16"):format(text, 100 * flops / bf16) or text
end

local failed = false
for _, case in ipairs(require("pieces").collect("benchmarks", ctx)) do
  if case.name:find(pattern, 1, true) then
    local ok, row = xpcall(case.run, debug.traceback, ctx)
    failed = failed or not ok
    print(("  %-50s  %s"):format(case.name, ok and figures(row) or "failed: " .. tostring(row)))
    collectgarbage() collectgarbage()
  end
end
os.exit(failed and 1 or 0)
