-- Provenance and ceilings: what exactly was measured and on what; how fast this device copies and multiplies at best.
local cuda = require "nibble.cuda"
local data = require "data"
local results = require "results"
local timing = require "timing"

local function lines_of(command)
  local p, out = io.popen(command .. " 2>/dev/null"), {}
  for line in p:lines() do out[#out + 1] = line end
  p:close()
  return out
end

local NVIDIA_SMI = { "name", "driver_version", "vbios_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm",
                     "clocks.max.mem", "power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current" }

-- What nvidia-smi says of the first GPU: {[field] = text}, or nil.
local function nvidia_smi()
  local line = lines_of("nvidia-smi -i 0 --format=csv,noheader --query-gpu=" .. table.concat(NVIDIA_SMI, ","))[1]
  if not line then return nil end
  local out, i = {}, 0
  for value in line:gmatch "[^,]+" do
    i = i + 1
    if NVIDIA_SMI[i] then out[NVIDIA_SMI[i]] = value:match "^%s*(.-)%s*$" end
  end
  return out
end

local function machine(ctx)
  local row = { kernels = cuda.kernels(), nvidia_smi = nvidia_smi(), hashes = {},
                nvcc = lines_of("${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)} --version")[4],
                system = lines_of("uname -srm")[1], processor = lines_of("grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-")[1] }
  for _, file in ipairs { "nibble", "libnibble.so" } do row.hashes[file] = results.hash_of(ctx.build .. "/" .. file) end
  for _, file in ipairs(lines_of(("cd '%s' && find gen -name '*.fatbin'"):format(ctx.build))) do
    row.hashes[file] = results.hash_of(ctx.build .. "/" .. file)
  end
  return row
end

-- The bf16 product of n x n x n by cuBLASLt: the most that tensor cores give here.
local function product(ctx)
  local library, why = cuda.cublaslt()
  if not library then return { status = "skipped", why = why } end
  local n = ctx.small and 64 or 8192
  local a, b = data.random("bf16", { n, n }, ctx.seed, "a"), data.random("bf16", { n, n }, ctx.seed, "b")
  local x, w, y = assert(cuda.to(a, "cuda")), assert(cuda.to(b, "cuda")), assert(cuda.new("cuda", "bf16", { n, n }))
  local seconds = timing.graph_seconds({ function() assert(cuda.gemm(y, x, w)) end }, ctx.emulated and 1 or 10)
  return { library = library, flops = 2 * n ^ 3, seconds_each = seconds, tflops = 2 * n ^ 3 / seconds / 1e12,
           emulated = ctx.emulated or nil }
end

return {
  title = "what is measured, and on what",
  seconds = 20, emulated_seconds = 20,
  python = "ceilings",
  cases = function()
    return { { name = "machine", run = machine }, timing.copy_case(), { name = "bf16 product by cuBLASLt", run = product } }
  end,
}
