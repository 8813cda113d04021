-- emulator: build/libcuemu.so from Lua: device memory, and kernels run on it by name.
local ffi = require "ffi"
local tensor = require "nibble.tensor"

ffi.cdef [[
typedef struct emu_counts {
  int64_t global_read, global_written, global_sectors, bank_conflicts, copies, barriers, collectives, switches;
} emu_counts;
const char *emu_run(const char *name, unsigned grid, unsigned across, unsigned block, size_t shared, void **args);
const emu_counts *emu_last_counts(void);
void emu_set_order(unsigned order);
void *emu_allocate(size_t bytes);
int emu_release(void *p);
]]

local M = {}

local C = ffi.load((os.getenv "NIBBLE_BUILD" or "build") .. "/libcuemu.so")

--- emulator.memory(bytes | tensor) -> its address on the device; a tensor's bytes are copied there
function M.memory(of)
  local bytes = ffi.istype(tensor.type, of) and of:bytes() or of
  local p = C.emu_allocate(bytes)
  assert(p ~= nil, "the emulator has no memory")
  if ffi.istype(tensor.type, of) then ffi.copy(p, of:ptr(), bytes) end
  return ffi.gc(p, C.emu_release)
end

--- emulator.free(p): gives memory back now
function M.free(p)
  ffi.gc(p, nil)
  return C.emu_release(p)
end

--- emulator.read(p, tensor) -> tensor, filled from device memory
function M.read(p, t)
  ffi.copy(t:ptr(), p, t:bytes())
  return t
end

local function argument(v)
  if type(v) == "number" then return ffi.new("int[1]", v) end
  if ffi.istype("int64_t", v) then return ffi.new("int64_t[1]", v) end
  if type(v) == "cdata" and tostring(ffi.typeof(v)):match "^ctype<struct" then return v end
  if ffi.istype("float", v) then return ffi.new("float[1]", v) end
  return ffi.new("void *[1]", v and ffi.cast("void *", v) or nil)
end

--- emulator.order(n): the order of threads from now on
function M.order(n) C.emu_set_order(n) end

--- emulator.run(name, { grid =, across = 1, block =, shared = }, ...) -> what is wrong, or nil, and its counts
-- Arguments: numbers are int, int64_t, float and struct cdata themselves, memory is its address, false is null.
function M.run(name, launch, ...)
  local n, keep = select("#", ...), {}
  local args = ffi.new("void *[?]", math.max(n, 1))
  for i = 1, n do
    keep[i] = argument((select(i, ...)))
    args[i - 1] = keep[i]
  end
  local wrong = C.emu_run(name, launch.grid or 1, launch.across or 1, launch.block or 32, launch.shared or 0, args)
  return wrong ~= nil and ffi.string(wrong) or nil, M.counts()
end

--- emulator.counts() -> what the last launch did, whoever began it: bytes, sectors and bank conflicts
function M.counts()
  local counts = {}
  for _, c in ipairs { "global_read", "global_written", "global_sectors", "bank_conflicts", "copies", "barriers" } do
    counts[c] = tonumber(C.emu_last_counts()[0][c])
  end
  return counts
end

--- emulator.orders(fn): calls fn(order) for orders of threads of every kind, each set
function M.orders(fn)
  for _, order in ipairs { 0, 1, 2, 3, 12345 } do
    C.emu_set_order(order)
    fn(order)
  end
  C.emu_set_order(0)
end

return M
