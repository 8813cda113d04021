-- rope: the angles of rotary embedding from a config, for every scaling rule that
-- is known. Frequencies and angles are rounded to float32 where the reference
-- implementation holds them in float32, so that long positions agree too.
local ffi = require "ffi"
local tensor = require "nibble.tensor"

local M = {}

local cell = ffi.new "float[1]"
local function f32(x)
  cell[0] = x
  return tonumber(cell[0])
end

local floor, ceil, log, max, min, pi = math.floor, math.ceil, math.log, math.max, math.min, math.pi

-- theta^(-2i/d), i = 0 .. d/2-1.
local function frequencies(theta, d)
  local freq = {}
  for i = 0, d / 2 - 1 do freq[i + 1] = f32(1 / f32(theta ^ (2 * i / d))) end
  return freq
end

local rules = {}

function rules.default(_, theta, d) return frequencies(theta, d), 1 end

-- Positions are divided by factor.
function rules.linear(o, theta, d)
  local freq = frequencies(theta, d)
  for i, f in ipairs(freq) do freq[i] = f32(f / o:number "factor") end
  return freq, 1
end

-- theta grows with the part of the sequence that lies beyond what was trained.
function rules.dynamic(o, theta, d, length)
  local factor, trained = o:number "factor", o.max_position
  local reach = max(length, trained)
  return frequencies(theta * (factor * reach / trained - (factor - 1)) ^ (d / (d - 2)), d), 1
end

-- Long waves are divided by factor, short ones kept, a ramp between.
function rules.llama3(o, theta, d)
  local factor, low, high = o:number "factor", o:number "low_freq_factor", o:number "high_freq_factor"
  local trained = o:trained()
  local freq = frequencies(theta, d)
  for i, f in ipairs(freq) do
    local wave = 2 * pi / f
    if wave > trained / low then
      freq[i] = f32(f / factor)
    elseif wave >= trained / high then
      local smooth = (trained / wave - low) / (high - low)
      freq[i] = f32((1 - smooth) * f / factor + smooth * f)
    end
  end
  return freq, 1
end

local function yarn_attention(o, factor)
  local given = o:number("attention_factor", false)
  if given then return given end
  local function scale(m) return factor <= 1 and 1 or 0.1 * m * log(factor) + 1 end
  local m, all = o:number_or_0 "mscale", o:number_or_0 "mscale_all_dim"
  return m and all and scale(m) / scale(all) or scale(1)
end

-- Interpolated below beta_slow turns over the trained length, kept above beta_fast.
function rules.yarn(o, theta, d)
  local trained = o:trained()
  local factor = o:number("factor", o.max_position / trained)
  local function dimension(turns) return d * log(trained / (turns * 2 * pi)) / (2 * log(theta)) end
  local low, high = dimension(o:number_or_0("beta_fast") or 32), dimension(o:number_or_0("beta_slow") or 1)
  if o.values.truncate ~= false then low, high = floor(low), ceil(high) end
  low, high = max(low, 0), min(high, d - 1)
  if low == high then high = high + 0.001 end
  local freq = frequencies(theta, d)
  for i, f in ipairs(freq) do
    local ramp = min(max((i - 1 - low) / (high - low), 0), 1)
    freq[i] = f32(f / factor * ramp + f * (1 - ramp))
  end
  return freq, yarn_attention(o, factor)
end

local Options = {}
Options.__index = Options

-- A number of the rope settings; fallback nil = required, false = may be absent.
function Options:number(key, fallback)
  local v = self.values[key]
  if type(v) == "number" and v == v and v > 0 and v < math.huge then return v end
  if v == nil and fallback ~= nil then return fallback end
  error({ msg = ("config.json: %s.%s must be a number above 0, found %s"):format(self.where, key, tostring(v)) }, 0)
end

-- A number for which 0 means the same as absence; false = absent.
function Options:number_or_0(key) return self.values[key] ~= 0 and self:number(key, false) end

-- The length that was trained. Beside the rope settings it has the first word.
function Options:trained()
  return self.outer_trained or self:number("original_max_position_embeddings", self.max_position)
end

--- rule(get, default_theta) -> rope | nil, msg, code
-- get(key): config.json's value or nil. Reads rope_theta with rope_scaling, or
-- rope_parameters, which newer configs have in their place; with both, rope_scaling
-- counts, as in the reference implementation. A rule that isn't known is refused by name.
function M.rule(get, default_theta)
  local scaling = get "rope_scaling"
  local old = type(scaling) == "table" and next(scaling) ~= nil or not get "rope_parameters"
  local where = old and "rope_scaling" or "rope_parameters"
  local values, clean = get(where), {}
  if values ~= nil and type(values) ~= "table" then
    return nil, ("config.json: %s must be an object, found %s"):format(where, tostring(values)), "eformat"
  end
  local null = require("nibble.json").null
  for k, v in pairs(values or {}) do
    if v ~= null then clean[k] = v end
  end
  local kind = clean.rope_type or clean.type or "default"
  if not rules[kind] or type(clean.full_attention) == "table" then
    return nil, ("rope type %s is not supported; known: default, dynamic, linear, llama3, yarn"):format(
      type(clean.full_attention) == "table" and "per layer type" or tostring(kind)), "eunsupported"
  end
  local part, trained = clean.partial_rotary_factor, get "original_max_position_embeddings"
  if part ~= nil and part ~= 1 then
    return nil, ("config.json: %s.partial_rotary_factor %s is not supported; expected 1"):format(where, tostring(part)),
      "eunsupported"
  end
  if trained ~= nil and not (type(trained) == "number" and trained > 0 and trained < math.huge) then
    return nil, "config.json: original_max_position_embeddings must be a number above 0, found " .. tostring(trained), "eformat"
  end
  local rope = setmetatable({ kind = kind, where = where, values = clean,
    max_position = get "max_position_embeddings", outer_trained = trained }, Options)
  rope.theta = clean.rope_theta or get "rope_theta" or default_theta
  if type(rope.theta) ~= "number" or not (rope.theta > 0 and rope.theta < math.huge) then
    return nil, "config.json: rope_theta must be a number above 0, found " .. tostring(rope.theta), "eformat"
  end
  -- Settings that are missing show themselves now and not in the first forward pass.
  local ok, problem = pcall(rules[kind], rope, rope.theta, 4, 1)
  if not ok then
    if type(problem) ~= "table" then error(problem, 0) end
    return nil, problem.msg, "eformat"
  end
  return rope
end

--- tables(rope, head_dim, length) -> cosines, sines: f32 [length, head_dim/2]
function M.tables(rope, head_dim, length)
  local freq, scale = rules[rope.kind](rope, rope.theta, head_dim, length)
  local half = head_dim / 2
  local cosines, sines = tensor.new("f32", { length, half }), tensor.new("f32", { length, half })
  local c, s = cosines:ptr(), sines:ptr()
  for p = 0, length - 1 do
    for i = 1, half do
      local angle = f32(p * freq[i])
      c[p * half + i - 1] = math.cos(angle) * scale
      s[p * half + i - 1] = math.sin(angle) * scale
    end
  end
  return cosines, sines
end

return M
