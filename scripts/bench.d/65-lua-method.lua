-- A quantizer written as a Lua loop, round to nearest in groups of 128, of a bf16 weight: beside the same loop in C
-- (compiled here, called by the same door) and beside nibble's own, which is vectorized and threaded.
local C = require("nibble.ffi").C
local tensor = require "nibble.tensor"
local ffi = require "ffi"

-- The README's, word for word.
local function nearest(w, scheme, _, out)
  local x, codes, scales, half = w:ptr(), out.codes:ptr(), out.scales:ptr(), 2 ^ (scheme.bits - 1)
  for g = 0, out.n * out.groups - 1 do
    local first, last, absmax = g * out.group, (g + 1) * out.group - 1, 0
    for i = first, last do absmax = math.max(absmax, math.abs(x[i])) end
    local s = out.round(absmax > 0 and absmax / (half - 0.5) or 1)
    scales[g] = s
    for i = first, last do
      codes[i] = math.max(-half, math.min(half - 1, math.floor(x[i] / s + 0.5))) + half
    end
  end
end

-- The same loop in C.
local source = [[
#include <math.h>
#include <stdint.h>
static double most(double a, double b) { return a > b ? a : b; }
static double least(double a, double b) { return a < b ? a : b; }
void bench_nearest(uint8_t *codes, float *scales, const float *x, int64_t groups, int64_t group, float (*round_scale)(float, int),
                   int dtype, double half) {
  for (int64_t g = 0; g < groups; g++) {
    double absmax = 0;
    for (int64_t i = g * group; i < (g + 1) * group; i++) absmax = most(absmax, fabs(x[i]));
    double s = round_scale((float)(absmax > 0 ? absmax / (half - 0.5) : 1), dtype);
    scales[g] = (float)s;
    for (int64_t i = g * group; i < (g + 1) * group; i++)
      codes[i] = (uint8_t)(most(-half, least(half - 1, floor(x[i] / s + 0.5))) + half);
  }
}
]]

-- The same method as a function of C, or nil where there is no compiler.
local function compiled()
  local base = os.tmpname()
  local f = assert(io.open(base .. ".c", "w"))
  f:write(source)
  f:close()
  local made = os.execute(("cc -O2 -march=native -fno-math-errno -shared -fPIC -o %s.so %s.c -lm 2>/dev/null"):format(base, base))
  ffi.cdef [[ void bench_nearest(uint8_t *, float *, const float *, int64_t, int64_t, float (*)(float, int), int, double); ]]
  local ok, lib = pcall(ffi.load, base .. ".so")
  for _, ending in ipairs { "", ".c", ".so" } do os.remove(base .. ending) end
  if made ~= 0 or not ok then return nil end
  return function(w, scheme, _, out)
    lib.bench_nearest(out.codes:ptr(), out.scales:ptr(), w:ptr(), out.n * out.groups, out.group, C.nb_round_scale,
      C.NB_BF16, 2 ^ (scheme.bits - 1))
  end
end

local function weight(n, k)
  local w = tensor.new("bf16", { n, k })
  local p, x = ffi.cast("uint16_t *", w.data), 12345
  for i = 0, n * k - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = 0x3c00 + x % 512 + (x % 1024 >= 512 and 0x8000 or 0) -- ± 2^-7 … 2^-3
  end
  return w
end

return {
  title = "a quantizer as a Lua loop: round to nearest, W4A16 g128, 2 MiB of bf16",
  run = function(ctx)
    local w = weight(256, 4096) -- small, so that a turn fits between other work on the machine
    local function quantize(method, threads)
      return function()
        C.nb_threads_set(threads)
        local q = w:quantize { scheme = "W4A16", group = 128, method = method }
        q.codes:free()
        q.scales:free()
      end
    end
    local same_in_c = compiled()
    local one = w:quantize { scheme = "W4A16", group = 128, method = nearest }
    local jobs = { { name = "Lua loop", run = quantize(nearest, 1) } }
    if same_in_c then
      assert(one:equal(w:quantize { scheme = "W4A16", group = 128, method = same_in_c }))
      jobs[2] = { name = "the same loop in C", run = quantize(same_in_c, 1) }
    end
    for _, threads in ipairs(ctx.threads) do
      jobs[#jobs + 1] = { name = ("nibble's rtn, %dT"):format(threads), run = quantize("rtn", threads) }
    end
    for i, r in ipairs(ctx.compare(jobs, { reps = 60, seconds = 8 })) do
      print(("  %-18s %6.2f GB/s of weights  %6.1f M weights/s%s"):format(jobs[i].name, w:bytes() / r.min / 1e9,
        w:numel() / r.min / 1e6, i > 1 and ("  %.1f times the Lua loop"):format(r.ratio) or ""))
    end
  end,
}
