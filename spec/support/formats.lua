-- What the specs of the formats share: checkpoints in memory, random quantized weights, tiles.
local nb = require "nibble"
local formats, scheme = nb.formats, nb.scheme

local M = {}

--- checkpoint(tensors, quantization_config|nil) -> what the formats use of a checkpoint.
-- tensors: name -> tensor.
function M.checkpoint(tensors, config)
  local ck = { name = "fake", path = "fake", tensors = {}, held = tensors }
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    local t = tensors[name]
    ck.tensors[i] = { name = name, dtype = t:type(), shape = t:size(), bytes = t:bytes(), params = t:numel() }
  end
  if config then ck.quantization = { config = config, source = "config.json:quantization_config" } end
  function ck:info(name)
    for _, info in ipairs(self.tensors) do
      if info.name == name then return info end
    end
  end
  function ck:tensor(name)
    local t = self.held[name]
    if not t then return nil, "no tensor " .. name, "eformat" end
    return t
  end
  return ck
end

local function random(seed)
  local state = seed or 1
  return function(below)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 65536) % below
  end
end
M.random = random

-- Positive scales of about 0.01, as bits.
local scale_bits = { f16 = { "u16", 0x2000 }, bf16 = { "u16", 0x3c00 }, f32 = { "u32", 0x3c000000 },
  f8_e4m3 = { "u8", 0x10, 0x60 }, f8_e8m0 = { "u8", 110, 12 } }

-- Random finite codes and scales of a float scheme.
local function float_quantized(s, n, k, dtype, rnd)
  local own = s.scale_dtype == "e8m0" or s.scale_dtype == "f8_e4m3"
  local q = scheme.quantized(own and s or scheme.parse(s, { scale_dtype = dtype }), n, k, dtype)
  local codes = q.codes:as("u8", { n * k }):ptr()
  for i = 0, n * k - 1 do
    local magnitude = rnd(s.bits == 4 and 8 or 0x7f)
    codes[i] = magnitude + rnd(2) * (s.bits == 4 and 8 or 0x80)
  end
  local layout = scale_bits[q.scales:type()]
  local scales, single = q.scales:as(layout[1], { q.scales:numel() }):ptr(), s.strategy == "tensor"
  for i = 0, q.scales:numel() - 1 do scales[i] = layout[2] + (single and 5 or rnd(layout[3] or 900)) end
  if q.global then q.global:set(1, 1234.5) end
  return q
end

-- The scales of the input that a scheme with static activations stores.
local function with_inputs(q)
  local a = q.scheme.activations
  if not scheme.static_activations(q.scheme) then return q end
  if a.strategy == "tensor_group" then q.input_global = nb.tensor("f32", { 1 }, { 33.5 })
  else q.input_scale = nb.tensor("f32", { 1 }, { 0.037 }) end
  if not a.symmetric then q.input_zero = nb.tensor("i8", { 1 }, { -5 }) end
  return q
end

--- quantized(scheme, n, k, dtype, seed) -> Quantized with random content that every format can hold.
function M.quantized(s, n, k, dtype, seed)
  local rnd = random(seed or 7)
  if s.type == "float" then return with_inputs(float_quantized(s, n, k, dtype, rnd)) end
  local q = scheme.quantized(scheme.parse(s, { scale_dtype = dtype }), n, k, dtype)
  local codes, levels = q.codes:ptr(), 2 ^ s.bits
  for i = 0, n * k - 1 do codes[i] = rnd(levels) end
  local as, base = scale_bits[dtype][1], scale_bits[dtype][2]
  local scales = q.scales:as(as):ptr()
  for i = 0, n * q.groups - 1 do scales[i] = base + (s.strategy == "tensor" and 5 or rnd(900)) end
  if q.zeros then
    local zeros = q.zeros:ptr()
    for i = 0, n * q.groups - 1 do zeros[i] = s.strategy == "tensor" and 3 or 1 + rnd(levels - 1) end
  end
  if s.actorder == "group" then
    q.g_idx = nb.tensor("i32", { k })
    for c = 0, k - 1 do q.g_idx:ptr()[c] = (c * 7 + 3) % q.groups end
  end
  return with_inputs(q)
end

--- store(format, name, q, opts) -> tensors by full name, record: q written in tiles of `rows`.
function M.store(format, name, q, opts)
  opts = opts or {}
  local f = assert(formats.get(format))
  local rec = formats.target(f, name, q.scheme, q.n, q.k, { dtype = opts.dtype, bias_dtype = opts.bias_dtype })
  local dst, out = {}, {}
  for _, entry in ipairs(f.layout(rec)) do
    dst[entry.suffix] = nb.tensor(entry.dtype, entry.shape)
    out[name .. "." .. entry.suffix] = dst[entry.suffix]
  end
  local rows = opts.rows or q.n
  for a = 1, q.n, rows do
    local b = math.min(q.n, a + rows - 1)
    local ok, msg, code = f.write(dst, rec, a, b, q:rows(a, b))
    if not ok then return nil, msg, code end
  end
  return out, rec
end

--- load(ck, name, rows) -> Quantized read in tiles of `rows`.
function M.load(ck, name, rows)
  local rec = assert(formats.record(ck, name))
  assert(rec.scheme, rec.unreadable or "not quantized")
  local f, src = assert(formats.get(rec.format)), assert(formats.source(ck, rec))
  local q = scheme.quantized(rec.scheme, rec.n, rec.k, rec.dtype)
  for a = 1, rec.n, rows or rec.n do
    local b = math.min(rec.n, a + (rows or rec.n) - 1)
    local tile = q:rows(a, b)
    local ok, msg, code = f.read(src, rec, a, b, tile)
    if not ok then return nil, msg, code end
    q.g_idx = tile.g_idx
    q.input_scale, q.input_zero, q.input_global = tile.input_scale, tile.input_zero, tile.input_global
  end
  return q, rec
end

--- set_codes(q, v): every code of q becomes v.
function M.fill(t, v)
  local p = t:ptr()
  for i = 0, t:numel() - 1 do p[i] = v end
end

return M
