-- show: values as text: columns, a tensor's one line with a sparkline, a corner of its values, a comparison.
local units = require "nibble.units"
local C = require("nibble.ffi").C

local M = {}

--- width(text) -> columns that UTF-8 text takes on a terminal; colours take none.
function M.width(text)
  if not text:find "[^\32-\126]" then return #text end
  return tonumber(C.nb_text_columns(text, #text))
end

--- printable(text) -> text whose control characters, which a file's names may hold, are replaced; colours stay.
function M.printable(text)
  if not text:find "[%z\1-\31\127\194]" then return text end
  text = text:gsub("()([%z\1-\31\127])", function(at, c)
    return not (c == "\27" and text:find("^%[[%d;]*m", at + 1)) and "�" or nil
  end)
  return (text:gsub("\194[\128-\159]", "�"))
end

-- Text as its characters and colours, each with its width.
local function pieces(text)
  local out, at = {}, 1
  while at <= #text do
    local piece = text:match("^\27%[[%d;]*m", at) or text:match("^[\194-\244][\128-\191]+", at) or text:sub(at, at)
    out[#out + 1] = { piece, M.width(piece) }
    at = at + #piece
  end
  return out
end

--- cut(text, columns [, middle]) -> text in at most so many columns: what is left out at the end, or in the middle,
-- is an ellipsis (in the middle: more of the end stays, which tells names apart). Colours stay.
function M.cut(text, columns, middle)
  if M.width(text) <= columns then return text end
  if columns < 1 then return "" end
  local head = middle and math.floor((columns - 1) / 3) or columns - 1
  local list, out, used = pieces(text), {}, 0
  local tail_first, tail = #list + 1, columns - 1 - head
  while tail_first > 1 and list[tail_first - 1][2] <= tail do
    tail_first = tail_first - 1
    tail = tail - list[tail_first][2]
  end
  local cutting = false
  for i, piece in ipairs(list) do
    if i >= tail_first or piece[2] == 0 or (not cutting and used + piece[2] <= head) then
      out[#out + 1], used = piece[1], used + piece[2]
    elseif not cutting then
      out[#out + 1], cutting = "…", true
    end
  end
  return table.concat(out)
end

-- A name is not cut below this many columns as long as another column can give way.
local LEAST_NAME = 24

-- How many columns of the terminal too many a line of such cells takes.
local function excess(widths, width)
  local sum = 2 * (#widths - 1)
  for _, w in ipairs(widths) do sum = sum + w end
  return sum - width
end

-- Column widths that fit into `width`: names (the first column) shortened first, then the last column where it is
-- text, then columns given up from the right, and names again.
local function fit(widths, align, width)
  local function shrink(i, least)
    widths[i] = math.max(math.min(widths[i], least), widths[i] - math.max(0, excess(widths, width)))
  end
  if #widths > 0 then shrink(1, LEAST_NAME) end
  while excess(widths, width) > 0 and #widths > 1 do
    if align:sub(#widths, #widths) ~= "r" then shrink(#widths, LEAST_NAME) end
    if excess(widths, width) > 0 then widths[#widths] = nil end
  end
  if #widths > 0 then shrink(1, 1) end
end

local function line_of(row, widths, align, width)
  local line = {}
  for i = 1, math.min(#row, #widths) do
    local cell = M.printable(row[i])
    if width then cell = M.cut(cell, widths[i], i == 1) end
    local blanks = (" "):rep(widths[i] - M.width(cell))
    line[i] = align:sub(i, i) == "r" and blanks .. cell or cell .. blanks
  end
  return (table.concat(line, "  "):gsub("%s+$", ""))
end

--- columns(rows, align [, width [, total]]) -> text: rows of cells, two blanks between columns.
-- align: one letter per column, "l" or "r"; the last left column isn't padded. width: the columns of the terminal
-- that it is cut to (terminal.width(); nil: not cut): names, in the first column, are shortened in the middle, a
-- last column of text at its end, and what still has no room is left out from the right. total: a last row that is
-- always whole; where the table is cut it stands below it, as a line of its own.
function M.columns(rows, align, width, total)
  local widths = {}
  local function widen(row)
    for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, M.width(M.printable(cell))) end
  end
  for _, row in ipairs(rows) do widen(row) end
  local apart = total and width and excess(widths, width) > 0
  if total and not apart then
    widen(total)
    apart = width and excess(widths, width) > 0
  end
  if width then fit(widths, align, width) end
  local out = {}
  for r, row in ipairs(rows) do out[r] = line_of(row, widths, align, width) end
  if apart then out[#out + 1] = table.concat(total, "  "):gsub("   +", "  ")
  elseif total then out[#out + 1] = line_of(total, widths, align) end
  return table.concat(out, "\n") .. "\n"
end

local bars = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" }

--- sparkline(values) -> text: one bar a value, the highest for the greatest.
function M.sparkline(values)
  local top, out = 0, {}
  for _, v in ipairs(values) do top = math.max(top, v) end
  for i, v in ipairs(values) do
    out[i] = bars[top > 0 and math.max(1, math.min(8, math.ceil(v / top * 8))) or 1]
  end
  return table.concat(out)
end

local function shape_text(t)
  return ("%s [%s]"):format(t:type(), table.concat(t:size(), "×"))
end

-- A part of a large tensor that stands for it: leading rows of about this many elements.
local sample_elements = 4 * 1024 * 1024

local function sample(t)
  if t.ndim < 1 or t:numel() <= 2 * sample_elements then return t, "" end
  local rows = math.max(1, math.floor(sample_elements / (t:numel() / t:size(1))))
  return t:rows(1, rows), "≈"
end

--- line(t) -> "bf16 [4096×12288]  96 MiB  absmax 1.94  std 0.021  ▁▁▂▅█▅▂▁▁"
-- Large tensors are judged by their leading rows, and say so by ≈.
function M.line(t)
  local text = ("%s  %s"):format(shape_text(t), units.bytes(t:bytes()))
  if t:numel() == 0 or t:type() == "c64" then return text end
  if t:numel() == 1 then return ("%s  %.6g"):format(text, t:get(1)) end
  local part, about = sample(t)
  local ok, s = pcall(part.stats, part)
  if not ok then return text end -- rows of a sub-byte dtype that don't end on a byte
  local odd = ""
  if s.nan > 0 then odd = odd .. ("  %d NaN"):format(s.nan) end
  if s.inf > 0 then odd = odd .. ("  %d inf"):format(s.inf) end
  if s.zeros == s.numel then return text .. "  all zero" end
  if s.nan + s.inf == s.numel then return text .. odd end
  -- The middle holds nearly everything: ± 4 standard deviations are shown.
  local reach = math.min(s.absmax, math.max(math.abs(s.mean) + 4 * s.std, 1e-300))
  local hist = part:hist(9, s.min < 0 and -reach or 0, reach)
  return ("%s  absmax %s%.3g  std %.2g%s  %s"):format(text, about, s.absmax, s.std, odd, M.sparkline(hist))
end

-- "0.0123", in at most 10 columns.
local function number_text(v)
  if v == math.floor(v) and math.abs(v) < 1e6 then return ("%d"):format(v) end
  return ("%.4g"):format(v)
end

-- The leading values of a tensor on a device, in the computer's memory: rows of its last dimension | nil, msg
local MOST_BYTES = 4 * 1024 * 1024
local function copy_of_corner(d, rows, columns)
  local size = d:size()
  local part = #size == 1 and d:rows(1, math.min(columns, size[1]))
    or d:reshape(d:numel() / size[#size], size[#size]):rows(1, math.min(rows, d:numel() / size[#size]))
  if part:bytes() <= MOST_BYTES then return part:to "cpu" end
end

--- corner(t [, rows [, columns [, width]]]) -> the line, then the first values of the first rows (6 and 8 of them),
-- aligned; of what has more than two dimensions, rows of the last. Of a tensor on a device those rows alone are copied.
-- width: cut to a terminal of so many columns.
function M.corner(t, rows, columns, width)
  rows, columns = rows or 6, columns or 8
  local far, size = t:where() ~= "cpu", t:size()
  local line, k = far and tostring(t) or M.line(t), size[#size] or 1
  local n = k > 0 and t:numel() / k or 0
  if #size == 0 or t:numel() <= 1 or t:type() == "c64" then return line end
  if width then columns = math.max(1, math.min(columns, math.floor((width - 3) / 12))) end
  if far then
    local ok, copy, why = pcall(copy_of_corner, t, rows, columns) -- rows of a sub-byte dtype may not end on a byte
    if not (ok and copy) then return ok and why and line .. "\n" .. why or line end
    t = copy
  end
  local cells = {}
  for r = 1, math.min(rows, n) do
    cells[r] = { "" }
    for c = 1, math.min(columns, k) do cells[r][c + 1] = number_text(t:get((r - 1) * k + c)) end
    if k > columns then cells[r][columns + 2] = "…" end
  end
  if n > rows then cells[rows + 1] = { "", "⋮" } end
  return line .. "\n" .. M.columns(cells, ("r"):rep(columns + 1) .. "l"):gsub("\n$", "")
end

--- comparison(c) -> one line: mse, SQNR, cosine, the worst row, the error over the columns.
function M.comparison(c)
  local odd = c.odd > 0 and ("  %d values differ by a NaN or an infinity"):format(c.odd) or ""
  if c.sqnr_db == math.huge then return odd == "" and "equal: no difference in any value" or "no other difference" .. odd end
  return ("mse %.3g  SQNR %.2f dB  cosine %.6f  max |Δ| %.3g  worst row %d (%.2g %% of the error)  by column %s"):format(
    c.mse, c.sqnr_db, c.cosine, c.max_abs, c.worst_row, c.worst_row_share * 100, M.sparkline(c.by_column)) .. odd
end

return M
