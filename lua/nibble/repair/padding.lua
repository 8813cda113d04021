-- repair.padding: an intermediate size that doesn't divide among tensor-parallel ranks into what the consumer's kernels
-- take, made larger by rows of zeros in gate and up and columns of zeros in down, which add nothing to any output.
-- Attention heads can't be padded like that, and are refused.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local formats = require "nibble.formats"
local scheme_m = require "nibble.scheme"
local select_m = require "nibble.select"
local tensor = require "nibble.tensor"
local text = require "nibble.text"

-- ---- which layers ----------------------------------------------------------------------------

local spellings = { { "gate_proj", "up_proj", "down_proj" }, { "w1", "w3", "w2" } }

local function of_expert(parent) return parent:find "%f[^.%z]experts%.%d+$" ~= nil end

-- Where config.json says the size of a gated MLP.
local function key_of(config, parent)
  if of_expert(parent) and type(config.moe_intermediate_size) == "number" then return "moe_intermediate_size" end
  if text.leaf(parent) == "shared_expert" then return "shared_expert_intermediate_size" end
  return "intermediate_size"
end

-- key of config.json -> {size =, mlps = array of {parent, gate, up, down}}, in order | nil, sentence
local function mlps_of(view)
  local modules, by_name, keys, by_key = view:modules(), {}, {}, {}
  for _, rec in ipairs(modules) do by_name[rec.name] = rec end
  for _, rec in ipairs(modules) do
    local parent, leaf = text.split_name(rec.name)
    for _, names in ipairs(spellings) do
      local gate, up, down = by_name[parent .. "." .. names[1]], by_name[parent .. "." .. names[2]], by_name[parent .. "." .. names[3]]
      if leaf == names[3] and gate and up then
        local key = key_of(view.config, parent)
        local of = by_key[key]
        if not of then
          of = { key = key, size = view.config[key], mlps = {} }
          by_key[key], keys[#keys + 1] = of, of
        end
        if type(of.size) ~= "number" or gate.n ~= of.size or up.n ~= of.size or down.k ~= of.size then
          return nil, ("%s: its layers have %s, %s and %s, but config.json's %s is %s"):format(parent, tostring(gate.n), tostring(up.n),
            tostring(down.k), key, tostring(of.size))
        end
        table.insert(of.mlps, { parent = parent, gate = gate, up = up, down = down })
      end
    end
  end
  return keys
end

-- ---- to which size -------------------------------------------------------------------------------

local function common_multiple(a, b)
  local x, y = a, b
  while y ~= 0 do x, y = y, x % y end
  return a / x * b
end

-- What each rank's share must be a multiple of for the formats' own sake.
local function unit_of(of)
  local unit, seen = 1, {}
  for _, mlp in ipairs(of.mlps) do
    for _, rec in ipairs { mlp.gate, mlp.up, mlp.down } do
      local s = rec.scheme
      if s and not seen[s] then
        seen[s] = true
        if s.strategy == "block" then unit = common_multiple(unit, common_multiple(s.block[1], s.block[2])) end
        if s.group > 0 then unit = common_multiple(unit, s.group) end
        if s.type == "int" then unit = common_multiple(unit, 32) end -- whole words along either side
      end
    end
  end
  return unit
end

-- How badly the consumer takes one MLP of this size: refusals and fallbacks of its layers on tp ranks.
local function badness(view, of, to, tp, consumer)
  local mlp, records = of.mlps[1], {}
  for i, rec in ipairs { mlp.gate, mlp.up, mlp.down } do
    records[i] = setmetatable({ [rec == mlp.down and "k" or "n"] = to }, { __index = rec })
  end
  local s = select_m.new({ name = view.name, config = view.config, modules = records, headers = view.tensors, stored = true,
    quantization = view.quantization }, { consumer = consumer, tp = tp })
  if not s or s.refused then return 0 end
  local bad = 0
  for _, d in ipairs(s:all()) do bad = bad + (d.action == "refuse" and 2 or d.action == "fallback" and 1 or 0) end
  return bad
end

-- The least size that the consumer takes best | nil: it is that already
local function size_for(view, of, tp, consumer)
  local unit, best, best_bad = unit_of(of), nil, nil
  for _, more in ipairs { 1, 64, 128, 256 } do
    local step = common_multiple(unit, more) * tp
    local to = math.ceil(of.size / step) * step
    local bad = view.quantization and badness(view, of, to, tp, consumer) or 0
    if not best or bad < best_bad then best, best_bad = to, bad end
  end
  if of.size % (unit * tp) == 0 and (not view.quantization or badness(view, of, of.size, tp, consumer) <= best_bad) then return nil end
  return best ~= of.size and best or nil
end

-- ---- making ------------------------------------------------------------------------------------------

-- A tensor [n,k] (or [n]) with more rows and columns, which hold `value`.
local function padded(t, rows, columns, value)
  local flat = t.ndim == 1
  local out = tensor.new(t:type(), { rows, columns })
  if value ~= 0 then out:fill(value) end
  local n, row = t:size(1), t:bytes() / t:size(1)
  local to, from, stride = ffi.cast("uint8_t *", out.data), ffi.cast("const uint8_t *", t.data), out:bytes() / rows
  for i = 0, n - 1 do ffi.copy(to + i * stride, from + i * row, row) end
  return flat and out:reshape { rows } or out
end

local function padded_bias(t, rows) return padded(t, rows, 1, 0) end

-- Both return the module's changed parts and what makes them | nil, why it can't be.
local function pad_float(view, rec, n, k)
  local parts = { weight = { rec.tensors.weight.dtype, { n, k } } }
  if rec.tensors.bias and n ~= rec.n then parts.bias = { rec.tensors.bias.dtype, { n } } end
  return parts, function()
    local src, msg, code = view:source(rec)
    if not src then return nil, msg, code end
    return { weight = padded(src.weight, n, k, 0), bias = parts.bias and padded_bias(src.bias, n) or nil }
  end
end

-- The quantized weight with more rows and columns of zeros.
local function grown(q, n, k)
  local s = q.scheme
  local zero, groups = s.type == "int" and scheme_m.zero_code(s) or 0, scheme_m.groups(s, k)
  local scale = s.strategy == "tensor" and q.scales:get(1) or 1
  local out = scheme_m.quantized(s, n, k, q.scales:type())
  out.codes = padded(q.codes, n, k, zero)
  out.scales = padded(q.scales, scheme_m.scale_rows(s, n), groups, scale)
  out.zeros = q.zeros and padded(q.zeros, n, groups, zero)
  for _, part in ipairs { "global", "factor", "input_scale", "input_zero", "input_global", "input_factor" } do out[part] = q[part] end
  out.bias = q.bias and padded_bias(q.bias, n)
  out.g_idx = q.g_idx
  if q.g_idx and k ~= q.k then
    out.g_idx = padded(q.g_idx, k, 1, 0):reshape { k }
    for c = q.k, k - 1 do out.g_idx:ptr()[c] = math.floor(c / s.group) end
  end
  return out
end

local function numel(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

-- Which tensors of a quantized module change: suffix -> {dtype, shape}, layout | nil, why not
local function changed_parts(f, rec, target)
  local parts, layout, known = {}, f.layout(target), {}
  for _, entry in ipairs(layout) do
    local info = rec.tensors[entry.suffix]
    known[entry.suffix] = true
    if info and numel(info.shape) > 1 and (text.shape(info.shape) ~= text.shape(entry.shape) or entry.suffix == "weight_shape") then
      if info.dtype ~= entry.dtype then
        return nil, ("%s.%s is %s, and its format's writer has %s there"):format(rec.name, entry.suffix, info.dtype, entry.dtype)
      end
      parts[entry.suffix] = { entry.dtype, entry.shape }
    end
  end
  for suffix, info in pairs(rec.tensors) do
    if not known[suffix] and numel(info.shape) > 1 then
      return nil, ("%s.%s is no tensor that its format's writer lays out; convert the checkpoint first"):format(rec.name, suffix)
    end
  end
  return parts, layout
end

local function pad_quantized(view, rec, n, k)
  local f = assert(formats.get(rec.format))
  if rec.variant or rec.format == "mxfp4" then
    return nil, ("%s is stored as %s; convert the checkpoint first"):format(rec.name, rec.variant or "fused experts")
  end
  local target = setmetatable({ n = n, k = k, bias_dtype = rec.bias and rec.tensors.bias.dtype or nil }, { __index = rec })
  local ok, why = f.can(rec.scheme, n, k)
  if not ok then return nil, ("%s [%dx%d]: %s"):format(rec.name, n, k, why) end
  local parts, layout = changed_parts(f, rec, target)
  if not parts then return nil, layout end
  return parts, function()
    local src, msg, code = view:source(rec)
    if not src then return nil, msg, code end
    local q = scheme_m.quantized(rec.scheme, rec.n, rec.k, rec.dtype)
    local done
    done, msg, code = f.read(src, rec, 1, rec.n, q)
    if not done then return nil, msg, code end
    local dst = {}
    for _, entry in ipairs(layout) do dst[entry.suffix] = tensor.new(entry.dtype, entry.shape) end
    done, msg, code = f.write(dst, target, 1, n, grown(q, n, k))
    if not done then return nil, msg, code end
    return dst
  end
end

local function pad(view, rec, n, k)
  nffi.stop_check()
  if not rec.scheme and not rec.tensors.weight then return nil, rec.name .. " has no weight" end
  return (rec.scheme and pad_quantized or pad_float)(view, rec, n, k)
end

-- ---- all of it ----------------------------------------------------------------------------------------

-- Nothing is changed before all of it can be.
local function pad_all(view, of, to, tp, report)
  local steps = {}
  for _, mlp in ipairs(of.mlps) do
    for _, rec in ipairs { mlp.gate, mlp.up, mlp.down } do
      local n, k = rec == mlp.down and rec.n or to, rec == mlp.down and to or rec.k
      local parts, make = pad(view, rec, n, k)
      if not parts then return report.cannot(make) end
      steps[#steps + 1] = { rec = rec, n = n, k = k, parts = parts, make = make, what = rec == mlp.down and "columns" or "rows" }
    end
  end
  for _, s in ipairs(steps) do
    view:rewrite(s.rec.name, s.parts, s.make)
    report.change { module = s.rec.name, was = ("[%d×%d]"):format(s.rec.n, s.rec.k), now = ("[%d×%d]"):format(s.n, s.k),
      why = ("%s of zeros: %d ranks"):format(s.what, tp) }
  end
  report.change { file = "config.json", was = ("%s %d"):format(of.key, of.size), now = tostring(to), why = ("%d ranks"):format(tp) }
  return view:set_config(of.key, to)
end

local function padding(view, o, report)
  local tp = o.tp
  if not tp or tp == 1 then return end
  if not view.config then return report.cannot "there is no config.json to change the intermediate size in" end
  local heads = view.config.num_attention_heads
  if type(heads) == "number" and heads % tp ~= 0 then
    return report.cannot(("%d attention heads don't divide among %d ranks, and heads can't be padded without changing what they attend to; "
      .. "take a size that divides them"):format(heads, tp))
  end
  local _, faults = view:modules()
  if faults.config or faults[1] then
    return report.cannot(("the modules can't be read: %s"):format(faults.config or faults[1].unreadable))
  end
  local keys, why = mlps_of(view)
  if not keys then return report.cannot(why) end
  if #keys == 0 then return report.cannot "no layer has gate, up and down projections of its own" end
  for _, of in ipairs(keys) do
    local to = size_for(view, of, tp, o.consumer)
    if to then
      local ok, msg, code = pad_all(view, of, to, tp, report)
      if ok == nil and msg then return nil, msg, code end
    end
  end
end

return {
  { kind = "padding", about = "the MLP's intermediate size for --tp ranks: rows and columns of zeros", run = padding },
}
