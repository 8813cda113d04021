-- Repacks of int4 words beside a copy of the same bytes (memcpy, the faster of its
-- two ways): both read and write k*n/2 bytes, in arrays larger than the caches.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local tensor = require "nibble.tensor"

-- k, n: two of real models, whose rows lie 7 * 2^m bytes apart, one whose rows lie a power
-- of two apart (the hardest for the caches), one of neither.
local SHAPES = { { 4096, 14336 }, { 8192, 28672 }, { 8192, 16384 }, { 5120, 27648 } }
local BAR = 0.70

local function ok(rc) assert(rc == 0, ffi.string(C.nb_error())) end

local function shuffled(k)
  local t = tensor.new("i32", { k })
  local p = ffi.cast("int32_t *", t.data)
  for i = 0, k - 1 do p[i] = i end
  for i = k - 1, 1, -1 do
    local j = math.random(0, i)
    p[i], p[j] = p[j], p[i]
  end
  return t
end

-- One pair of buffers, seen as each job's words.
local function jobs_of(k, n, from, to, perm)
  local function words(t, ...) return t:as("i32", { ... }) end
  local awq, gptq, ct = words(from, k, n / 8), words(from, k / 8, n), words(from, n, k / 8)
  local marlin, to_awq, to_gptq, to_ct = words(to, k / 16, 2 * n), words(to, k, n / 8), words(to, k / 8, n), words(to, n, k / 8)
  return {
    { name = "memcpy", run = function() ffi.copy(to.data, from.data, k * n / 2) end },
    { name = "copy", run = function() ok(C.nb_tensor_copy(to, from)) end },
    { name = "awq -> marlin", bar = true, run = function() ok(C.nb_marlin_awq_repack(marlin, awq, 4, 0)) end },
    { name = "awq -> ct", bar = true, run = function() ok(C.nb_awq_to_ct(to_ct, awq)) end },
    { name = "gptq -> marlin", bar = true, run = function() ok(C.nb_marlin_repack(marlin, gptq, nil, 4, 0)) end },
    { name = "gptq -> marlin, act order", run = function() ok(C.nb_marlin_repack(marlin, gptq, perm, 4, 0)) end },
    { name = "gptq -> marlin, 8-bit act", run = function() ok(C.nb_marlin_repack(marlin, gptq, nil, 4, 1)) end },
    { name = "gptq -> ct", run = function() ok(C.nb_gptq_to_ct(to_ct, gptq)) end },
    { name = "ct -> awq", run = function() ok(C.nb_ct_to_awq(to_awq, ct)) end },
    { name = "awq -> gptq", run = function() ok(C.nb_awq_to_gptq(to_gptq, awq)) end },
    { name = "gptq -> awq", run = function() ok(C.nb_gptq_to_awq(to_awq, gptq)) end },
  }
end

return {
  title = "repacks of int4 words, GB/s read and written, and their share of a copy of the same bytes "
    .. "(by best times; by the median turn, which the verdict goes by)",
  run = function(ctx)
    for _, shape in ipairs(SHAPES) do
      local k, n = shape[1], shape[2]
      local from, to = ctx.buffers(k * n / 2)
      local jobs = jobs_of(k, n, from, to, shuffled(k))
      for _, threads in ipairs(ctx.threads) do
        C.nb_threads_set(threads)
        local turn = {}
        for i, job in ipairs(jobs) do
          if threads == 1 or job.name ~= "memcpy" then turn[#turn + 1] = jobs[i] end
        end
        local results = ctx.compare(turn, { reps = 15, seconds = 6 })
        local limit, base = math.huge, 1 -- the faster copy, and its place in the turn
        for i, job in ipairs(turn) do
          if job.name == "copy" or job.name == "memcpy" then
            if results[i].min < limit then limit, base = results[i].min, i end
          end
        end
        for i, job in ipairs(turn) do
          local best, median = limit / results[i].min, results[i].ratio / results[base].ratio
          local verdict = job.bar and (median >= BAR and "at least 70 %" or "BELOW 70 %") or ""
          print(("  %5dx%-5d %dT  %-26s %5.1f GB/s (median %5.1f)  %4.0f %% %4.0f %%  %s"):format(k, n, threads, job.name,
            k * n / results[i].min / 1e9, k * n / results[i].median / 1e9, 100 * best, 100 * median, verdict))
        end
      end
      from:free()
      to:free()
    end
  end,
}
