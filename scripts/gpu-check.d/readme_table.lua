-- readme_table: the README's figures of GPUs, made of the newest results in cuda/results and of nothing else.
local results = require "results"

local M = {}

local function row_of(cells) return "| " .. table.concat(cells, " | ") .. " |\n" end

local function share(x) return ("%.0f %%"):format(x * 100) end

local function microseconds(s)
  local us = s * 1e6
  return us < 100 and ("%.1f µs"):format(us) or us < 1e4 and ("%.0f µs"):format(us) or ("%.1f ms"):format(us / 1e3)
end

local function amount(bar, x)
  if bar.of == "copy" then return share(x) end
  if bar.of == "TFLOP/s" or bar.of == "tokens/s" then return ("%.0f %s"):format(x, bar.of) end
  return ("%.2f times %s"):format(x, bar.of)
end

local words = { ambitious = "reached, the ambitious one too", must = "reached", no = "**missed**" }

-- "80 % of copy: reached"
local function verdict(bar)
  local want = bar.must and amount(bar, bar.must) or amount(bar, bar.ambitious)
  if not bar.met then return ("%s: %s"):format(want, bar.why) end
  local met = words[bar.met]
  if not bar.must and bar.met == "ambitious" then met = "reached" end
  return ("%s%s: %s"):format(want, bar.of == "copy" and " of copy" or "", met)
end

-- What the row came to, by the unit of each of its bars.
local function found(row)
  local out = {}
  for _, bar in ipairs(row.bars) do
    if bar.found then out[#out + 1] = amount(bar, bar.found) .. (bar.of == "copy" and " of copy" or "") end
  end
  return table.concat(out, ", ")
end

-- What was measured: of functions, and of whole models where that stage ran.
local function measured(document)
  local rows = {}
  for _, name in ipairs { "benchmarks", "models" } do
    for _, row in ipairs((results.stage(document, name) or { rows = {} }).rows) do rows[#rows + 1] = row end
  end
  return rows
end

--- table_of(document) -> Markdown: one line for each benchmark that has a bar, or failed
function M.table_of(document)
  local out = { row_of { "what", "time", "which is", "bar" }, row_of { "---", "--:", "---", "---" } }
  for _, row in ipairs(measured(document)) do
    if row.status == "failed" then out[#out + 1] = row_of { row.name, "", "", "**failed**: " .. row.why }
    elseif row.bars then
      local verdicts = {}
      for i, bar in ipairs(row.bars) do verdicts[i] = verdict(bar) end
      out[#out + 1] = row_of { row.name, microseconds(row.seconds_each), found(row), table.concat(verdicts, "; ") }
    end
  end
  if #out == 2 then return "No benchmark of this run has a bar.\n" end
  return table.concat(out)
end

local function greatest_spread(rows)
  local most = 0
  for _, row in ipairs(rows) do most = math.max(most, row.spread or 0) end
  return most
end

local function copy_of(document)
  for _, name in ipairs { "benchmarks", "provenance" } do
    for _, row in ipairs((results.stage(document, name) or { rows = {} }).rows) do
      if row.name == "copy" and row.rate then return ("%.2f TB/s"):format(row.rate / 1e12) end
    end
  end
  return "not measured"
end

local function stale(document, root)
  local changed = results.changed(document, root)
  if #changed == 0 then return "" end
  local more = #changed > 3 and (" and %d more"):format(#changed - 3) or ""
  return ("**Stale**: since then these changed: %s%s. `scripts/gpu-check` on a GPU measures anew.\n\n"):format(
    table.concat(changed, ", ", 1, math.min(3, #changed)), more)
end

--- text(folder, root) -> Markdown: the newest results that may be shown, whether they are stale, and their table; without any
-- the sentence that there are none
function M.text(folder, root)
  local document, name = results.newest(folder)
  if not document then return "Nothing was measured on a GPU yet: `cuda/results` holds no results of `scripts/gpu-check`.\n" end
  local d, rows = document.device, results.stage(document, "benchmarks").rows
  return stale(document, root) .. ([[
Measured by `scripts/gpu-check` on one %s (driver for CUDA %s), %s, revision %s%s: `cuda/results/%s`. CUDA graphs over copies of
the weights that no cache holds, the better of two passes, which lie at most %.1f %% apart; copy: %s, read and written, in
the same run.

]]):format(d.model, d.driver, document.began:sub(1, 10), document.revision, document.dirty and " with changes" or "", name,
    greatest_spread(rows) * 100, copy_of(document)) .. M.table_of(document)
end

return M
