-- report.table: the table of results and the one of changes, as they are without a script: every figure, failed jobs
-- with their message to unfold.
local format = require "nibble.report.format"

local M = {}

local html, number = format.html, format.number

--- The columns: field of a row (and of the script's data), heading, kind of number (nil: text), what it is.
M.columns = {
  { "recipe", "recipe" }, { "model", "model" }, { "text", "text" }, { "status", "status" },
  { "bits", "bits/weight", "bits", "bits per weight of the whole checkpoint, scales and what was skipped included" },
  { "bytes", "size", "bytes", "bytes of the tensors written" },
  { "ppl", "perplexity", "ppl", "perplexity over the text" },
  { "ratio", "ratio", "ratio", "perplexity, times that of the unquantized model" },
  { "kl", "KL", "kl", "mean KL divergence from the unquantized model, nats per token" },
  { "top1", "top-1", "share", "how often both models find the same token the likeliest" },
  { "sqnr", "worst SQNR", "db", "signal to quantization noise of the worst module, dB" },
  { "seconds", "time", "seconds", "time of the job" },
  { "peak", "memory", "bytes", "peak memory of the job" },
}

local words = { done = "done", failed = "failed", missed = "bound missed" }

local function name_of(row)
  local set = row.set ~= "" and " <small>" .. html(row.set) .. "</small>" or ""
  local front = row.front and ' <b class="fr" title="on the Pareto front">◆</b>' or ""
  return ('<span class="r" title="%s">%s</span>%s%s'):format(html(row.recipe), html(row.recipe), set, front)
end

local function status_of(row)
  if row.status ~= "failed" then return words[row.status] end
  return "<details><summary>failed</summary><p>" .. html(row.message) .. "</p></details>"
end

local function line(row)
  local class = row.reference and "ref" or row.status
  local out = {
    ('<tr id="r%d" class="%s"><th scope="row">%s<td title="%s">%s<td title="%s">%s<td>%s'):format(row.i, class, name_of(row),
      html(row.model), html(row.model_name), html(row.text), html(row.text_name), status_of(row)),
  }
  for i = 5, #M.columns do
    local c = M.columns[i]
    out[#out + 1] = "<td>" .. number(c[3], row[c[1]])
  end
  return table.concat(out) .. "\n"
end

-- A narrow window has no room for a column that says the same everywhere.
local function alike(rows)
  local class = {}
  for _, c in ipairs { { "model", "m1" }, { "text", "t1" } } do
    local same = true
    for _, row in ipairs(rows) do same = same and row[c[1]] == rows[1][c[1]] end
    if same then class[#class + 1] = c[2] end
  end
  return #class > 0 and ' class="' .. table.concat(class, " ") .. '"' or ""
end

--- results(rows) -> the table.
function M.results(rows)
  local out = { ('<div class="scroll%s" tabindex="0" role="region" aria-label="All results"><table id="table"%s><thead><tr>'):format(
    #rows > 30 and " tall" or "", alike(rows)) }
  for _, c in ipairs(M.columns) do
    out[#out + 1] = ('<th scope="col" data-field="%s"%s%s>%s'):format(c[1], c[3] and ' class="num"' or "",
      c[4] and ' title="' .. html(c[4]) .. '"' or "", html(c[2]))
  end
  out[#out + 1] = "</tr></thead><tbody>\n"
  for _, row in ipairs(rows) do out[#out + 1] = line(row) end
  out[#out + 1] = "</tbody></table></div>\n"
  return table.concat(out)
end

-- ---- changes ---------------------------------------------------------------------------

local said = { worse = "worse", mixed = "traded", better = "better", new = "new", vanished = "vanished", same = "same" }

-- "6.2500 +0.12" of a figure that both have; judged: "bad" when it moved the wrong way, "good" when the right one.
local function figure(item, field, kind, better)
  local row, was = item.row or item.was, item.row and item.was
  local text = number(kind, row[field])
  local a, b = format.finite(row[field]), was and format.finite(was[field])
  if not a or not b or a == b then
    if was and text ~= number(kind, was[field]) then text = number(kind, was[field]) .. " → " .. text end
    return "<td>" .. text
  end
  local change = a - b
  local delta = kind == "ppl" and b ~= 0 and format.percent(change / math.abs(b)) or format.signed(kind, change)
  local judged = better and ((change > 0) == (better == "larger") and "good" or "bad") or ""
  return ('<td>%s <small class="%s">%s</small>'):format(text, judged, delta)
end

local function change_line(item)
  local row = item.row or item.was
  local why = {}
  local both = item.kind == "mixed"
  if #item.worse > 0 then why[#why + 1] = (both and "worse: " or "") .. table.concat(item.worse, ", ") end
  if #item.better > 0 then why[#why + 1] = (both and "better: " or "") .. table.concat(item.better, ", ") end
  return table.concat {
    ('<tr class="%s"><th scope="row">%s<td title="%s">%s<td title="%s">%s<td><b class="change">%s</b>%s'):format(item.kind,
      name_of { recipe = row.recipe, set = row.set }, html(row.model), html(row.model_name), html(row.text), html(row.text_name),
      said[item.kind], #why > 0 and " <small>" .. table.concat(why, "; ") .. "</small>" or ""),
    row.status == "failed" and item.kind ~= "vanished" and ('<td colspan="4" class="message">%s'):format(html(row.message))
      or figure(item, "bits", "bits", "smaller") .. figure(item, "ppl", "ppl", "smaller") .. figure(item, "kl", "kl", "smaller")
        .. figure(item, "sqnr", "db", "larger"),
    figure(item, "seconds", "seconds"), "\n",
  }
end

local function change_table(items)
  local out = { '<div class="scroll" tabindex="0" role="region" aria-label="Changes"><table class="changes"><thead><tr>',
    '<th scope="col">recipe<th scope="col">model<th scope="col">text<th scope="col">change<th scope="col" class="num">bits/weight',
    '<th scope="col" class="num">perplexity<th scope="col" class="num">KL<th scope="col" class="num">worst SQNR',
    '<th scope="col" class="num">time</tr></thead><tbody>\n' }
  for _, item in ipairs(items) do out[#out + 1] = change_line(item) end
  out[#out + 1] = "</tbody></table></div>\n"
  return table.concat(out)
end

--- changes(comparison) -> what changed, and what did not to unfold. comparison: of report.compare.
function M.changes(comparison)
  local changed, same = {}, {}
  for _, item in ipairs(comparison.items) do table.insert(item.kind == "same" and same or changed, item) end
  return table.concat {
    #changed > 0 and change_table(changed) or "<p>Nothing changed.</p>\n",
    #same > 0 and ("<details><summary>%d unchanged</summary>\n%s</details>\n"):format(#same, change_table(same)) or "",
  }
end

return M
