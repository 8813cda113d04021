-- units: numbers as people read them: bytes, counts, rates and times.
local M = {}

local function scaled(n, step, names)
  local i = 1
  while math.abs(n) >= step and i < #names do
    n, i = n / step, i + 1
  end
  if i == 1 then return ("%d %s"):format(n, names[1]) end
  return (math.abs(n) >= 99.95 and "%.0f %s" or "%.1f %s"):format(n, names[i])
end

--- bytes(n) -> "15.3 GiB"
function M.bytes(n) return scaled(tonumber(n), 1024, { "B", "KiB", "MiB", "GiB", "TiB", "PiB" }) end

--- count(n) -> "8.2 G": for parameters and tokens.
function M.count(n) return (scaled(tonumber(n), 1000, { "", "k", "M", "G", "T" }):gsub(" $", "")) end

--- rate(bytes, seconds) -> "1.9 GB/s"
function M.rate(bytes, seconds)
  if seconds <= 0 then return "" end
  return scaled(tonumber(bytes) / seconds, 1000, { "B/s", "kB/s", "MB/s", "GB/s", "TB/s" })
end

--- seconds(s) -> "0.4s", "12s", "1m12s", "2h05m"
function M.seconds(s)
  if s < 9.95 then return ("%.1fs"):format(s) end
  s = math.floor(s + 0.5)
  if s < 60 then return ("%ds"):format(s) end
  if s < 3600 then return ("%dm%02ds"):format(math.floor(s / 60), s % 60) end
  return ("%dh%02dm"):format(math.floor(s / 3600), math.floor(s % 3600 / 60))
end

return M
