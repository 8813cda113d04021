-- line: reading lines. On a terminal by libedit, through its readline-style calls:
-- editing, history, completion; elsewhere plainly.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C = nffi.C
local progress = require "nibble.repl.progress"

local M = {}

ffi.cdef [[
  struct nb_pollfd { int fd; short events, revents; };
  int poll(struct nb_pollfd *fds, unsigned long n, int timeout_ms);
  long read(int fd, void *to, size_t bytes);
  char *setlocale(int category, const char *name);
  void *malloc(size_t bytes);
  void free(void *p);
  char *readline(const char *prompt);
  int rl_initialize(void);
  void using_history(void);
  int read_history(const char *path);
  int write_history(const char *path);
  void stifle_history(int lines);
  int add_history(const char *line);
  void rl_forced_update_display(void);
  extern int (*rl_getc_function)(void *file);
  extern char **(*rl_attempted_completion_function)(const char *word, int from, int to);
  extern int rl_attempted_completion_over, rl_completion_append_character, rl_catch_signals;
  extern const char *rl_basic_word_break_characters;
  extern char *rl_line_buffer;
  extern const char *rl_readline_name;
]]

local HISTORY_LINES = 2000
local CTRL_D = 4

-- One character of the terminal as a code point, -1 at the end of the input or
-- when Ctrl-C came: libedit itself would go on waiting then.
local function reader(state)
  local bytes, waiting = ffi.new "uint8_t[1]", ffi.new "struct nb_pollfd[1]"
  local function byte()
    return ffi.C.read(0, bytes, 1) == 1 and bytes[0] or nil
  end
  return function()
    waiting[0].fd, waiting[0].events = 0, 1
    repeat -- a signal just before poll() doesn't end it: so look again now and then
      if C.nb_stop_requested() ~= 0 then
        state.interrupted = true
        return -1
      end
    until ffi.C.poll(waiting, 1, 250) > 0
    local c = byte()
    if not c then return -1 end
    if c == 0 then return CTRL_D end -- Ctrl-D that came before libedit had the terminal
    if c > 32 then state.typed = true end
    if c < 0xc0 then return c end
    local more = c >= 0xf0 and 3 or c >= 0xe0 and 2 or 1
    local code = bit.band(c, bit.rshift(0x3f, more))
    for _ = 1, more do code = code * 64 + bit.band(byte() or 0, 0x3f) end
    return code
  end
end

local function common_prefix(words)
  local prefix = words[1]
  for _, w in ipairs(words) do
    while w:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

-- The candidates as libedit takes them: its own to free, the common beginning first.
local function to_array(words)
  local all = { common_prefix(words), unpack(words) }
  local array = ffi.cast("char **", ffi.C.malloc((#all + 1) * ffi.sizeof "char *"))
  for i, w in ipairs(all) do
    array[i - 1] = ffi.cast("char *", ffi.C.malloc(#w + 1))
    ffi.copy(array[i - 1], w)
  end
  array[#all] = nil
  return array
end

local function completer(edit, state)
  return function(_, from, to)
    edit.rl_attempted_completion_over = 1
    local ok, found = pcall(function()
      local line = ffi.string(edit.rl_line_buffer):sub(1, to)
      return state.complete(line, line:sub(from + 1))
    end)
    if not ok or (found and type(found) ~= "table") then return nil end
    if not found then -- inside of a string: libedit completes file names
      edit.rl_attempted_completion_over = 0
      return nil
    end
    if found.hint then
      io.write("\n", found.hint, "\n")
      io.flush()
      edit.rl_forced_update_display()
      return nil
    end
    return #found > 0 and to_array(found) or nil
  end
end

local function history_path()
  local home = os.getenv "HOME"
  local state = os.getenv "XDG_STATE_HOME"
  if not state or state == "" then state = home and home .. "/.local/state" end
  return state and state .. "/nibble/history"
end

local strings = {} -- what libedit keeps pointers to

local function keep(text)
  local copy = ffi.new("char[?]", #text + 1, text)
  strings[#strings + 1] = copy
  return copy
end

local function edited(complete)
  local found, edit = pcall(ffi.load, "libedit.so.2")
  if not found then return nil end
  local state = { complete = complete }
  ffi.C.setlocale(0, "") -- LC_CTYPE: which bytes make a character
  edit.rl_readline_name = keep "nibble"
  edit.rl_catch_signals = 0
  edit.rl_getc_function = ffi.cast("int (*)(void *)", reader(state))
  edit.rl_initialize()
  edit.rl_attempted_completion_function = ffi.cast("char **(*)(const char *, int, int)", completer(edit, state))
  edit.rl_basic_word_break_characters = keep " \t\n\"'[({,;=<>"
  edit.rl_completion_append_character = 0
  edit.using_history()
  edit.stifle_history(HISTORY_LINES)
  local path, last = history_path(), nil
  if path and require("nibble.checkpoint").mkdir(path:match "^(.*)/") then edit.read_history(path) end

  local function call(prompt)
    state.interrupted, state.typed = false, false
    local p = edit.readline(prompt)
    if p == nil then return nil end
    local text = ffi.string(p)
    ffi.C.free(p)
    return text
  end
  jit.off(call, true) -- libedit calls back into Lua

  local function read(prompt)
    local text = call(prompt)
    if state.interrupted then return nil, "interrupted", state.typed end
    return text
  end
  local function remember(text)
    if text == last or not text:find "%S" then return end
    last = text
    edit.add_history(text)
    if path then edit.write_history(path) end
  end
  return read, remember
end

local function plain()
  return function(prompt)
    if progress.terminal(0) then io.write(prompt) io.flush() end
    local text = io.read "*l"
    if C.nb_stop_requested() ~= 0 then return nil, "interrupted" end
    return text
  end, function() end
end

--- reader(complete) -> read, remember
-- read(prompt) -> line | nil at the end of the input | nil, "interrupted", whether
-- something was typed before Ctrl-C.
-- remember(text) enters it into the history. complete(line, word) -> array of
-- words | {hint = text} | nil (file names).
function M.reader(complete)
  if progress.terminal(0) and progress.terminal(1) then
    local read, remember = edited(complete)
    if read then return read, remember end
  end
  return plain()
end

return M
