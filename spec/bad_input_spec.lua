-- Damaged checkpoints, through the executable (issue "First light", DESIGN 1.6):
-- one sentence on stderr, exit status 2, nothing on stdout, no output folder left behind.
local checkpoint = require "nibble.checkpoint"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local hostile = require "spec.support.hostile"
local damaged, fresh, refused = hostile.damaged, hostile.fresh, hostile.refused
local run_of, convert_of, eval_of = hostile.run_of, hostile.convert_of, hostile.eval_of
local plain_model, file = hostile.plain_model, hostile.file

setup(hostile.begin)
teardown(hostile.finish)

-- ---- files ---------------------------------------------------------------------

describe("a file that is no good", function()
  local function raw(text)
    local dir = fresh()
    assert(checkpoint.mkdir(dir))
    files.write(dir .. "/model.safetensors", text)
    return dir
  end
  local whole

  setup(function() whole = files.read(plain_model .. "/model.safetensors") end)

  local cases = {
    { "empty", function() return "" end, "0 bytes" },
    { "shorter than its length field", function() return "abc" end, "3 bytes" },
    { "cut inside the header", function() return whole:sub(1, 500) end, "header" },
    { "cut inside the data", function() return whole:sub(1, #whole - 10) end, "truncated" },
    { "longer than it says", function() return whole .. "xxxx" end, "4 bytes" },
    { "with a header of 2^60 bytes", function() return files.u64(2 ^ 60) .. whole:sub(9) end, "header" },
    { "with a header that is no JSON", function() return files.safetensors("{hello: world}", 0) end, "header" },
    { "with overlapping tensors", function()
      return files.safetensors('{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        .. '"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}', 12)
    end, "overlap" },
    { "with a hole", function()
      return files.safetensors('{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        .. '"b":{"dtype":"U8","shape":[8],"data_offsets":[12,20]}}', 20)
    end, "b" },
    { "with a shape that overflows", function()
      return files.safetensors('{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}', 8)
    end, "a" },
    { "with a shape that needs other bytes", function()
      return files.safetensors('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', 8)
    end, "12.*8" },
    { "with an unknown dtype", function()
      return files.safetensors('{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}', 8)
    end, "F33" },
    { "with a tensor twice", function()
      return files.safetensors('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        .. '"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}', 8)
    end, "twice" },
    { "with a negative size", function()
      return files.safetensors('{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}', 4)
    end, "non%-negative" },
  }
  for _, case in ipairs(cases) do
    it(case[1], function()
      local dir = raw(case[2]())
      refused("inspect " .. dir, case[3])
      run_of(dir, case[3])
    end)
  end

  it("with no model there", function()
    refused("inspect /nonexistent/model", "/nonexistent/model doesn't exist")
    eval_of("/nonexistent/model", "/nonexistent/model doesn't exist")
    local empty = fresh()
    assert(checkpoint.mkdir(empty))
    refused("inspect " .. empty, "holds no checkpoint; expected model.safetensors")
  end)

  it("beside links that lead back to it, and pipes", function()
    local dir = damaged("plain", {})
    os.execute(("cd %s && ln -s . a && ln -s .. b && mkdir c && ln -s ../c c/d && ln -s nowhere e"):format(dir))
    local ck = assert(require("nibble").open(dir))
    assert.same({ "e" }, ck.other_files)
    os.execute(("cd %s && rm e && mkfifo pipe"):format(dir))
    run_of(dir, "pipe is not a regular file")
  end)

  it("with a config.json that is broken", function()
    local dir = damaged("plain", {})
    files.write(dir .. "/config.json", '{"model_type": "llama",')
    refused("inspect " .. dir, "config.json")
    files.write(dir .. "/config.json", '[1, 2]')
    run_of(dir, "config.json: expected a JSON object")
  end)
end)

describe("an index", function()
  local sharded = "spec/models/parity/qwen3-moe-sharded"
  local index, shard = "/model.safetensors.index.json", "/model-00002-of-00002.safetensors"

  it("that names a missing shard", function()
    local dir = damaged(sharded, {})
    os.remove(dir .. shard)
    refused("inspect " .. dir, "model%-00002%-of%-00002.safetensors")
    run_of(dir, "model%-00002%-of%-00002.safetensors")
  end)

  it("that lists a tensor its file lacks", function()
    local dir = damaged(sharded, {})
    local text = files.read(dir .. index):gsub('"weight_map": {', '"weight_map": {"ghost.weight": "model-00001-of-00002.safetensors",')
    files.write(dir .. index, text)
    refused("inspect " .. dir, "ghost.weight")
  end)

  it("that puts a tensor into the wrong file", function()
    local dir = damaged(sharded, {})
    local text = files.read(dir .. index):gsub('(lm_head.weight": ")[^"]*', "%1model-00002-of-00002.safetensors")
    local other = text:gsub('(lm_head.weight": ")[^"]*', "%1model-00001-of-00002.safetensors")
    files.write(dir .. index, text == files.read(dir .. index) and other or text)
    refused("inspect " .. dir, "lm_head.weight")
  end)

  it("that points outside the folder", function()
    local dir = damaged(sharded, {})
    local text = files.read(dir .. index):gsub("model%-00002%-of", "../../model-00002-of")
    files.write(dir .. index, text)
    refused("inspect " .. dir, "%.%./")
  end)

  it("that is no JSON, or has no weight_map", function()
    local dir = damaged(sharded, {})
    files.write(dir .. index, "{")
    refused("inspect " .. dir, "index.json")
    files.write(dir .. index, "{}")
    refused("inspect " .. dir, "weight_map")
  end)
end)

-- ---- quantized tensors -----------------------------------------------------------

local module = "model.layers.0.mlp.up_proj"

-- What each format calls its parts.
local parts = {
  awq = { codes = "qweight", scales = "scales", zeros = "qzeros", to = "compressed-tensors" },
  gptq = { codes = "qweight", scales = "scales", zeros = "qzeros", to = "compressed-tensors" },
  ["compressed-tensors"] = { codes = "weight_packed", scales = "weight_scale", zeros = "weight_zero_point", to = "gptq_v2" },
}

-- The bits of odd scales by dtype. (Negative ones are sound: AutoRound writes them.)
local odd_scales = {
  NaN = { F16 = "\0\126", BF16 = "\192\127", F32 = "\0\0\192\127" },
  infinite = { F16 = "\0\124", BF16 = "\128\127", F32 = "\0\0\128\127" },
  zero = { F16 = "\0\0", BF16 = "\0\0", F32 = "\0\0\0\0" },
}

for format, part in pairs(parts) do
  describe(format .. " tensors", function()
    local function broken(pattern, change)
      local dir = damaged(format, { weights = change })
      convert_of(dir, part.to, pattern)
      eval_of(dir, pattern)
    end
    local function of(list, suffix) return list[module .. "." .. suffix] end

    for what, bits in pairs(odd_scales) do
      it("with a " .. what .. " scale", function()
        local dir = damaged(format, { weights = function(list)
          local t = of(list, part.scales)
          editor.poke(t, 3 * #bits[t.dtype], bits[t.dtype])
        end })
        local pattern = "model%.layers%.0%.mlp%.up_proj.*scale"
        convert_of(dir, part.to, pattern)
        eval_of(dir, pattern)
        run_of(dir, "quantized already")
        local again = file("again.lua", 'return { name = "again", scheme = "W4A16", group = 32, requantize = true }')
        local out = fresh()
        refused(("run %s %s --out %s"):format(again, dir, out), pattern, out)
      end)
    end

    it("of a wrong dtype", function()
      broken("up_proj.*" .. part.codes, function(list) of(list, part.codes).dtype = "F32" end)
      broken("up_proj.*" .. part.scales, function(list)
        local t = of(list, part.scales)
        t.dtype = t.dtype == "F32" and "I32" or "I16"
      end)
      broken("up_proj.*" .. part.zeros, function(list) of(list, part.zeros).dtype = "F32" end)
    end)

    it("of a wrong shape", function()
      for _, suffix in ipairs { part.codes, part.scales, part.zeros } do
        broken("up_proj", function(list)
          local t = of(list, suffix)
          t.shape = { t.shape[2] * 2, t.shape[1] / 2 }
        end)
        broken("up_proj", function(list)
          local t = of(list, suffix)
          t.shape = { t.shape[1] * t.shape[2] }
        end)
        broken("up_proj", function(list)
          local t = of(list, suffix)
          t.shape, t.data = { 0, t.shape[2] }, ""
        end)
      end
    end)

    it("of which one is missing", function()
      for _, suffix in ipairs { part.codes, part.scales, part.zeros } do
        broken("up_proj", function(list) editor.remove(list, module .. "." .. suffix) end)
      end
    end)

    it("that a config contradicts", function()
      for _, change in ipairs {
        function(c) c.bits, c.group_size = 4, 64 end, function(c) c.bits, c.group_size = 8, 32 end,
        function(c) c.group_size = -7 end, function(c) c.bits = 77 end, function(c) c.bits = "four" end,
      } do
        local dir = damaged(format, { config = function(config)
          local q = config.quantization_config
          if not q.config_groups then return change(q) end
          local set = {}
          change(set)
          local w = q.config_groups.group_0.weights
          w.num_bits, w.group_size = set.bits or w.num_bits, set.group_size or w.group_size
        end })
        convert_of(dir, part.to, "config")
        eval_of(dir, "config")
      end
    end)

    it("without any quantization config", function()
      local dir = damaged(format, { config = function(config) config.quantization_config = nil end })
      os.remove(dir .. "/quantize_config.json")
      convert_of(dir, part.to, "quantization config")
      eval_of(dir, "quantization config")
    end)
  end)
end

describe("act-order", function()
  it("with a g_idx that points outside, or of a wrong dtype", function()
    local function with(change)
      return damaged("gptq", { weights = change, config = function(c) c.quantization_config.desc_act = true end })
    end
    local name = module .. ".g_idx"
    local dir = with(function(list) editor.poke(list[name], 8, "\99\0\0\0") end)
    convert_of(dir, "compressed-tensors", "up_proj.*g_idx.*99")
    eval_of(dir, "up_proj.*g_idx.*99")
    dir = with(function(list) editor.poke(list[name], 8, "\255\255\255\255") end)
    eval_of(dir, "up_proj.*g_idx.*%-1")
    dir = with(function(list) list[name].dtype = "F32" end)
    eval_of(dir, "up_proj.*g_idx.*i32")
    dir = with(function(list) list[name].shape = { 8, #list[name].data / 32 } end)
    eval_of(dir, "up_proj.*g_idx")
  end)
end)

describe("float weights", function()
  it("with NaN or infinity", function()
    for _, bits in ipairs { "\0\0\192\127", "\0\0\128\127", "\0\0\128\255" } do
      local dir = damaged("plain", { weights = function(list) editor.poke(list[module .. ".weight"], 4 * 777, bits) end })
      run_of(dir, "model%.layers%.0%.mlp%.up_proj")
      eval_of(dir, "model%.layers%.0")
    end
  end)
end)
