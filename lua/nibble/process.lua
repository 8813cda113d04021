-- process: other programs, started without a shell: with posix_spawn, pipes, and what wait4 knows of their end.
local ffi = require "ffi"
local nffi = require "nibble.ffi"

-- Under names of our own: other modules may declare the same functions with other types.
ffi.cdef [[
typedef struct nibble_rusage { long user[2], system[2], maxrss, rest[13]; } nibble_rusage;
typedef struct nibble_pollfd { int fd; short events, revents; } nibble_pollfd;
typedef struct nibble_spawn { long opaque[64]; } nibble_spawn; /* larger than either of glibc's and musl's */
extern char **environ;
int nibble_spawnp(int *pid, const char *file, const nibble_spawn *actions, const nibble_spawn *attributes,
                  const char *const *argv, char **env) __asm__("posix_spawnp");
int nibble_actions_init(nibble_spawn *a) __asm__("posix_spawn_file_actions_init");
int nibble_actions_destroy(nibble_spawn *a) __asm__("posix_spawn_file_actions_destroy");
int nibble_actions_open(nibble_spawn *a, int fd, const char *path, int flags, unsigned mode)
  __asm__("posix_spawn_file_actions_addopen");
int nibble_actions_dup2(nibble_spawn *a, int from, int to) __asm__("posix_spawn_file_actions_adddup2");
int nibble_attributes_init(nibble_spawn *a) __asm__("posix_spawnattr_init");
int nibble_attributes_destroy(nibble_spawn *a) __asm__("posix_spawnattr_destroy");
int nibble_attributes_flags(nibble_spawn *a, short flags) __asm__("posix_spawnattr_setflags");
int nibble_pipe2(int *fds, int flags) __asm__("pipe2");
int nibble_close(int fd) __asm__("close");
long nibble_read(int fd, void *data, size_t bytes) __asm__("read");
long nibble_write(int fd, const void *data, size_t bytes) __asm__("write");
int nibble_poll(nibble_pollfd *fds, unsigned long n, int timeout_ms) __asm__("poll");
int nibble_wait4(int pid, int *status, int options, nibble_rusage *usage) __asm__("wait4");
int nibble_kill(int pid, int signal) __asm__("kill");
int nibble_getpid(void) __asm__("getpid");
int nibble_prctl(int option, unsigned long a, ...) __asm__("prctl");
char *nibble_strerror(int code) __asm__("strerror");
]]
local libc = ffi.C
local O_RDONLY, O_APPENDING, O_CLOEXEC = 0, 0x441, 0x80000 -- appending: O_WRONLY | O_CREAT | O_APPEND
local SETPGROUP, POLLIN, POLLERR, EINTR, PR_SET_PDEATHSIG = 2, 1, 8, 4, 1

local M = { SIGINT = 2, SIGKILL = 9, SIGTERM = 15 }
local Process = {}
Process.__index = Process

local names = { [1] = "hangup", [2] = "interrupt", [4] = "illegal instruction", [6] = "abort", [7] = "bus error: a file that shrank?",
  [8] = "arithmetic", [9] = "out of memory?", [11] = "segmentation fault", [15] = "terminated", [24] = "CPU time limit",
  [25] = "file size limit" }

local function strerror(code) return ffi.string(libc.nibble_strerror(code)) end

--- pid() -> this process's id.
function M.pid() return libc.nibble_getpid() end

--- host() -> this machine's name.
function M.host()
  local f = io.open "/proc/sys/kernel/hostname"
  local name = f and f:read "*l"
  if f then f:close() end
  return name or "localhost"
end

--- program() -> the path of nibble's executable, to be started again: this one, or of a module loaded elsewhere
-- the one of its tree or installation, or "nibble".
function M.program()
  if nffi.C == ffi.C then return "/proc/self/exe" end
  local here = debug.getinfo(1, "S").source:match "^@(.*)lua/nibble/process%.lua$" or ""
  local installed = debug.getinfo(1, "S").source:match "^@(.*)share/lua/5%.1/nibble/process%.lua$"
  local build = os.getenv "NIBBLE_BUILD"
  for _, path in ipairs { build and build .. "/nibble" or "", here .. "build/nibble", installed and installed .. "bin/nibble" or "" } do
    if nffi.C.nb_path_kind(path) == nffi.C.NB_PATH_FILE then return path end
  end
  return "nibble"
end

--- die_with_parent(fd) -> false when it has ended already: the kernel kills this process when the one that started it
-- ends. fd: of a pipe that the parent reads.
function M.die_with_parent(fd)
  libc.nibble_prctl(PR_SET_PDEATHSIG, M.SIGKILL)
  local pipe_end = ffi.new "nibble_pollfd[1]"
  pipe_end[0].fd = fd
  return libc.nibble_poll(pipe_end, 1, 0) ~= 1 or bit.band(pipe_end[0].revents, POLLERR) == 0
end

-- A pipe: the end to read from, the end to write into.
local function pipe()
  local fds = ffi.new "int[2]"
  if libc.nibble_pipe2(fds, O_CLOEXEC) < 0 then error("cannot make a pipe: " .. strerror(ffi.errno()), 0) end
  return fds[0], fds[1]
end

--- spawn{program, argument, …, pipes = {[1] = true}, log = path} -> process | nil, msg, code
-- Started without a shell, looked for in PATH, in a process group of its own (Ctrl-C at the terminal is this process's to
-- pass on), standard input empty. pipes: its file descriptors that p.pipes[fd] reads from; log: a file that standard
-- output and error are appended to. argv0: its own name for itself.
function M.spawn(o)
  local actions, attributes, pid = ffi.new "nibble_spawn", ffi.new "nibble_spawn", ffi.new "int[1]"
  local argv, self, theirs = ffi.new("const char *[?]", #o + 1), setmetatable({ pipes = {} }, Process), {}
  for i, word in ipairs(o) do argv[i - 1] = word end
  if o.argv0 then argv[0] = o.argv0 end
  libc.nibble_actions_init(actions)
  libc.nibble_attributes_init(attributes)
  libc.nibble_attributes_flags(attributes, SETPGROUP)
  libc.nibble_actions_open(actions, 0, "/dev/null", O_RDONLY, 0)
  if o.log then
    libc.nibble_actions_open(actions, 1, o.log, O_APPENDING, 438)
    libc.nibble_actions_dup2(actions, 1, 2)
  end
  for fd in pairs(o.pipes or {}) do
    self.pipes[fd], theirs[fd] = pipe()
    libc.nibble_actions_dup2(actions, theirs[fd], fd)
  end
  local rc = libc.nibble_spawnp(pid, o[1], actions, attributes, argv, libc.environ)
  libc.nibble_actions_destroy(actions)
  libc.nibble_attributes_destroy(attributes)
  for _, fd in pairs(theirs) do libc.nibble_close(fd) end
  if rc ~= 0 then
    self:close()
    return nil, ("cannot start %s: %s"):format(o[1], strerror(rc)), "eio"
  end
  self.pid = pid[0]
  return self
end

--- p:close(): the pipes.
function Process.close(p)
  for _, fd in pairs(p.pipes) do libc.nibble_close(fd) end
  p.pipes = {}
end

--- p:kill(signal)
function Process.kill(p, signal)
  if not p.ended then libc.nibble_kill(p.pid, signal) end
end

--- p:wait() -> {status = 0…255 or nil, signal = its number or nil, peak_bytes =, cpu_seconds =}: when it has ended.
-- cpu_seconds: its own and those of the programs that it waited for.
function Process.wait(p)
  if p.ended then return p.ended end
  local status, usage = ffi.new "int[1]", ffi.new "nibble_rusage"
  while libc.nibble_wait4(p.pid, status, 0, usage) < 0 do
    if ffi.errno() ~= EINTR then break end
  end
  p:close()
  local signal = bit.band(status[0], 127)
  p.ended = { status = signal == 0 and bit.rshift(status[0], 8) or nil, signal = signal ~= 0 and signal or nil,
              peak_bytes = tonumber(usage.maxrss) * 1024,
              cpu_seconds = tonumber(usage.user[0] + usage.system[0]) + tonumber(usage.user[1] + usage.system[1]) * 1e-6 }
  return p.ended
end

--- killed(signal) -> "killed by signal 9 (out of memory?)"
function M.killed(signal)
  return ("killed by signal %d%s"):format(signal, names[signal] and " (" .. names[signal] .. ")" or "")
end

--- poll(fds, seconds) -> {[fd] = text | false}: what has come from these file descriptors, false at an end;
-- empty when the time is over or a signal came first.
function M.poll(fds, seconds)
  local list, out, room = ffi.new("nibble_pollfd[?]", math.max(#fds, 1)), {}, ffi.new "char[4096]"
  for i, fd in ipairs(fds) do list[i - 1].fd, list[i - 1].events = fd, POLLIN end
  if libc.nibble_poll(list, #fds, math.floor(seconds * 1000)) <= 0 then return out end
  for i, fd in ipairs(fds) do
    if list[i - 1].revents ~= 0 then
      local n = libc.nibble_read(fd, room, 4096)
      if n >= 0 then out[fd] = n > 0 and ffi.string(room, n) end
    end
  end
  return out
end

--- write(fd, text): as much as goes at once; a reader that is gone doesn't matter.
function M.write(fd, text) libc.nibble_write(fd, text, #text) end

--- run{program, argument, …} -> {out =, err =, and p:wait()'s} | nil, msg, code
-- Waits for the program and keeps what it prints. Ctrl-C ends it and raises "interrupted".
function M.run(o)
  local p, msg, code = M.spawn { pipes = { [1] = true, [2] = true }, unpack(o) }
  if not p then return nil, msg, code end
  local names_of, texts, open = { [p.pipes[1]] = 1, [p.pipes[2]] = 2 }, { {}, {} }, { p.pipes[1], p.pipes[2] }
  while #open > 0 do
    local ok, why = pcall(nffi.stop_check)
    if not ok then
      p:kill(M.SIGTERM)
      p:wait()
      error(why, 0)
    end
    local came = M.poll(open, 0.5)
    for i = #open, 1, -1 do
      local text = came[open[i]]
      if text then table.insert(texts[names_of[open[i]]], text) elseif text == false then table.remove(open, i) end
    end
  end
  local ended = p:wait()
  ended.out, ended.err = table.concat(texts[1]), table.concat(texts[2])
  return ended
end

return M
