-- progress: how far a long job is. On a terminal one line that is drawn over
-- itself; elsewhere a line per 10 %.
local ffi = require "ffi"
local units = require "nibble.units"
ffi.cdef "int isatty(int fd);"

local M = {}

--- terminal(fd) -> whether file descriptor fd (2 = stderr) is a terminal that draws.
function M.terminal(fd)
  return ffi.C.isatty(fd) == 1 and os.getenv "TERM" ~= "dumb"
end

--- colour(fd) -> whether colours may be used there (NO_COLOR obeyed).
function M.colour(fd)
  return M.terminal(fd) and (os.getenv "NO_COLOR" or "") == ""
end

local eighths = { [0] = "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" }

--- bar(share, cells) -> "████▌    " in `cells` columns, eighths of a cell.
function M.bar(share, cells)
  local n = math.floor(math.max(0, math.min(1, share)) * cells * 8 + 0.5)
  local full, rest = math.floor(n / 8), n % 8
  return ("█"):rep(full) .. eighths[rest] .. (" "):rep(cells - full - (rest > 0 and 1 or 0))
end

-- "model.layers.15.mlp.down_proj" -> "down_proj.15"
local function short(name)
  local layer = name:match "layers%.(%d+)%."
  local last = name:match "([^.]+)$"
  return layer and last ~= layer and ("%s.%s"):format(last, layer) or name
end

-- done/total, name, rate and time left of one report.
local function text(p)
  local share = p.total_bytes and p.total_bytes > 0 and p.bytes / p.total_bytes or p.done / math.max(p.total, 1)
  local parts = { ("%d/%d"):format(p.done, p.total) }
  if p.name then parts[#parts + 1] = short(p.name) end
  if p.bytes and p.seconds and p.seconds > 0 then parts[#parts + 1] = " " .. units.rate(p.bytes, p.seconds) end
  if p.seconds and share > 0 and share < 1 then
    parts[#parts + 1] = " ETA " .. units.seconds(p.seconds * (1 - share) / share)
  end
  return share, table.concat(parts, " ")
end

--- new([file]) -> report, finish
-- report{done=, total=, name=, bytes=, total_bytes=, seconds=}; finish() ends the line.
function M.new(file)
  file = file or io.stderr
  local tty, next_share, drawn, last_drawn = M.terminal(2), 0.1, false, -1
  local clock = require("nibble.ffi").C.nb_now
  local function report(p)
    local share, line = text(p)
    if tty then
      local now = clock()
      if now - last_drawn < 0.05 and share < 1 then return end
      last_drawn, drawn = now, true
      file:write("\r\27[K", M.bar(share, 9), " ", line)
      file:flush()
    elseif share >= next_share - 1e-9 then
      next_share = math.floor(share * 10 + 1e-9) / 10 + 0.1
      file:write(("nibble: %3d%%  %s\n"):format(math.floor(share * 100 + 1e-9), line))
      file:flush()
    end
  end
  local function finish()
    if drawn then file:write "\r\27[K" end
    drawn = false
  end
  return report, finish
end

return M
