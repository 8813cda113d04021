-- terminal: what the terminal behind a file descriptor is like: whether it draws, its size, its colours.
local ffi = require "ffi"

local M = {}

ffi.cdef [[
  int isatty(int fd);
  int ioctl(int fd, unsigned long request, ...);
  struct nb_winsize { unsigned short rows, columns, width_px, height_px; };
]]

local TIOCGWINSZ = 0x5413 -- Linux, every architecture that nibble runs on

--- draws(fd) -> whether file descriptor fd (1 = stdout, 2 = stderr) is a terminal that draws.
function M.draws(fd) return ffi.C.isatty(fd) == 1 and os.getenv "TERM" ~= "dumb" end

--- size([fd = 1]) -> columns, rows of the terminal behind fd | nil where there is none.
-- A terminal that doesn't know its size (a serial line) has COLUMNS and LINES of the environment, or 80 by 24.
function M.size(fd)
  if ffi.C.isatty(fd or 1) ~= 1 then return nil end
  local size = ffi.new "struct nb_winsize[1]"
  local known = ffi.C.ioctl(fd or 1, TIOCGWINSZ, size) == 0
  local function of(found, variable, default)
    if known and found > 0 then return tonumber(found) end
    local said = tonumber(os.getenv(variable) or "")
    return said and said >= 1 and math.floor(said) or default
  end
  return of(size[0].columns, "COLUMNS", 80), of(size[0].rows, "LINES", 24)
end

--- width([fd = 1]) -> columns of the terminal behind fd | nil where there is none: what show.columns cuts to.
function M.width(fd) return (M.size(fd)) end

--- colours(fd) -> how many colours may be used there: 0 (no terminal, a dumb one, NO_COLOR), 8, 256 or 2^24.
function M.colours(fd)
  if not M.draws(fd) or (os.getenv "NO_COLOR" or "") ~= "" then return 0 end
  local deep, name = os.getenv "COLORTERM" or "", os.getenv "TERM" or ""
  if deep:find "truecolor" or deep:find "24bit" or name:find "direct" then return 2 ^ 24 end
  return name:find "256" and 256 or 8
end

return M
