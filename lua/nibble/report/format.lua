-- report.format: values as the page writes them: escaped text, numbers to the digits that are shown.
local json = require "nibble.json"
local units = require "nibble.units"

local M = {}

local MISSING = "–"

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

--- short(text, most) -> the text, or its beginning and "…": at most `most` bytes of it, whole characters.
function M.short(text, most)
  if #text <= most then return text end
  local cut = most
  while cut > 0 and text:byte(cut + 1) >= 0x80 and text:byte(cut + 1) < 0xC0 do cut = cut - 1 end
  return text:sub(1, cut) .. "…"
end

--- clean(text [, most]) -> text without control characters (a visible sign instead), shortened to `most` bytes. Line
-- breaks and tabs stay.
function M.clean(text, most)
  text = tostring(text):gsub("\r\n?", "\n"):gsub("[%z\1-\8\11-\31\127]", "�")
  return most and M.short(text, most) or text
end

--- html(text) -> the text, safe between tags and inside quoted attributes.
function M.html(text) return (M.clean(text):gsub("[&<>\"']", entities)) end

-- What would end a script element or a line of JavaScript; JSON reads it back from \u escapes.
local scripted = { ["<"] = "\\u003c", [">"] = "\\u003e", ["&"] = "\\u0026" }

--- data(value) -> JSON that may stand inside a script element.
function M.data(value)
  return (json.encode(value):gsub("[<>&]", scripted):gsub("\226\128([\168\169])", function(c)
    return c == "\168" and "\\u2028" or "\\u2029"
  end))
end

--- finite(v) -> v when it is a number with a place on an axis, else nil.
function M.finite(v)
  if type(v) == "number" and v == v and math.abs(v) ~= math.huge then return v end
end

-- Formats of finite numbers, by the kind of figure.
local kinds = {
  bits = function(v) return ("%.2f"):format(v) end,
  bytes = units.bytes,
  ppl = function(v) return (v < 1000 and "%.4f" or v < 1e6 and "%.1f" or "%.3g"):format(v) end,
  ratio = function(v) return (v < 100 and "%.4f" or "%.4g"):format(v) end,
  kl = function(v) return (math.abs(v) >= 1e-4 and "%.5f" or v == 0 and "%d" or "%.1e"):format(v) end,
  share = function(v) return ("%.2f %%"):format(100 * v) end,
  db = function(v) return ("%.2f"):format(v) end,
  seconds = units.seconds,
}

--- number(kind, v) -> the text of a figure: "7.35"; "nan", "inf" as they are; "–" for none.
function M.number(kind, v)
  if type(v) ~= "number" then return MISSING end
  if v ~= v then return "nan" end
  if math.abs(v) == math.huge then return v > 0 and "inf" or "-inf" end
  return kinds[kind](v)
end

--- percent(share) -> "+0.64 %": a change, with its sign.
function M.percent(share)
  if not M.finite(share) then return MISSING end
  if share == 0 then return "0 %" end
  local size = math.abs(100 * share)
  local text = (size >= 0.005 and "%+.2f %%" or size >= 0.0005 and "%+.3f %%" or "%+.0e %%"):format(100 * share)
  return (text:gsub("^%-", "−"))
end

--- signed(kind, change) -> "+0.12" in the kind's digits; "0" for none.
function M.signed(kind, change)
  if not M.finite(change) then return MISSING end
  if change == 0 then return "0" end
  return (change > 0 and "+" or "−") .. M.number(kind, math.abs(change))
end

return M
