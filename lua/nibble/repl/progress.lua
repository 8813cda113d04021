-- progress: how far a long job is. On a terminal one line that is drawn over
-- itself; elsewhere a line per 10 %.
local units = require "nibble.units"
local terminal = require "nibble.terminal"

local M = {}

--- terminal(fd) -> whether file descriptor fd (2 = stderr) is a terminal that draws.
M.terminal = terminal.draws

--- colour(fd) -> whether colours may be used there (NO_COLOR obeyed).
function M.colour(fd) return terminal.colours(fd) > 0 end

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

local function share_of(p)
  if p.share then return p.share end
  if (p.total_bytes or 0) > 0 then return p.bytes / p.total_bytes end
  return p.done / math.max(p.total, 1)
end

-- done/total, name, rate and time left of one report.
local function text(p)
  local share = share_of(p)
  local parts = { p.total and ("%d/%d"):format(p.done, p.total) or ("%d %s"):format(p.done, p.unit) }
  if p.name then parts[#parts + 1] = short(p.name) end
  if (p.seconds or 0) > 0 then
    parts[#parts + 1] = " " .. (p.bytes and units.rate(p.bytes, p.seconds)
      or ("%s %s/s"):format(units.count((p.tokens or p.done) / p.seconds), p.tokens and "tokens" or p.unit or ""))
  end
  if p.seconds and share > 0 and share < 1 then
    parts[#parts + 1] = " ETA " .. units.seconds(p.seconds * (1 - share) / share)
  end
  return share, table.concat(parts, " ")
end

--- new([file]) -> report, finish
-- report{done=, total=, name=, bytes=, total_bytes=, seconds=}, or, of something
-- else than modules and bytes, {done=, unit="tokens", share=0..1, seconds=};
-- finish() ends the line.
function M.new(file)
  file = file or io.stderr
  local fd = file == io.stdout and 1 or 2
  local tty, next_share, drawn, last_drawn = M.terminal(fd), 0.1, false, -1
  local last_share = 0
  local clock = require("nibble.ffi").C.nb_now
  local function report(p)
    local share, line = text(p)
    if share < last_share then next_share = 0.1 end -- another part of the job
    last_share = share
    if tty then
      local now = clock()
      if now - last_drawn < 0.05 and share < 1 then return end
      last_drawn, drawn = now, true
      -- A line that wrapped could not be drawn over.
      local drawing = M.bar(share, 9) .. " " .. line
      file:write("\r\27[K", require("nibble.show").cut(drawing, (terminal.width(fd) or 80) - 1))
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
