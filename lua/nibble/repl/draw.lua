-- draw: grids, bars and lines as text: in colours where the terminal has them, in shades and dots where it has not.
local show = require "nibble.show"

local M = {}

local floor, max, min = math.floor, math.max, math.min

-- ---- colours -----------------------------------------------------------------------------------

-- Red, green and blue from the least to the greatest value: dark blue to yellow for magnitudes (readable in shades of
-- grey, too), blue over near-white to red where the middle is 0.
local ramps = {
  magnitude = { { 48, 18, 80 }, { 60, 78, 138 }, { 38, 130, 142 }, { 83, 182, 105 }, { 253, 231, 37 } },
  signed = { { 33, 102, 172 }, { 146, 197, 222 }, { 247, 247, 247 }, { 244, 165, 130 }, { 178, 24, 43 } },
}

local function colour_at(ramp, share)
  local at = max(0, min(1, share)) * (#ramp - 1)
  local i = min(#ramp - 1, floor(at) + 1)
  local out, part = {}, at - (i - 1)
  for c = 1, 3 do out[c] = floor(ramp[i][c] + (ramp[i + 1][c] - ramp[i][c]) * part + 0.5) end
  return out
end

-- The escape sequence's numbers for a colour as the foreground (38) or background (48).
local function code(rgb, ground, colours)
  if colours > 256 then return ("%d;2;%d;%d;%d"):format(ground, rgb[1], rgb[2], rgb[3]) end
  local function level(v) return v < 48 and 0 or v < 115 and 1 or floor((v - 35) / 40) end
  return ("%d;5;%d"):format(ground, 16 + 36 * level(rgb[1]) + 6 * level(rgb[2]) + level(rgb[3]))
end

local RESET = "\27[0m"
local shades = { " ", "░", "▒", "▓", "█" }

-- ---- grids -------------------------------------------------------------------------------------

local odd_colour = { 255, 0, 255 } -- NaN: a colour that no ramp has

-- Two rows of cells as one line: the upper half block in front of the lower one's colour.
local function colour_line(upper, lower, ramp, colours)
  local out, last = {}, nil
  for c = 1, #upper do
    local top = upper[c] == upper[c] and colour_at(ramp, upper[c]) or odd_colour
    local code_top, below = code(top, 38, colours), lower and lower[c]
    local pair = code_top
    if lower then pair = pair .. ";" .. code(below == below and colour_at(ramp, below) or odd_colour, 48, colours) end
    out[#out + 1] = (pair ~= last and "\27[" .. pair .. "m" or "") .. "▀"
    last = pair
  end
  return table.concat(out) .. RESET
end

local function shade_line(row)
  local out = {}
  for c, share in ipairs(row) do out[c] = share ~= share and "×" or shades[min(5, floor(max(0, share) * 5) + 1)] end
  return table.concat(out)
end

--- grid(rows, colours [, signed]) -> lines: rows of shares (0 the least, 1 the greatest, NaN an odd cell), in colours (256
-- or more: two rows a line) or in shades (a row a line).
function M.grid(rows, colours, signed)
  local out, ramp = {}, signed and ramps.signed or ramps.magnitude
  if colours < 256 then
    for r, row in ipairs(rows) do out[r] = shade_line(row) end
    return out
  end
  for r = 1, #rows, 2 do out[#out + 1] = colour_line(rows[r], rows[r + 1], ramp, colours) end
  return out
end

--- legend(lo, hi, colours [, signed]) -> "0.01 ░▒▓█ 0.4": what the ends of the scale are.
function M.legend(lo, hi, colours, signed)
  local cells, row = colours < 256 and 5 or 16, {}
  for i = 1, cells do row[i] = (i - 0.5) / cells end
  local bar = colours < 256 and shade_line(row) or colour_line(row, row, signed and ramps.signed or ramps.magnitude, colours)
  return ("%.3g %s %.3g"):format(lo, bar, hi)
end

-- ---- bars --------------------------------------------------------------------------------------

local upward = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" }
local rightward = { "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█" }

--- bar(share, cells) -> a horizontal bar of at most `cells` columns; what is more than nothing is seen.
function M.bar(share, cells)
  local eighths = share > 0 and max(1, floor(share * cells * 8 + 0.5)) or 0
  local rest = eighths % 8
  return ("█"):rep(floor(eighths / 8)) .. (rest > 0 and rightward[rest] or "")
end

--- bars(shares, height) -> `height` lines, the top one first: a vertical bar a share (0 to 1).
function M.bars(shares, height)
  local out = {}
  for line = height, 1, -1 do
    local cells = {}
    for i, share in ipairs(shares) do
      local eighths = (share > 0 and max(1, floor(share * height * 8 + 0.5)) or 0) - (line - 1) * 8
      cells[i] = eighths <= 0 and " " or upward[min(8, eighths)]
    end
    out[#out + 1] = table.concat(cells)
  end
  return out
end

-- ---- a line ------------------------------------------------------------------------------------

-- The bits of Braille's dots by row (from the top) and column of a character's 4 × 2.
local dots = { { 0x01, 0x08 }, { 0x02, 0x10 }, { 0x04, 0x20 }, { 0x40, 0x80 } }

local function braille(bits)
  return string.char(0xe2, 0xa0 + floor(bits / 64), 0x80 + bits % 64)
end

--- line(shares, width, height) -> `height` lines of `width` columns: a curve through shares (0 to 1, NaN: a gap), dots of
-- Braille, two columns and four rows a character.
function M.line(shares, width, height)
  local cells, across, down = {}, width * 2, height * 4
  for line = 1, height do
    cells[line] = {}
    for c = 1, width do cells[line][c] = 0 end
  end
  local function dot(x, y) -- from the left and the top, from 0
    local row, bits = cells[floor(y / 4) + 1], dots[y % 4 + 1][x % 2 + 1]
    local at = floor(x / 2) + 1
    row[at] = bit.bor(row[at], bits)
  end
  local last
  for x = 0, across - 1 do
    local at = #shares == 1 and 1 or 1 + x * (#shares - 1) / (across - 1)
    local i = min(#shares, floor(at))
    local a, b = shares[i], shares[min(#shares, i + 1)]
    local v = a + (b - a) * (at - i)
    if at == i then v = a end
    if v ~= v then
      last = nil
    else
      local y = down - 1 - floor(max(0, min(1, v)) * (down - 1) + 0.5)
      for between = min(y, last or y), max(y, last or y) do dot(x, between) end
      last = y
    end
  end
  local out = {}
  for line = 1, height do
    for c = 1, width do cells[line][c] = braille(cells[line][c]) end
    out[line] = table.concat(cells[line])
  end
  return out
end

--- beside(labels, lines) -> lines with labels before them, right-aligned: labels[i] for line i, or none.
function M.beside(labels, lines)
  local width, out = 0, {}
  for _, label in pairs(labels) do width = max(width, show.width(label)) end
  for i, line in ipairs(lines) do
    local label = labels[i] or ""
    out[i] = (" "):rep(width - show.width(label)) .. label .. (width > 0 and " " or "") .. line
  end
  return out, width > 0 and width + 1 or 0
end

return M
