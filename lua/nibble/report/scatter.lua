-- report.scatter: size against quality, one picture for each pair of figures: marks by scheme, the Pareto front as
-- steps, the unquantized model as a line. The page shows one pair at a time.
local axis = require "nibble.report.axis"
local format = require "nibble.report.format"
local front_of = require("nibble.report.rows").front
local units = require "nibble.units"

local M = {}

M.x = { { "bits", "bits per weight" }, { "bytes", "size" } }
M.y = { { "ppl", "perplexity" }, { "ratio", "times the unquantized perplexity" }, { "kl", "KL divergence" } }

local WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 340, 58, 16, 30, 46

-- Shapes of 5 pixels around the origin, told apart without colour. Schemes take them in this order.
local shapes = {
  '<circle id="s1" r="4.5"/>', '<path id="s2" d="M-4-4h8v8h-8z"/>', '<path id="s3" d="M0-5.2 5 4H-5z"/>',
  '<path id="s4" d="M0-5.8 5.2 0 0 5.8-5.2 0z"/>', '<path id="s5" d="M0 5.2 5-4H-5z"/>',
  '<path id="s6" d="M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z"/>',
  '<path id="s7" d="M0-5.6 4.9-2.8v5.6L0 5.6-4.9 2.8v-5.6z"/>',
  '<path id="s8" d="M0-7 1.9-2.2 7-2.2 3 1 4.4 6 0 3.1-4.4 6-3 1-7-2.2-1.9-2.2z"/>',
  '<path id="s9" d="M-5.6-3-3-5.6 0-2.6 3-5.6 5.6-3 2.6 0 5.6 3 3 5.6 0 2.6-3 5.6-5.6 3-2.6 0z"/>',
  '<path id="s10" d="M-4.8-4.8h9.6L-4.8 4.8h9.6z"/>', '<path id="s11" d="M-5 2.6a5 5 0 0 1 10 0z"/>',
  '<path id="s12" d="M-2-5.6h4v11.2h-4z"/>',
}

--- symbols() -> the shapes, once for the whole page.
function M.symbols()
  return '<svg class="symbols" width="0" height="0" aria-hidden="true"><defs>' .. table.concat(shapes) .. "</defs></svg>\n"
end

--- shapes_of(rows) -> {[scheme] = number of its shape}, array of schemes in natural order of their names.
function M.shapes_of(rows)
  local names, seen = {}, {}
  for _, row in ipairs(rows) do
    if not row.reference and row.scheme ~= "–" and not seen[row.scheme] then
      seen[row.scheme] = true
      names[#names + 1] = row.scheme
    end
  end
  names = require("nibble.text").natural_sort(names)
  local shape = {}
  for i, name in ipairs(names) do shape[name] = (i - 1) % #shapes + 1 end
  return shape, names
end

--- key(shape) -> a mark on its own, for legends.
function M.key(shape) return ('<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true"><use href="#s%d"/></svg>'):format(shape) end

-- The largest of KiB, MiB … of which there is one.
local function byte_unit(rows)
  local most = 0
  for _, row in ipairs(rows) do most = math.max(most, row.bytes) end
  return 1024 ^ math.max(0, math.min(4, math.floor(math.log(math.max(most, 1)) / math.log(1024))))
end

local function tick_text(field, v)
  if field == "bytes" then return (units.bytes(v):gsub("%.0 ", " ")) end
  return v ~= 0 and math.abs(v) < 1e-3 and ("%.0e"):format(v):gsub("e%-0", "e-") or ("%.6g"):format(v)
end

-- Names beside the front's marks, where no mark and no other name is in the way.
local function labels(front, at, boxes, best)
  local out = {}
  local function free(x, y, w)
    if x < LEFT or x + w > WIDTH - 2 or y < TOP - 12 or y + 12 > HEIGHT - BOTTOM then return false end
    for _, b in ipairs(boxes) do
      if x < b[1] + b[3] and b[1] < x + w and y < b[2] + b[4] and b[2] < y + 12 then return false end
    end
    return true
  end
  for i = 2, #front do -- nor the front's own steps
    local a, b = at[front[i - 1]], at[front[i]]
    boxes[#boxes + 1] = { a[1], a[2] - 1, b[1] - a[1], 2 }
    boxes[#boxes + 1] = { b[1] - 1, a[2], 2, b[2] - a[2] }
  end
  local order = {}
  for _, row in ipairs(front) do table.insert(order, row == best and 1 or #order + 1, row) end
  for _, row in ipairs(order) do
    local name = format.short(row.name, 30)
    local w, p = 6.3 * #name, at[row]
    local tries = { { 8, -13 }, { 9, -6 }, { 8, 3 }, { -8 - w, 3 }, { -9 - w, -6 }, { -8 - w, -13 }, { -w / 2, -20 }, { -w / 2, 9 } }
    for _, t in ipairs(tries) do
      local x, y = p[1] + t[1], p[2] + t[2]
      if free(x, y, w) then
        boxes[#boxes + 1] = { x, y, w, 12 }
        out[#out + 1] = ('<text class="%s" x="%.0f" y="%.0f">%s</text>'):format(row == best and "name best" or "name", x, y + 10,
          format.html(name))
        break
      end
    end
  end
  return table.concat(out)
end

local function grid(x, y, xf, yf, px, py)
  local out = {}
  for _, v in ipairs(y.ticks) do
    out[#out + 1] = ('<path class="grid" d="M%d %.1fH%d"/><text class="t e" x="%d" y="%.1f">%s</text>'):format(LEFT, py(v),
      WIDTH - RIGHT, LEFT - 8, py(v) + 4, tick_text(yf, v))
  end
  for _, v in ipairs(x.ticks) do
    out[#out + 1] = ('<path class="grid" d="M%.1f %dv5"/><text class="t m" x="%.1f" y="%d">%s</text>'):format(px(v), HEIGHT - BOTTOM,
      px(v), HEIGHT - BOTTOM + 18, tick_text(xf, v))
  end
  return table.concat(out)
end

-- What the reference line stands for under this figure.
local function reference(group, field)
  if field == "ppl" then return group.ppl end
  if field == "ratio" and group.ppl then return 1 end
end

-- Steps along the front: no recipe lies below them.
local function steps(front, at)
  if #front < 2 then return "" end
  local d = {}
  for i, row in ipairs(front) do
    local p = at[row]
    d[i] = i == 1 and ("M%.1f %.1f"):format(p[1], p[2]) or ("H%.1fV%.1f"):format(p[1], p[2])
  end
  return '<path class="front" d="' .. table.concat(d) .. '"/>'
end

local function title(row, xf, yf)
  local function said(field) return field[2] .. " " .. format.number(field[1], row[field[1]]) end
  return format.html(("%s\n%s, %s"):format(row.name, said(xf), said(yf)))
end

local function picture(group, xf, yf, shape, shown)
  local points, xs, ys = {}, {}, {}
  for _, row in ipairs(group.rows) do
    local a, b = format.finite(row[xf[1]]), format.finite(row[yf[1]])
    if a and b and not row.reference and row.status ~= "failed" then
      points[#points + 1], xs[#xs + 1], ys[#ys + 1] = row, a, b
    end
  end
  if #points == 0 then return "" end
  local line = reference(group, yf[1])
  if line then ys[#ys + 1] = line end
  local x = axis.new(xs, { count = 7, unit = xf[1] == "bytes" and byte_unit(points) })
  local y = axis.new(ys, { count = 5 })
  local function px(v) return LEFT + 8 + x.place(v) * (WIDTH - LEFT - RIGHT - 16) end
  local function py(v) return HEIGHT - BOTTOM - y.place(v) * (HEIGHT - TOP - BOTTOM) end
  local front, at, boxes, in_front = front_of(points, xf[1], yf[1]), {}, {}, {}
  for _, row in ipairs(front) do in_front[row] = true end
  for _, row in ipairs(points) do
    at[row] = { px(row[xf[1]]), py(row[yf[1]]) }
    boxes[#boxes + 1] = { at[row][1] - 5, at[row][2] - 5, 10, 10 }
  end
  if line then
    boxes[#boxes + 1] = { LEFT, py(line) - 16, 80, 18 }
    boxes[#boxes + 1] = { LEFT, py(line) - 1, WIDTH, 2 }
  end
  local marks = {}
  for pass = 1, 2 do -- the front's lie on top
    for _, row in ipairs(points) do
      if (pass == 2) == (in_front[row] or false) then
        marks[#marks + 1] = ('<use href="#s%d" x="%.1f" y="%.1f" class="%s" data-i="%d"><title>%s</title></use>'):format(
          shape[row.scheme] or 1, at[row][1], at[row][2], pass == 2 and "p f" or "p", row.i, title(row, xf, yf))
      end
    end
  end
  local named = #front <= 16 and labels(front, at, boxes, group.best) or ""
  return table.concat {
    ('<svg class="plot v-%s-%s%s" viewBox="0 0 %d %d" role="img" aria-label="%s against %s, %d recipes, %d on the Pareto front">')
      :format(xf[1], yf[1], shown and " first" or "", WIDTH, HEIGHT, yf[2], xf[2], #points, #front),
    grid(x, y, xf[1], yf[1], px, py),
    ('<text class="a" x="2" y="14">%s%s</text>'):format(yf[2], y.log and ", log" or ""),
    ('<text class="a e" x="%d" y="%d">%s%s</text>'):format(WIDTH - RIGHT, HEIGHT - 6, xf[2], x.log and ", log" or ""),
    line and y.place(line) >= -0.02 and ('<path class="ref" d="M%d %.1fH%d"/><text class="reft" x="%d" y="%.1f">unquantized</text>')
      :format(LEFT, py(line), WIDTH - RIGHT, LEFT + 6, py(line) - 5) or "",
    steps(front, at), table.concat(marks), named, "</svg>\n",
  }
end

--- svg(group, shape) -> every picture of a group, "" when it has nothing to draw. shape: see shapes_of.
function M.svg(group, shape)
  local out = {}
  for i, xf in ipairs(M.x) do
    for j, yf in ipairs(M.y) do out[#out + 1] = picture(group, xf, yf, shape, i == 1 and j == 1) end
  end
  return table.concat(out)
end

return M
