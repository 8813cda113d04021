-- lock: files that one process, or several that share, hold; the kernel lets go when a process dies, and
-- what is written in them says who holds them. For folders that several processes, also of several machines, work in.
local ffi = require "ffi"
local nffi = require "nibble.ffi"

-- Under names of our own: other modules may declare the same functions with other types.
ffi.cdef [[
int nibble_open(const char *path, int flags, ...) __asm__("open");
int nibble_flock(int fd, int operation) __asm__("flock");
int nibble_close(int fd) __asm__("close");
int nibble_ftruncate(int fd, long size) __asm__("ftruncate");
long nibble_pread(int fd, void *data, size_t bytes, long at) __asm__("pread");
long nibble_pwrite(int fd, const void *data, size_t bytes, long at) __asm__("pwrite");
char *nibble_strerror(int code) __asm__("strerror");
]]
local libc = ffi.C
local OPEN = 0x80042 -- O_RDWR | O_CREAT | O_CLOEXEC
local LOCK_SH, LOCK_EX, LOCK_NB, EINTR, EWOULDBLOCK = 1, 2, 4, 4, 11

local M = {}
local Lock = {}
Lock.__index = Lock

local function failed(what, path) return nil, ("%s %s: %s"):format(what, path, ffi.string(libc.nibble_strerror(ffi.errno()))), "eio" end

--- take(path [, {shared =, wait =}]) -> lock | nil, msg, code
-- Makes the file where there is none. Held by another: nil, what it says in the file, "ebusy" at once, or with
-- wait = true as soon as it is free (Ctrl-C raises "interrupted").
function M.take(path, o)
  o = o or {}
  local fd = libc.nibble_open(path, OPEN, ffi.cast("int", 438)) -- 0666
  if fd < 0 then return failed("cannot open", path) end
  local self = setmetatable({ fd = fd, path = path }, Lock)
  local how = (o.shared and LOCK_SH or LOCK_EX) + (o.wait and 0 or LOCK_NB)
  while libc.nibble_flock(fd, how) < 0 do
    local errno = ffi.errno()
    if errno == EWOULDBLOCK then
      local said = self:said()
      self:release()
      return nil, said, "ebusy"
    elseif errno ~= EINTR then
      local _, msg, code = failed("cannot lock", path)
      self:release()
      return nil, msg, code
    end
    local ok, why = pcall(nffi.stop_check)
    if not ok then
      self:release()
      error(why, 0)
    end
  end
  return self
end

--- lock:said() -> the file's text.
function Lock.said(l)
  local room = ffi.new "char[4096]"
  local n = libc.nibble_pread(l.fd, room, 4096, 0)
  return n > 0 and ffi.string(room, n) or ""
end

--- lock:say(text) -> true | nil, msg, code: what others read who find it held.
function Lock.say(l, text)
  if libc.nibble_ftruncate(l.fd, 0) < 0 or libc.nibble_pwrite(l.fd, text, #text, 0) ~= #text then
    return failed("cannot write", l.path)
  end
  return true
end

--- lock:release(): the file stays.
function Lock.release(l)
  if l.fd then libc.nibble_close(l.fd) end
  l.fd = nil
end

return M
