-- line: reading lines. On a terminal by libedit, through its readline-style calls:
-- editing, history, completion; elsewhere plainly.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local C = nffi.C
local keys = require "nibble.repl.keys"
local terminal = require "nibble.terminal"

local M = {}

ffi.cdef [[
  char *setlocale(int category, const char *name);
  char *nl_langinfo(int item);
  void *malloc(size_t bytes);
  void free(void *p);
  char *readline(const char *prompt);
  int rl_initialize(void);
  void using_history(void);
  int read_history(const char *path);
  int write_history(const char *path);
  void stifle_history(int lines);
  int add_history(const char *line);
  int rl_parse_and_bind(const char *line);
  int rl_insert_text(const char *text);
  void rl_forced_update_display(void);
  void rl_resize_terminal(void);
  void rl_prep_terminal(int meta);
  void rl_deprep_terminal(void);
  extern int (*rl_getc_function)(void *file);
  extern char **(*rl_attempted_completion_function)(const char *word, int from, int to);
  extern int rl_attempted_completion_over, rl_completion_append_character, rl_catch_signals;
  extern const char *rl_basic_word_break_characters;
  extern char *rl_line_buffer;
  extern const char *rl_readline_name;
]]

local HISTORY_PIECES = 2000
local LC_CTYPE, CODESET = 0, 14

-- What libedit is given for the word: one text, which takes the word's place.
local function to_array(text)
  local array = ffi.cast("char **", ffi.C.malloc(3 * ffi.sizeof "char *"))
  for i = 0, 1 do
    array[i] = ffi.cast("char *", ffi.C.malloc(#text + 1))
    ffi.copy(array[i], text)
  end
  array[2] = nil
  return array
end

-- The byte after `count` characters of UTF-8 text: libedit counts characters.
local function byte_offset(text, count)
  local at = 1
  for _ = 1, count do
    at = (text:match("^[%z\1-\127\194-\244][\128-\191]*()", at)) or at + 1
  end
  return at - 1
end

local function say_below(edit, text)
  io.write("\n", (text:gsub("\n*$", "")), "\n")
  io.flush()
  edit.rl_forced_update_display()
end

-- libedit's question: what the word may become. One Tab inserts what all candidates begin with, or lists them.
local function completer(edit, state)
  return function(_, from, to)
    edit.rl_attempted_completion_over = 1
    local ok, found = pcall(function()
      local buffer = ffi.string(edit.rl_line_buffer)
      local line = buffer:sub(1, byte_offset(buffer, to))
      return state.complete(line, line:sub(byte_offset(buffer, from) + 1))
    end)
    if not ok or not found then return nil end
    if found.show then say_below(edit, found.show) end
    return found.insert and to_array(found.insert) or nil
  end
end

local strings = {} -- what libedit keeps pointers to

local function keep(text)
  local copy = ffi.new("char[?]", #text + 1, text)
  strings[#strings + 1] = copy
  return copy
end

-- LC_CTYPE as the environment says, or UTF-8 where that is a bare C locale: which bytes make a character.
local function use_utf8()
  ffi.C.setlocale(LC_CTYPE, "")
  if ffi.string(ffi.C.nl_langinfo(CODESET)) ~= "UTF-8" then ffi.C.setlocale(LC_CTYPE, "C.UTF-8") end
end

-- What happens between keys: pasted text goes into the line, Tabs and all; the window may change.
local function between_keys(edit, state)
  local columns, rows = terminal.size(1)
  local last_look
  function state.paste(text)
    text = require("nibble.repl.pieces").clean(text):gsub("%s*\n%s*$", "")
    edit.rl_insert_text(text)
  end
  function state.look_again()
    last_look = nil
    state.tick(false)
  end
  function state.tick(cooked)
    local now_columns, now_rows = terminal.size(1)
    local changed = now_columns ~= columns or now_rows ~= rows
    columns, rows = now_columns, now_rows
    if cooked then -- libedit believes that it is still editing
      edit.rl_deprep_terminal()
      edit.rl_prep_terminal(1)
      io.write(keys.PASTE_ON)
      io.flush()
    end
    if changed then edit.rl_resize_terminal() end
    -- A long time between two looks: the process was stopped, and the screen may hold other things now.
    local now = C.nb_now()
    local stopped = last_look and now - last_look > 1
    last_look = now
    return changed or cooked or stopped
  end
end

local function edited(complete)
  local found, edit = pcall(ffi.load, "libedit.so.2")
  if not found then return nil end
  local state = { complete = complete }
  use_utf8()
  edit.rl_readline_name = keep "nibble"
  edit.rl_catch_signals = 0
  local getc = keys.reader(state)
  jit.off(getc, true)
  edit.rl_getc_function = ffi.cast("int (*)(void *)", getc)
  edit.rl_initialize()
  edit.rl_parse_and_bind(keep(("bind ^%s ed-redisplay"):format(string.char(keys.REDRAW + 64))))
  between_keys(edit, state)
  edit.rl_attempted_completion_function = ffi.cast("char **(*)(const char *, int, int)", completer(edit, state))
  edit.rl_basic_word_break_characters = keep " \t\n\"'[({,;=<>"
  edit.rl_completion_append_character = 0
  edit.using_history()
  edit.stifle_history(HISTORY_PIECES)
  local append, last = require("nibble.repl.history").open(edit, HISTORY_PIECES), nil

  local function call(prompt)
    state.interrupted, state.typed = false, false
    edit.rl_prep_terminal(1) -- libedit does it after the prompt: what was typed before would be echoed twice
    io.write(keys.PASTE_ON)
    io.flush()
    local p = edit.readline(prompt)
    io.write(keys.PASTE_OFF)
    io.flush()
    if p == nil then return nil end
    local text = ffi.string(p)
    ffi.C.free(p)
    return text
  end
  jit.off(call, true) -- libedit calls back into Lua

  local function read(prompt)
    state.look_again()
    local text = call(prompt)
    if state.interrupted then return nil, "interrupted", state.typed end
    return text
  end
  local function remember(text)
    if text == last or not text:find "%S" then return end
    last = text
    edit.add_history(text)
    append(text)
  end
  return read, remember
end

-- No editing: a pipe, a file, a dumb terminal. Prompts only where a person reads them.
local function plain()
  local person = ffi.C.isatty(0) == 1
  local prompts = ffi.C.isatty(1) == 1 and io.stdout or io.stderr
  return function(prompt)
    if person then
      prompts:write(prompt)
      prompts:flush()
    end
    local text = keys.line()
    if C.nb_stop_requested() ~= 0 then return nil, "interrupted" end
    return text
  end, function() end
end

--- reader(complete) -> read, remember
-- read(prompt) -> line | nil at the end of the input | nil, "interrupted", whether
-- something was typed before Ctrl-C. What was pasted may be several lines.
-- remember(text) enters it into the history. complete(line, word) -> {insert = text that takes word's place | nil,
-- show = text below the line | nil} | nil.
function M.reader(complete)
  if terminal.draws(0) and terminal.draws(1) and (os.getenv "TERM" or "") ~= "" then
    local read, remember = edited(complete)
    if read then return read, remember end
  end
  return plain()
end

return M
