-- bench: check of headers and configs of a 100,000-tensor, 1-TB mixture of experts (sparse files): float, and in 4 bits. The
-- measure beside it is what any look costs: opening and listing the modules.
local ffi = require "ffi"
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local model = require "nibble.check.model"
local C = require("nibble.ffi").C

ffi.cdef "int truncate(const char *, int64_t);"

local SHARDS = 20
local config = { model_type = "qwen3_moe", architectures = { "Qwen3MoeForCausalLM" }, hidden_size = 2048, num_attention_heads = 32,
  num_key_value_heads = 8, head_dim = 128, vocab_size = 151936, intermediate_size = 6144, moe_intermediate_size = 2560,
  num_experts = 512, num_experts_per_tok = 8, num_hidden_layers = 65, torch_dtype = "bfloat16", rms_norm_eps = 1e-6,
  tie_word_embeddings = false, max_position_embeddings = 32768, hidden_act = "silu" }

local quantization = { quant_method = "compressed-tensors", format = "pack-quantized", ignore = { "lm_head", "re:.*mlp.gate$" },
  config_groups = { group_0 = { targets = { "Linear" }, weights = { num_bits = 4, type = "int", symmetric = true, strategy = "group",
    group_size = 128, dynamic = false } } } }

local function u64(n) return ffi.string(ffi.new("uint64_t[1]", n), 8) end

-- Tensors of a module: {suffix, dtype, shape, bytes}
local function tensors_of(m, packed)
  if not m.k then return { { "weight", "BF16", ("%d"):format(m.n), m.n * 2 } } end
  local quantized = packed and not m.name:find "embed" and not m.name:find "lm_head" and not m.name:find "gate$"
  if not quantized then return { { "weight", "BF16", ("%d,%d"):format(m.n, m.k), m.n * m.k * 2 } } end
  return { { "weight_packed", "I32", ("%d,%d"):format(m.n, m.k / 8), m.n * m.k / 2 },
    { "weight_scale", "BF16", ("%d,%d"):format(m.n, m.k / 128), m.n * m.k / 64 }, { "weight_shape", "I64", "2", 16 } }
end

local function write(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
end

-- A folder of sparse shards; nil where the file system has no such sizes.
local function make(dir, packed, layers)
  config.num_hidden_layers = layers
  local fake = { config = config, info = function() end }
  local e = assert(model.expected(assert(nb.models.of(config)), fake))
  assert(checkpoint.mkdir(dir))
  local map, total, count, each = {}, 0, 0, math.ceil(#e.list / SHARDS)
  for s = 1, SHARDS do
    local file, header, at = ("model-%05d-of-%05d.safetensors"):format(s, SHARDS), {}, 0
    for i = (s - 1) * each + 1, math.min(#e.list, s * each) do
      for _, t in ipairs(tensors_of(e.list[i], packed)) do
        local name = e.list[i].name .. "." .. t[1]
        header[#header + 1] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(name, t[2], t[3], at, at + t[4])
        at, map[#map + 1], count = at + t[4], ('"%s":"%s"'):format(name, file), count + 1
      end
    end
    local text = "{" .. table.concat(header, ",") .. "}"
    write(dir .. "/" .. file, u64(#text) .. text)
    if ffi.C.truncate(dir .. "/" .. file, 8 + #text + at) ~= 0 then return nil end
    total = total + at
  end
  write(dir .. "/model.safetensors.index.json", ('{"metadata":{"total_size":%.0f},"weight_map":{%s}}'):format(total,
    table.concat(map, ",")))
  config.quantization_config = packed and quantization or nil
  write(dir .. "/config.json", nb.json.encode(config))
  return count, total
end

local look = [[
local nb, C = require "nibble", require("nibble.ffi").C
local t0 = C.nb_now()
local ck = assert(nb.open(arg[1]))
assert(ck:modules())
io.write(C.nb_now() - t0, " 0\n")]]

local check = [[
local nb, C = require "nibble", require("nibble.ffi").C
local t0 = C.nb_now()
local r = assert(nb.check.run(arg[1], { values = false }))
local text = tostring(r)
io.write(C.nb_now() - t0, " ", r.counts.error, "\n")]]

local function child(build, dir, code)
  local script = dir .. "/child.lua"
  write(script, code)
  local pipe = io.popen(("%s/nibble %s %s"):format(build, script, dir))
  local seconds, errors = pipe:read("*a"):match "([%d.e+-]+) (%d+)"
  pipe:close()
  os.remove(script)
  return assert(tonumber(seconds), "the run failed"), tonumber(errors)
end

return {
  title = "check of headers: 100,000 tensors (bar: 1 s)",
  run = function(ctx)
    local dir = (os.getenv "NIBBLE_BENCH_DIR" or "/tmp") .. "/nibble-bench-" .. tostring(C.nb_now()):gsub("%D", "")
    local ok, why = pcall(function()
      for _, kind in ipairs { { "bf16", false, 65 }, { "W4A16", true, 21 } } do
        local count, bytes = make(dir .. "/" .. kind[1], kind[2], kind[3])
        if not count then return print "  no files of this size here" end
        local best, bare, errors = math.huge, math.huge, nil
        for _ = 1, 5 do -- interleaved, so that both see the same machine
          bare = math.min(bare, (child(ctx.build, dir .. "/" .. kind[1], look)))
          local s
          s, errors = child(ctx.build, dir .. "/" .. kind[1], check)
          best = math.min(best, s)
        end
        print(("  %-6s %6d tensors, %.2f TB  check %.3f s, %d errors: %.2f × opening and listing (%.3f s)"):format(kind[1], count,
          bytes / 1e12, best, errors, best / bare, bare))
      end
    end)
    os.execute("rm -rf " .. dir)
    if not ok then error(why, 0) end
  end,
}
