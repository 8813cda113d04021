-- cuda.stream: lines of work on a device that go side by side, times, and graphs.
--
-- What is begun on a device is done on the current stream: the default one, unless s:use says otherwise. It waits for
-- what was begun on all others, and they for what was begun on it.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local devices = require "nibble.cuda.devices"
local C, check = nffi.C, nffi.check

local M = {}

local function number_of(device, level) return devices.number_of(device or "cuda", level + 1) end

local stream = {}
stream.__index = stream

function stream.__tostring(s) return "stream on " .. devices.name_of(s.number) end

local function stream_of(s, what)
  if getmetatable(s) ~= stream then error(("%s: expected a stream, found a %s"):format(what, type(s)), 3) end
  return s.handle
end

--- cuda.stream([device = "cuda"]) -> a new stream there | nil, msg, code
function M.stream(device)
  local number, out = number_of(device, 2), ffi.new "nb_stream *[1]"
  local ok, msg, code = check(C.nb_stream_new(out, number))
  if not ok then return nil, msg, code end
  return setmetatable({ handle = ffi.gc(out[0], C.nb_stream_free), number = number }, stream)
end

-- Calls f; afterwards `done` too, also where f fails. Gives f's results.
local function finally(done, f, ...)
  local function results(ok, ...)
    done()
    if not ok then error((...), 0) end
    return ...
  end
  return results(pcall(f, ...))
end

--- s:use(f, …) -> f(…)'s results: what f begins on the device is begun on this stream.
function stream.use(s, f, ...)
  local handle = stream_of(s, "use")
  local before = C.nb_stream_current(s.number)
  nffi.must(C.nb_stream_use(s.number, handle))
  return finally(function() C.nb_stream_use(s.number, before) end, f, ...)
end

--- s:after(other) -> true: what is begun on s from now on comes after what was begun on the other stream until now | nil, msg, code
function stream.after(s, other) return check(C.nb_stream_after(stream_of(s, "after"), stream_of(other, "after")), true) end

--- s:wait() -> true when all that was begun on it is done | nil, msg, code
function stream.wait(s) return check(C.nb_stream_wait(stream_of(s, "wait")), true) end

--- s:where() -> "cuda:0": its device.
function stream.where(s) return devices.name_of(s.number) end

M.stream_type = stream

local function mark(number)
  local out = ffi.new "nb_mark *[1]"
  local ok, msg, code = check(C.nb_mark_new(out, number))
  if not ok then return nil, msg, code end
  return ffi.gc(out[0], C.nb_mark_free)
end

--- cuda.time(f [, device = "cuda"]) -> milliseconds that what f() begins on the current stream takes there | nil, msg, code
-- Between two events of the device: what the processor does meanwhile isn't counted, gaps that it leaves are.
function M.time(f, device)
  local number, ms = number_of(device, 2), ffi.new "double[1]"
  local from, msg, code = mark(number)
  if not from then return nil, msg, code end
  f()
  local to
  to, msg, code = mark(number)
  if not to then return nil, msg, code end
  local ok
  ok, msg, code = check(C.nb_mark_ms(ms, from, to))
  if not ok then return nil, msg, code end
  return ms[0]
end

local graph = {
  __call = function(g) return check(C.nb_graph_launch(g.handle), true) end,
  __tostring = function(g) return "graph on " .. devices.name_of(g.number) end,
}

--- cuda.graph(f [, device = "cuda"]) -> g, f's results | nil, msg, code
-- What f() begins on the device, as one CUDA graph: g() begins all of it anew on the current stream, for a fraction of
-- what the launches cost. f is called twice: once plainly, so that kernels are loaded, and once to be captured. It
-- cannot wait, nor copy from or to the computer's memory. f's results hold what each launch leaves there; tensors that it
-- uses, but did not make, must not be freed while g lives.
function M.graph(f, device)
  local number, out = number_of(device, 2), ffi.new "nb_graph *[1]"
  f()
  local ok, msg, code = check(C.nb_graph_begin(number))
  if not ok then return nil, msg, code end
  local function results(worked, ...)
    ok, msg, code = check(C.nb_graph_end(out, number))
    local handle = ok and ffi.gc(out[0], C.nb_graph_free)
    if not worked then error((...), 0) end
    if not ok then return nil, msg, code end
    return setmetatable({ handle = handle, number = number, f = f, results = { ... } }, graph), ...
  end
  return results(pcall(f))
end

return M
