-- timing: how long a call takes on the device, over weights that lie in no cache.
local nffi = require "nibble.ffi"
local cuda = require "nibble.cuda"
local C = nffi.C

local M = {}

-- More than four times the last-level cache of any GPU that nibble has kernels for (126 MB).
M.ROTATED_BYTES = 512 * 1024 * 1024

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end
M.median = median

-- Seconds of each of `reps` rounds over all calls, by this clock around work that is waited for.
local function rounds(calls, reps)
  local times = {}
  for rep = 1, reps do
    local start = C.nb_now()
    for _, call in ipairs(calls) do call() end
    assert(cuda.wait())
    times[rep] = (C.nb_now() - start) / #calls
  end
  return times
end

--- copy_case() -> case "copy": bytes a second, read and written, of copies on the device
function M.copy_case()
  return { name = "copy", run = function(ctx)
    local bytes = ctx.small and 1024 * 1024 or 1024 * 1024 * 1024
    local from, number = assert(cuda.new("cuda", "u8", { bytes })), cuda.number_of("cuda")
    local function call()
      local out = cuda.type()
      nffi.must(C.nb_tensor_to(out.t, from.t, number))
    end
    local seconds = median(rounds({ call }, ctx.emulated and 1 or 10))
    return { bytes = 2 * bytes, seconds_each = seconds, rate = 2 * bytes / seconds, emulated = ctx.emulated or nil }
  end }
end

--- case{name =, piece =, bytes =, flops =, setup = function(ctx, copies) -> functions, …} -> case whose row has seconds
-- bytes: read and written by one call; setup: the calls, each on its own copy of the weights.
function M.case(o)
  function o.run(ctx)
    local copies = ctx.emulated and 1 or math.max(2, math.ceil(M.ROTATED_BYTES / o.bytes))
    local calls = o.setup(ctx, copies)
    local row = { piece = o.piece, bytes = o.bytes, flops = o.flops, m = o.m, n = o.n, k = o.k, emulated = ctx.emulated or nil }
    if not ctx.emulated then rounds(calls, 1) end
    row.seconds_each = median(rounds(calls, ctx.emulated and 1 or 10))
    return row
  end
  return o
end

return M
