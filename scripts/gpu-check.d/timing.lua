-- timing: how long a call takes on the device, over weights that lie in no cache.
local nffi = require "nibble.ffi"
local cuda = require "nibble.cuda"
local C = nffi.C

local M = {}

-- More than four times the last-level cache of any GPU that nibble has kernels for (126 MB).
M.ROTATED_BYTES = 512 * 1024 * 1024
local FLUSH_BYTES = 256 * 1024 * 1024 -- as triton's do_bench

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

--- graph_seconds(calls, reps) -> seconds of one call: all calls as one CUDA graph, which is launched `reps` times after once for
-- nothing; the median.
function M.graph_seconds(calls, reps)
  local graph = assert(cuda.graph(function()
    for _, call in ipairs(calls) do call() end
  end))
  if reps > 1 then assert(graph()) end
  local times = {}
  for rep = 1, reps do times[rep] = assert(cuda.time(graph)) / 1e3 / #calls end
  return median(times)
end

-- Seconds of one call between two events, the caches overwritten before, as triton's do_bench takes them.
local function do_bench_seconds(call, flush_bytes, reps)
  local times = {}
  for rep = 1, reps do
    local flush, result = assert(cuda.new("cuda", "u8", { flush_bytes })), nil
    times[rep] = assert(cuda.time(function() result = call() end)) / 1e3
    flush:free()
    if result then result:free() end
  end
  return median(times)
end

--- copy_case() -> case "copy": bytes a second, read and written, of copies on the device
function M.copy_case()
  return { name = "copy", run = function(ctx)
    local bytes = ctx.small and 1024 * 1024 or 1024 * 1024 * 1024
    local from, number = assert(cuda.new("cuda", "u8", { bytes })), cuda.number_of("cuda")
    local function call()
      local out = cuda.type()
      nffi.must(C.nb_tensor_to(out.t, from.t, number))
      return out
    end
    local seconds = M.graph_seconds({ call }, ctx.emulated and 1 or 10)
    return { bytes = 2 * bytes, seconds_each = seconds, rate = 2 * bytes / seconds, emulated = ctx.emulated or nil }
  end }
end

--- case{name =, piece =, bytes =, flops =, weight_bytes =, setup = function(ctx, copies) -> functions, …} -> case
-- Its row has seconds_each, by CUDA graphs, and do_bench_seconds. bytes: read and written by one call; setup: that many calls
-- that give what they made on the device, each on its own copy of the weights (weight_bytes, or bytes). eager: no graph can
-- hold the call; its seconds_each are do_bench's.
function M.case(o)
  function o.run(ctx)
    local row = { piece = o.piece, bytes = o.bytes, flops = o.flops, m = o.m, n = o.n, k = o.k, emulated = ctx.emulated or nil }
    local calls = o.setup(ctx, ctx.once and 1 or ctx.small and 2 or math.max(2, math.ceil(M.ROTATED_BYTES / (o.weight_bytes or o.bytes))))
    if ctx.once then
      calls[1]()
      assert(cuda.wait())
      return row
    end
    if not o.eager then row.seconds_each = M.graph_seconds(calls, ctx.emulated and 1 or 10) end
    if o.eager or not ctx.emulated then
      row.do_bench_seconds = do_bench_seconds(calls[1], ctx.small and 1024 * 1024 or FLUSH_BYTES, ctx.emulated and 1 or 20)
    end
    row.seconds_each = row.seconds_each or row.do_bench_seconds
    return row
  end
  return o
end

return M
