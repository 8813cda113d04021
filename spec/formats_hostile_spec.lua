-- A checkpoint is hostile input: whatever its config and headers say, the answer is a sentence, never a crash.
local nb = require "nibble"
local support = require "spec.support.formats"
local formats, scheme = nb.formats, nb.scheme

local odd = { nb.json.null, "x", "", -1, 0, 0.5, 1e18, 0 / 0, true, false, {}, nb.json.array {}, nb.json.array { 1 },
  { x = nb.json.array { "y" } } }

-- Compiled loops hold the tables that their closures saw, and those the last tensors: forget them.
local function forgetting(f)
  return function()
    jit.flush()
    local ok, failure = pcall(f)
    jit.flush()
    assert(ok, failure)
  end
end

-- Every way of going on from a checkpoint; each returns or gives nil and a sentence.
local function try(ck, what)
  local ok, failure = pcall(function()
    local list, msg = formats.modules(ck)
    assert(list or type(msg) == "string")
    for _, rec in ipairs(list or {}) do
      local w, why = formats.weight(ck, rec.name, "f32")
      assert(w or type(why) == "string")
      if rec.scheme then
        local q, reason = formats.quantized(ck, rec.name)
        assert(q or type(reason) == "string")
      end
    end
  end)
  assert(ok, what .. ": " .. tostring(failure))
end

local function copy(t)
  if type(t) ~= "table" or t == nb.json.null then return t end
  local out = nb.json.is_array(t) and nb.json.array {} or {}
  for k, v in pairs(t) do out[k] = copy(v) end
  return out
end

-- Calls f(config, what) with each field of config, at any depth, replaced by each odd value.
local function each_mutation(config, f)
  local function walk(path)
    local at = config
    for _, key in ipairs(path) do at = at[key] end
    if type(at) ~= "table" or at == nb.json.null then return end
    for key in pairs(at) do
      for i, value in ipairs(odd) do
        local changed = copy(config)
        local place = changed
        for _, step in ipairs(path) do place = place[step] end
        place[key] = value
        f(changed, ("%s.%s = odd %d"):format(table.concat(path, "."), tostring(key), i))
      end
      local deeper = { unpack(path) }
      deeper[#deeper + 1] = key
      walk(deeper)
    end
  end
  walk {}
end

local function shapes_of(shape)
  local out = { {}, { 0 }, { 1 }, { 0, 0 }, { 1, 1 }, { 3, 5, 7 } }
  if #shape == 2 then
    out[#out + 1] = { shape[2], shape[1] }
    out[#out + 1] = { shape[1] + 1, shape[2] }
    out[#out + 1] = { shape[1], shape[2] + 1 }
    out[#out + 1] = { 0, shape[2] }
    out[#out + 1] = { shape[1], 0 }
  end
  return out
end

-- GPT-OSS's tensors, which nothing here writes.
local function fused_experts()
  local name, out = "m.experts.", {}
  out[name .. "down_proj_blocks"], out[name .. "down_proj_scales"] = nb.tensor("u8", { 2, 4, 1, 16 }), nb.tensor("u8", { 2, 4, 1 })
  out[name .. "down_proj_bias"] = nb.tensor("bf16", { 2, 4 })
  return out, { quant_method = "mxfp4", modules_to_not_convert = nb.json.array { "lm_head" } }
end

local cases = {
  { "compressed-tensors", "W4A16 g32 asym actorder" }, { "gptq", "W4A16 g32 asym actorder" }, { "gptq_v2", "W3A16 g32 sym" },
  { "awq", "W4A16 g32 asym" }, { "compressed-tensors", "NVFP4" }, { "compressed-tensors", "MXFP4" },
  { "compressed-tensors", "FP8_BLOCK block16x32" }, { "compressed-tensors", "FP8" },
  { "compressed-tensors", "W4A8 g32 asym act:int8:tensor:static:asym" },
  { "fp8", "FP8_BLOCK block16x16 act:fp8:g16" }, { "fp8", "FP8" }, { "modelopt", "NVFP4" },
  { "modelopt", "FP8_BLOCK" }, { "mxfp4", "fused experts", fresh = fused_experts },
}

for _, case in ipairs(cases) do
  local format, words = case[1], case[2]
  describe("hostile " .. format .. " " .. words, function()
    local fresh = case.fresh or function()
      local q = support.quantized(scheme.parse(words), 32, 64, "f16")
      q.input_scale, q.input_global = nb.tensor("f32", { 1 }, { 0.5 }), nb.tensor("f32", { 1 }, { 64 })
      local tensors, rec = assert(support.store(format, "m.proj", q))
      return tensors, assert(formats.get(format).config { rec, { name = "lm_head", kind = "linear" } })
    end

    it("any config", forgetting(function()
      local tensors, config = fresh()
      config.dynamic = format:match "gptq" and { ["+:m.*"] = { bits = 4 } } or nil
      each_mutation(config, function(changed, what) try(support.checkpoint(tensors, changed), what) end)
      for _, extra in ipairs { "extra_config", "dynamic", "checkpoint_format", "packing_format", "version", "format", "quantized_layers",
        "quantization", "exclude_modules", "quant_algo" } do
        for i, value in ipairs(odd) do
          local changed = copy(config)
          changed[extra] = value
          try(support.checkpoint(tensors, changed), extra .. " = odd " .. i)
          changed.quant_method = "auto-round"
          try(support.checkpoint(tensors, changed), "auto-round " .. extra .. " = odd " .. i)
        end
      end
    end))

    it("any shape and dtype, missing and surplus tensors", forgetting(function()
      local tensors, config = fresh()
      for name, t in pairs(tensors) do
        local function with(value, what)
          local changed = {}
          for k, v in pairs(tensors) do changed[k] = v end
          changed[name] = value
          try(support.checkpoint(changed, config), name .. " " .. what)
        end
        with(nil, "missing")
        for _, shape in ipairs(shapes_of(t:size())) do with(nb.tensor(t:type(), shape), table.concat(shape, "x")) end
        for _, dtype in ipairs { "u8", "i64", "f32", "f8_e4m3", "bool" } do with(nb.tensor(dtype, t:size()), dtype) end
        local noise = t:clone()
        local bytes, rnd = noise:as("u8"):ptr(), support.random(3)
        for i = 0, noise:bytes() - 1 do bytes[i] = rnd(256) end
        with(noise, "noise")
      end
    end))
  end)
end
