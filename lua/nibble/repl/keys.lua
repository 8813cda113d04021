-- keys: the terminal's bytes as the characters that libedit edits with. Pasted text comes out whole (terminals mark
-- it when asked to), Ctrl-C and a changed window are seen while waiting.
local ffi = require "ffi"
local C = require("nibble.ffi").C
require "nibble.terminal" -- declares isatty

local M = {}

ffi.cdef [[
  struct nb_pollfd { int fd; short events, revents; };
  int poll(struct nb_pollfd *fds, unsigned long n, int timeout_ms);
  long read(int fd, void *to, size_t bytes);
  int tcgetattr(int fd, void *to);
]]

M.PASTE_ON, M.PASTE_OFF = "\27[?2004h", "\27[?2004l"

local CTRL_D, ESCAPE = 4, 27
M.REDRAW = 31 -- Ctrl-_, which line.lua binds to it
local PASTE_BEGINS, PASTE_ENDS = "[200~", "\27[201~"
local LOOK_MS, SEQUENCE_MS = 200, 30 -- between two looks at the stop flag; an escape sequence's bytes come together

local waiting, one, modes = ffi.new "struct nb_pollfd[1]", ffi.new "uint8_t[1]", ffi.new "uint32_t[32]"

local function ready(ms)
  waiting[0].fd, waiting[0].events = 0, 1
  return ffi.C.poll(waiting, 1, ms) > 0
end

--- line() -> a line as it is, without editing | nil at the end of the input and when Ctrl-C came. A signal just before
-- a read() begins would be lost to it: so a person's terminal is waited for first.
function M.line()
  while ffi.C.isatty(0) == 1 and not ready(LOOK_MS) do
    if C.nb_stop_requested() ~= 0 then return nil end
  end
  return io.read "*l"
end

local function byte() return ffi.C.read(0, one, 1) == 1 and one[0] or nil end

-- Local modes with ICANON: another program, or a stop and fg, took the terminal out of editing.
local function cooked() return ffi.C.tcgetattr(0, modes) == 0 and bit.band(modes[3], 2) ~= 0 end

-- The rest of an escape sequence as text: "[A", "OH", "b"; "" for the key itself.
local function sequence()
  local out = {}
  while #out < 16 and ready(SEQUENCE_MS) do
    local c = byte()
    if not c then break end
    out[#out + 1] = string.char(c)
    local first = out[1]
    if (first ~= "[" and first ~= "O") or (#out > 1 and c >= 0x40) then break end
  end
  return table.concat(out)
end

local characters = { "^[\194-\223][\128-\191]", "^\224[\160-\191][\128-\191]", "^\237[\128-\159][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]", "^\240[\144-\191][\128-\191][\128-\191]",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]", "^\244[\128-\143][\128-\191][\128-\191]" }

-- Bytes above ASCII as UTF-8; what is none becomes U+FFFD.
local function as_utf8(run)
  local out, at = {}, 1
  while at <= #run do
    local found
    for _, pattern in ipairs(characters) do found = found or run:match(pattern, at) end
    out[#out + 1] = found or "\239\191\189"
    at = at + #(found or "x")
  end
  return table.concat(out)
end

--- text(bytes) -> what an editor can hold of bytes: lines end in \n, no control characters but that and Tab, UTF-8.
function M.text(bytes)
  local lines = bytes:gsub("\r\n?", "\n"):gsub("[%z\1-\8\11-\31\127]", "")
  return (lines:gsub("[\128-\255]+", as_utf8))
end

-- What was pasted, up to the mark of its end; nil when Ctrl-C came instead.
local function pasted()
  local out, last = {}, ""
  while last ~= PASTE_ENDS do
    if C.nb_stop_requested() ~= 0 then return nil end
    if ready(LOOK_MS) then
      local c = byte()
      if not c then break end
      out[#out + 1] = string.char(c)
      last = (last .. out[#out]):sub(-#PASTE_ENDS)
    end
  end
  return M.text((table.concat(out):gsub("\27%[201~$", "")))
end

local UNKNOWN = 0xfffd -- in place of what is no UTF-8

-- The character that begins with byte c; a byte that doesn't belong to it goes into the queue.
local function character(c, queue)
  local more = c >= 0xf0 and 3 or c >= 0xe0 and 2 or c >= 0xc0 and 1 or 0
  if more == 0 or c > 0xf4 then return UNKNOWN end
  local code = bit.band(c, bit.rshift(0x3f, more))
  for _ = 1, more do
    local follows = ready(SEQUENCE_MS) and byte()
    if not follows then return UNKNOWN end
    if follows < 0x80 or follows >= 0xc0 then
      queue[#queue + 1] = follows
      return UNKNOWN
    end
    code = code * 64 + bit.band(follows, 0x3f)
  end
  local surrogate = code >= 0xd800 and code < 0xe000
  return (code > 0x10ffff or surrogate) and UNKNOWN or code
end

--- reader(state) -> function() -> code point, or -1 at the end of the input and when Ctrl-C came (libedit itself
-- would go on waiting): state.interrupted tells, state.typed whether something was typed before.
-- state.paste(text): takes what was pasted; state.tick(cooked) -> whether to draw the line anew: now and then while
-- nothing comes, cooked: the terminal has left editing.
function M.reader(state)
  local queue = {}
  local function key()
    repeat -- a signal just before poll() doesn't end it: so look again now and then
      if C.nb_stop_requested() ~= 0 then
        state.interrupted = true
        return -1
      end
      local came = ready(LOOK_MS)
      if not came and state.tick(cooked()) then return M.REDRAW end
    until came
    local c = byte()
    if not c then return -1 end
    if c == 0 then return CTRL_D end -- Ctrl-D that came before libedit had the terminal
    state.typed = true
    if c == ESCAPE then
      local rest = sequence()
      if rest == PASTE_BEGINS then
        local text = pasted()
        if text then state.paste(text) end
        return M.REDRAW
      end
      for i = 1, #rest do queue[i] = rest:byte(i) end
    end
    return c < 0x80 and c or character(c, queue)
  end
  return function()
    if queue[1] then return table.remove(queue, 1) end
    return key()
  end
end

return M
