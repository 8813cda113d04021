-- bars: what a benchmark must reach, as data, and the judgement of a run's rows. Shares of the copy rate and speeds of others
-- are those of the same run.
local M = {}

-- of: "copy": bytes a second as a share of the copy rate; "W4A16": of those of the integer product of that shape;
-- "TFLOP/s", "tokens/s": as they are; "published": as many times as fast as others told, in `seconds`, of an H100 and the layer that the
-- experts' benchmark has; else the baseline that the row is so many times as fast as. m: from, to. Without a field every row
-- of the piece is meant.
M.bars = {
  { piece = "models", of = "tokens/s", must = 20000 },
  { piece = "product", k = 8192, n = 28672, m = { 1, 16 }, of = "copy", must = 0.80, ambitious = 0.88 },
  { piece = "product", k = 4096, n = 14336, m = { 1, 16 }, of = "copy", must = 0.55, ambitious = 0.70 },
  { piece = "product", m = { 64, 64 }, of = "torch bf16", must = 1.2, ambitious = 1.5 },
  { piece = "product", m = { 128, 128 }, of = "torch bf16", must = 0.9, ambitious = 1.2 },
  { piece = "product", m = { 4096, 4096 }, of = "torch bf16", must = 0.9 },
  { piece = "product", m = { 4096, 4096 }, of = "TFLOP/s", ambitious = 600 },
  { piece = "product", m = { 1, 128 }, of = "marlin", must = 1.0 },
  { piece = "experts", m = { 1, 1 }, of = "copy", must = 0.50, ambitious = 0.60 },
  { piece = "experts", m = { 16, 16 }, of = "copy", must = 0.70, ambitious = 0.80 },
  -- vLLM's fused Marlin layer on an H100 (FlagGems PR 4350).
  { piece = "experts", m = { 1, 1 }, of = "published", seconds = 0.0956e-3, must = 1.1 },
  { piece = "experts", m = { 16, 16 }, of = "published", seconds = 0.282e-3, must = 1.1 },
  { piece = "experts", m = { 64, 64 }, of = "published", seconds = 0.381e-3, must = 1.1 },
  { piece = "experts", m = { 1024, 1024 }, of = "published", seconds = 2.72e-3, must = 1.1 },
  { piece = "experts", m = { 4096, 4096 }, of = "published", seconds = 9.91e-3, must = 1.1 },
  { piece = "nvfp4", of = "W4A16", must = 1.0 },
  { piece = "fp8", of = "torch fp8", must = 0.95 },
  { piece = "fp8 rows", of = "torch fp8 rows", must = 0.95 },
  { piece = "repack", of = "copy", must = 0.75, ambitious = 0.85 },
  { piece = "dequantize", of = "copy", must = 0.75, ambitious = 0.85 },
  { piece = "quantize", of = "copy", must = 0.75, ambitious = 0.85 },
  { piece = "forward", of = "copy", must = 0.6, ambitious = 0.8 },
  { piece = "attention", of = "TFLOP/s", must = 150, ambitious = 250 },
}

local function fits(bar, row)
  return bar.piece == row.piece and (not bar.k or bar.k == row.k) and (not bar.n or bar.n == row.n)
    and (not bar.m or row.m and row.m >= bar.m[1] and row.m <= bar.m[2])
end

-- The baseline `name` of a row's shape.
local function baseline(rows, name, row)
  for _, r in ipairs(rows) do
    if r.baseline == name and r.status == "passed" and r.m == row.m and r.n == row.n and r.k == row.k then return r end
  end
end

local function found_of(bar, row, rows, copy)
  if bar.of == "copy" then return copy and row.bytes / row.seconds_each / copy, "the copy rate was not measured" end
  if bar.of == "published" then return bar.seconds / row.seconds_each end
  if bar.of == "W4A16" then
    for _, r in ipairs(rows) do
      if r.piece == "product" and r.status == "passed" and r.m == row.m and r.n == row.n and r.k == row.k then
        return row.bytes / row.seconds_each / (r.bytes / r.seconds_each)
      end
    end
    return nil, "the integer product was not measured"
  end
  if bar.of == "tokens/s" then return row.rate end
  if bar.of == "TFLOP/s" then return row.flops / row.seconds_each / 1e12 end
  local other = baseline(rows, bar.of, row)
  return other and other.seconds_each / row.seconds_each, bar.of .. " was not measured here"
end

--- judge(rows, copy): gives each passed row of nibble's own its floor_seconds and bars {{of =, must =, ambitious =, found =,
-- met = "ambitious" | "must" | "no", why =}}; copy: bytes a second, or nil
function M.judge(rows, copy)
  for _, row in ipairs(rows) do
    if row.piece and row.status == "passed" and row.seconds_each and not row.emulated then
      row.floor_seconds = copy and row.bytes / copy
      for _, bar in ipairs(M.bars) do
        if fits(bar, row) then
          local found, why = found_of(bar, row, rows, copy)
          local met = found and (bar.ambitious and found >= bar.ambitious and "ambitious" or bar.must and found >= bar.must and "must"
            or "no")
          row.bars = row.bars or {}
          table.insert(row.bars, { of = bar.of, must = bar.must, ambitious = bar.ambitious, found = found, met = met,
                                   why = not found and why or nil })
        end
      end
    end
  end
end

return M
