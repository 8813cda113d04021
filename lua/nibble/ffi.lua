-- ffi: the one door to the C library. Finds it, declares it, and turns its
-- codes into Lua's two kinds of failure: a caller's mistake is an error at the
-- caller, the world's failure (file, format, device, memory) is nil, msg, code.
local ffi = require "ffi"

-- NIBBLE_JIT=off: everything interpreted, as `make test JIT=off` runs the specs.
if os.getenv "NIBBLE_JIT" == "off" then jit.off() end

ffi.cdef "const char *nb_cdef(void); int setenv(const char *name, const char *value, int overwrite);"

-- As core/main.c does: OpenMP threads sleep between jobs. Before the library brings OpenMP in.
if not os.getenv "GOMP_SPINCOUNT" then ffi.C.setenv("OMP_WAIT_POLICY", "passive", 0) end

-- The executable carries the library in itself; elsewhere it is looked for in
-- NIBBLE_BUILD, beside the tree this file lies in, and where it was installed.
local function find()
  if pcall(function() return ffi.C.nb_cdef end) then return ffi.C end
  local here = debug.getinfo(1, "S").source:match "^@(.*)lua/nibble/ffi%.lua$"
  local tried, places = {}, {}
  if os.getenv "NIBBLE_BUILD" then places[1] = os.getenv "NIBBLE_BUILD" .. "/libnibble.so" end
  if here then
    places[#places + 1] = here .. "build/libnibble.so"
    places[#places + 1] = here:gsub("share/$", "lib/") .. "libnibble.so"
  end
  local installed = debug.getinfo(1, "S").source:match "^@(.*)share/lua/5%.1/nibble/ffi%.lua$"
  if installed then places[#places + 1] = installed .. "lib/libnibble.so" end
  places[#places + 1] = "nibble"
  for _, place in ipairs(places) do
    local ok, lib = pcall(ffi.load, place)
    if ok then return lib end
    tried[#tried + 1] = lib
  end
  error("libnibble.so was not found (build it with make, or set NIBBLE_BUILD): " .. table.concat(tried, "; "), 0)
end

local C = find()
ffi.cdef(ffi.string(C.nb_cdef()))

local M = { C = C, version = ffi.string(C.nb_version()) }

local codes = {}
for _, name in ipairs { "EINVAL", "EFORMAT", "EIO", "ENOMEM", "EINTR", "EUNSUPPORTED", "EINEXACT" } do
  codes[tonumber(C["NB_" .. name])] = name:lower()
end

--- check(rc, ...) -> ... | nil, msg, code
-- The one translator of C's codes. rc >= 0: the further arguments (or rc).
-- "einval" is the caller's mistake: an error at the caller of the caller
-- (`level`, default 3). "eintr" raises "interrupted". Everything else is
-- returned as nil, the sentence, and the code's name.
function M.check(rc, ...)
  rc = tonumber(rc)
  if rc >= 0 then
    if select("#", ...) == 0 then return rc end
    return ...
  end
  local msg, code = ffi.string(C.nb_error()), codes[rc] or "eunknown"
  if code == "einval" then error(msg, 3) end
  if code == "eintr" then error("interrupted", 0) end
  return nil, msg, code
end

--- must(rc): for C calls that can only fail by a mistake or for want of memory:
-- every failure is an error.
function M.must(rc)
  rc = tonumber(rc)
  if rc < 0 then
    if codes[rc] == "eintr" then error("interrupted", 0) end
    error(ffi.string(C.nb_error()), 3)
  end
  return rc
end

--- stop_check(): raises "interrupted" when Ctrl-C was pressed. Long Lua loops
-- call it once per block, because compiled loops ignore hooks.
function M.stop_check()
  if C.nb_stop_requested() ~= 0 then error("interrupted", 0) end
end

ffi.cdef "int usleep(unsigned microseconds);"

--- sleep(seconds): as stop_check does before, and after: a signal ends the sleep.
function M.sleep(seconds)
  M.stop_check()
  for _ = 1, math.ceil(seconds / 0.9) do
    ffi.C.usleep(math.min(seconds, 0.9) * 1e6)
    seconds = seconds - 0.9
    M.stop_check()
  end
end

--- interpreted(f) -> f, never compiled. Debian 12's LuaJIT (2.1.0-beta3 of 2022) now and then compiles a
-- pairs loop in hot or recursive code so that it finds no key. Functions whose pairs loop decides what is
-- written, hashed or refused go through here; they cost microseconds.
function M.interpreted(f)
  jit.off(f)
  return f
end

--- uncollected(f, ...) -> what f(...) gives (at most 3 values), the garbage collector at rest meanwhile: for what makes
-- much that stays, at which the collector would look again and again.
function M.uncollected(f, ...)
  if not collectgarbage "isrunning" then return f(...) end
  collectgarbage() -- to the end of its cycle: while it sweeps strings their table can't grow, and finding one takes ages
  collectgarbage "stop"
  local done, a, b, c = pcall(f, ...)
  collectgarbage "restart"
  if not done then error(a, 0) end
  return a, b, c
end

--- progress: what long jobs report to where they are told nothing else (nibble.repl.progress's report); nil: nobody.
-- A session on a terminal sets it.
M.progress = nil

M.soft_limit_bytes = 1024 * 1024 * 1024

return M
