-- memory: what the session's variables hold, and what the process does: for :who, :mem and :time.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local units = require "nibble.units"

local M = {}

local function is_tensor(v) return require("nibble.tensor").is_any(v) end

local quantized_parts = { "codes", "scales", "zeros", "g_idx", "global", "input_scale", "input_zero", "input_global", "bias" }

--- bytes_of(v) -> bytes of a tensor's or a quantized weight's storage, or of a checkpoint's files | nil
function M.bytes_of(v)
  if is_tensor(v) then return v:bytes() end
  if type(v) == "string" then return #v end
  if type(v) ~= "table" then return nil end
  local codes = rawget(v, "codes")
  if codes and is_tensor(codes) then
    local sum = 0
    for _, part in ipairs(quantized_parts) do
      local t = rawget(v, part)
      if is_tensor(t) then sum = sum + t:bytes() end
    end
    return sum
  end
  local bytes = rawget(v, "handle") and rawget(v, "bytes")
  return type(bytes) == "number" and bytes or nil
end

-- A shape, and the device where it lies on one.
local function placed(shape, t)
  local where = t:where()
  return where == "cpu" and shape or shape .. "  on " .. where
end

-- The kind of a value and its shape, as text.
local function kind_of(v)
  if is_tensor(v) then return v:type(), placed(table.concat(v:size(), "×"), v) end
  if type(v) == "cdata" then return tostring(ffi.typeof(v)):match "ctype<(.-)>" or "cdata", "" end
  if type(v) ~= "table" then return type(v), type(v) == "string" and #v .. " characters" or "" end
  if rawget(v, "codes") and rawget(v, "scheme") then return "quantized", placed(("%d×%d"):format(v.n, v.k), v.codes) end
  if rawget(v, "handle") then return "checkpoint", v.count .. " tensors" end
  local mt = getmetatable(v)
  if type(mt) == "table" and rawget(mt, "__tostring") then return "table", tostring(v):match "^[^\n]*" end
  local count = 0
  for _ in pairs(v) do count = count + 1 end
  return "table", count == #v and ("%d entries"):format(count) or ("%d keys"):format(count)
end

-- The names that the session itself puts into its environment.
local own = { nibble = true, _G = true, _ = true, __ = true, ___ = true, print = true, io = true }

--- variables(env) -> a table of the person's variables as text | nil without any.
function M.variables(env)
  local names, rows = {}, {}
  for name in pairs(env) do
    if type(name) == "string" and not own[name] then names[#names + 1] = name end
  end
  table.sort(names)
  for i, name in ipairs(names) do
    local value = env[name]
    local ok, kind, shape = pcall(kind_of, value)
    local _, bytes = pcall(M.bytes_of, value)
    rows[i] = { name, ok and kind or type(value), type(bytes) == "number" and units.bytes(bytes) or "", ok and shape or "" }
  end
  if #rows == 0 then return nil end
  return require("nibble.show").columns(rows, "llrl", require("nibble.terminal").width(1))
end

-- VmRSS and its parts, bytes by name; empty where /proc is not mounted.
local function status()
  local out, f = {}, io.open "/proc/self/status"
  if not f then return out end
  for line in f:lines() do
    local name, kib = line:match "^(%w+):%s+(%d+) kB"
    if name then out[name] = tonumber(kib) * 1024 end
  end
  f:close()
  return out
end

-- The devices that hold tensors, as {name, bytes}; no driver is begun for it.
local function devices()
  local out, number = {}, 1
  while C.nb_device_live_bytes(number) >= 0 do
    local live = tonumber(C.nb_device_live_bytes(number))
    if live > 0 then out[#out + 1] = { require("nibble.cuda").name_of(number), live } end
    number = number + 1
  end
  return out
end

--- wait() -> true when all that was begun on devices is done | nil, msg, code: for who times it.
function M.wait()
  for _, d in ipairs(devices()) do
    local ok, msg, code = require("nibble.cuda").wait(d[1])
    if not ok then return nil, msg, code end
  end
  return true
end

local function device_rows()
  local rows = {}
  for i, d in ipairs(devices()) do
    local free, total = require("nibble.cuda").memory(d[1])
    rows[i] = { "  " .. d[1], units.bytes(d[2]),
      free and ("of them; %s of its %s are free"):format(units.bytes(free), units.bytes(total)) or "of them; " .. total }
  end
  return rows
end

--- summary() -> text: bytes of tensors, those on each device, mapped pages, Lua's heap, the process.
function M.summary()
  local s = status()
  local function bytes(n) return n and units.bytes(n) or "unknown" end
  local rows = { { "tensors", units.bytes(C.nb_live_bytes()),
    ("%d buffers, mapped files among them"):format(tonumber(C.nb_live_buffers())) } }
  for _, row in ipairs(device_rows()) do rows[#rows + 1] = row end
  for _, row in ipairs {
    { "mapped", bytes(s.RssFile), "pages of mapped files that lie in memory; they can go at any time" },
    { "Lua", units.bytes(collectgarbage "count" * 1024), "" },
    -- The kernel counts the peak now and then only.
    { "process", bytes(s.VmRSS), ("at most %s so far"):format(units.bytes(math.max(tonumber(C.nb_peak_rss()), s.VmRSS or 0))) },
  } do rows[#rows + 1] = row end
  return require("nibble.show").columns(rows, "lrl", require("nibble.terminal").width(1))
end

return M
