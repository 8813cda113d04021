-- The executable on a terminal of its own: what a person types and sees.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local command = require "spec.support.command"

local M = {}

ffi.cdef [[
  struct spec_pollfd { int fd; short events, revents; };
  struct spec_winsize { unsigned short rows, columns, width_px, height_px; };
  int openpty(int *master, int *slave, char *name, const void *termios, const void *window);
  int forkpty(int *master, char *name, const void *termios, const void *window);
  int ioctl(int fd, unsigned long request, ...);
  int execv(const char *path, char *const argv[]);
  int setenv(const char *name, const char *value, int overwrite);
  int kill(int pid, int signal);
  int waitpid(int pid, int *status, int options);
  int poll(struct spec_pollfd *fds, unsigned long n, int ms);
  long read(int fd, void *to, size_t n);
  long write(int fd, const void *from, size_t n);
  int close(int fd);
  void _exit(int status);
]]

local methods = {}
local terminal_mt = { __index = methods }

local TIOCSWINSZ = 0x5414

local function window(columns, rows) return ffi.new("struct spec_winsize[1]", { { rows = rows, columns = columns } }) end

--- here() -> whether this system has terminals: not in a bare chroot without /dev/pts.
function M.here()
  local fds = ffi.new "int[2]"
  if ffi.C.openpty(fds, fds + 1, nil, nil, nil) ~= 0 then return false end
  ffi.C.close(fds[0])
  ffi.C.close(fds[1])
  return true
end

--- start(args, env [, columns = 80, rows = 24]) -> a process on a new terminal | nil where there are none
-- (a bare chroot without /dev/pts). env: {NAME = value}.
function M.start(args, env, columns, rows)
  local argv = ffi.new("const char *[?]", #args + 2)
  argv[0] = command.program
  for i, a in ipairs(args) do argv[i] = a end
  local master = ffi.new "int[1]"
  local pid = ffi.C.forkpty(master, nil, nil, window(columns or 80, rows or 24))
  if pid == 0 then
    for k, v in pairs(env or {}) do ffi.C.setenv(k, v, 1) end
    ffi.C.execv(command.program, ffi.cast("char *const *", argv))
    ffi.C._exit(127)
  end
  if pid < 0 then return nil end
  return setmetatable({ pid = pid, fd = master[0], seen = "" }, terminal_mt)
end

--- t:send(text)
function methods.send(t, text) ffi.C.write(t.fd, text, #text) end

--- t:resize(columns, rows): the window's new size; the process gets SIGWINCH.
function methods.resize(t, columns, rows) ffi.C.ioctl(t.fd, TIOCSWINSZ, window(columns, rows)) end

--- t:expect(text [, seconds]) -> everything up to text since the last match | nil, what came instead
function methods.expect(t, text, seconds)
  local waiting, bytes = ffi.new "struct spec_pollfd[1]", ffi.new "char[4096]"
  local deadline = C.nb_now() + (seconds or 10)
  while true do
    local from, to = t.seen:find(text, 1, true)
    if from then
      local before = t.seen:sub(1, to)
      t.seen = t.seen:sub(to + 1)
      return before
    end
    waiting[0].fd, waiting[0].events = t.fd, 1
    ffi.C.poll(waiting, 1, 50)
    local n = bit.band(waiting[0].revents, 1) == 1 and tonumber(ffi.C.read(t.fd, bytes, 4096)) or 0
    -- What turns the marks of pasted text on and off shows nothing.
    if n > 0 then t.seen = (t.seen .. ffi.string(bytes, n)):gsub("\27%[%?2004[hl]", "") end
    if (n <= 0 and bit.band(waiting[0].revents, 0x38) ~= 0) or C.nb_now() > deadline then return nil, t.seen end
  end
end

--- t:close() -> exit status (128 + signal when killed); kills what still runs after 5 s.
function methods.close(t)
  local status, deadline = ffi.new "int[1]", os.time() + 5
  while ffi.C.waitpid(t.pid, status, 1) == 0 do
    t:expect("\0", 0.2)
    ffi.C.poll(nil, 0, 5)
    if os.time() > deadline then ffi.C.kill(t.pid, 9) end
  end
  ffi.C.close(t.fd)
  local signal = bit.band(status[0], 0x7f)
  return signal == 0 and bit.band(bit.rshift(status[0], 8), 0xff) or 128 + signal
end

return M
