-- What happens to a layer after loading, for Marlin, beside a copy of the same bytes: a
-- dense AWQ layer, and experts, all of them at once. Counted are the bytes of all
-- parameters, read and written.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local tensor = require "nibble.tensor"
local layer = require "nibble.methods.layer"
local awq_marlin = require "nibble.methods.awq_marlin"
local awq_marlin_moe = require "nibble.methods.awq_marlin_moe"

local BAR = 0.50

local function fill(t)
  local p = ffi.cast("uint32_t *", t.data)
  for i = 0, t:bytes() / 4 - 1 do p[i] = (i * 2654435761ULL) % 2 ^ 32 end
  return t
end

-- {name, bytes, run}: a layer that is set back to what was loaded before each turn.
local function job(name, method, L)
  assert(method:create(L))
  local loaded, bytes = {}, 0
  for _, p in ipairs(L:names()) do
    local t = L:get(p)
    loaded[p], bytes = fill(t), bytes + t:bytes()
    if t:type() == "bf16" then t:fill(0.01) end
  end
  return { name = name, bytes = bytes, run = function()
    L.fold, L.order_of_words = nil, nil
    for p, t in pairs(loaded) do L.params[p].data = t end
    assert(method:process(L))
  end }
end

local function jobs()
  local config = { bits = 4, group = 128, zero_point = true }
  local function experts(options)
    return assert(awq_marlin_moe.new(config, options)), layer.new { name = "experts", kind = "moe", dtype = "bf16", experts = 8,
      hidden = 2048, intermediate = 4096 }
  end
  return {
    job("dense 4096x14336", assert(awq_marlin.new(config)), layer.new { name = "dense", dtype = "bf16", k = 4096, n = 14336 }),
    job("8 experts 2048x4096", experts()),
    job("8 experts, int8 activations", experts { activations = "int8" }),
    job("8 experts, fp8 activations", experts { activations = "fp8" }),
  }
end

return {
  title = "AWQ layers made ready for Marlin after loading, GB/s of parameters read and written, and the share of a copy of "
    .. "the same bytes (by best times; by the median turn, which the verdict goes by)",
  run = function(ctx)
    for _, j in ipairs(jobs()) do
      local from, to = ctx.buffers(j.bytes)
      for _, threads in ipairs(ctx.threads) do
        C.nb_threads_set(threads)
        local results = ctx.compare({ { run = function() assert(C.nb_tensor_copy(to, from) == 0) end }, j }, { reps = 15, seconds = 4 })
        local best, median = results[1].min / results[2].min, results[2].ratio
        print(("  %-28s %dT  %5.1f GB/s (median %5.1f)  %4.0f %% %4.0f %%  %s"):format(j.name, threads,
          2 * j.bytes / results[2].min / 1e9, 2 * j.bytes / results[2].median / 1e9, 100 * best, 100 * median,
          median >= BAR and "at least 50 %" or "BELOW 50 %"))
      end
      from:free()
      to:free()
      tensor.collect_if_full()
    end
    C.nb_threads_set(0)
  end,
}
