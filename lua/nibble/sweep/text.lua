-- text: a sweep's results as a table for the terminal.
local jobs = require "nibble.sweep.jobs"
local show = require "nibble.show"
local units = require "nibble.units"

local M = {}

local function number(fmt, v) return type(v) == "number" and fmt:format(v) or "" end

--- name(result) -> "any-w4a16 group=64", or "(the model itself)".
function M.name(r)
  if not r.recipe then return "(the model itself)" end
  local set = jobs.set_text(r.set)
  return set == "" and r.recipe or r.recipe .. " " .. set
end

--- progress(p) -> {done, total, share, name}: how far the engine's jobs are, for a progress line.
function M.progress(p)
  local share, at = p.done, p.running[1]
  for _, item in ipairs(p.running) do -- of a recipe's job the run is about one half, the evaluation the other
    share = share + (not item.job.recipe and item.share or item.stage == "eval" and 0.5 + item.share / 2 or item.share / 2)
  end
  local parts = { p.failed > 0 and ("%d failed, "):format(p.failed) or "", ("%d running  "):format(#p.running),
    share > 0 and share < p.total and "ETA " .. units.seconds(p.seconds * (p.total - share) / share) .. "  " or "",
    at and ("%s %s %.0f %%"):format(at.title, at.stage or "", at.share * 100) or "" }
  return { done = p.done, total = p.total, share = p.total > 0 and share / p.total or 1, name = table.concat(parts) }
end

--- line(result) -> what came of one job, in one line.
function M.line(r)
  if r.status ~= "done" then return r.message or r.status end
  local f, parts = r.figures, {}
  for _, part in ipairs { number("ppl %.4f", f.ppl), number("KL %.5f", f.kl), number("%.2f bits", f.bits_per_weight),
    units.seconds(r.seconds or 0), r.message or "" } do
    if part ~= "" then parts[#parts + 1] = part end
  end
  return table.concat(parts, ", ")
end

local function before(a, b)
  for _, key in ipairs { "model", "text" } do
    if a[key] ~= b[key] then return (a[key] or "") < (b[key] or "") end
  end
  local x, y = a.figures.bits_per_weight or math.huge, b.figures.bits_per_weight or math.huge
  if x ~= y then return x > y end
  return M.name(a) .. a.job < M.name(b) .. b.job
end

--- table(results [, width]) -> text, cut to width columns: models, texts, then bits per weight, the most first; what
-- failed, with its message, at the end.
function M.table(list, width)
  local done, failed = {}, {}
  for _, r in ipairs(list) do
    local to = r.status == "done" and done or failed
    to[#to + 1] = r
  end
  table.sort(done, before)
  local rows, last = { { "", "bits", "ppl", "ratio", "KL", "time", "memory", "" } }, nil
  for _, r in ipairs(done) do
    local f, group = r.figures, ("%s · %s"):format(r.model, r.text)
    if group ~= last then rows[#rows + 1] = { group, "", "", "", "", "", "", "" } end
    last = group
    rows[#rows + 1] = { "  " .. M.name(r), number("%.2f", f.bits_per_weight), number("%.4f", f.ppl),
      f.ppl_against and number("%.4f", f.ppl / f.ppl_against) or "", number("%.5f", f.kl), units.seconds(r.seconds or 0),
      units.bytes(r.peak_bytes or 0), r.message or "" }
  end
  local out = done[1] and show.columns(rows, "lrrrrrrl", width) or ""
  for _, r in ipairs(failed) do out = out .. ("failed: %s: %s\n"):format(jobs.title(r), r.message or "") end
  return out
end

return M
