-- GPT-OSS's fused experts: which modules they hold, their codes, scales and biases row by row, what is said of
-- tensors that don't fit.
local nb = require "nibble"
local files = require "spec.support.files"
local support = require "spec.support.formats"
local formats = nb.formats

local CONFIG = { quant_method = "mxfp4", modules_to_not_convert = nb.json.array { "model.layers.*.self_attn", "lm_head" } }
local E, H, I = 3, 64, 32
local values = { [0] = 0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6 }

local function random(t, below, seed)
  local rnd = support.random(seed)
  for i = 0, t:numel() - 1 do t:ptr()[i] = rnd(below) end
  return t
end

local function tensors()
  local out = {}
  for prefix, size in pairs { gate_up_proj = { 2 * I, H }, down_proj = { H, I } } do
    local name = "model.layers.0.mlp.experts." .. prefix
    out[name .. "_blocks"] = random(nb.tensor("u8", { E, size[1], size[2] / 32, 16 }), 256, 3)
    out[name .. "_scales"] = random(nb.tensor("u8", { E, size[1], size[2] / 32 }), 20, 4)
    for i = 1, out[name .. "_scales"]:numel() do out[name .. "_scales"]:set(i, out[name .. "_scales"]:get(i) + 115) end
    out[name .. "_bias"] = nb.tensor("bf16", { E, size[1] })
    for i = 1, E * size[1] do out[name .. "_bias"]:set(i, i / 4) end
  end
  out["model.layers.0.mlp.router.weight"] = nb.tensor("bf16", { E, H })
  return out
end

-- Value of row r, column c (0-based) of expert e's fused matrix.
local function value(t, prefix, e, r, c)
  local name = "model.layers.0.mlp.experts." .. prefix
  local shape = t[name .. "_blocks"]:size()
  local group = (e * shape[2] + r) * shape[3] + math.floor(c / 32)
  local byte = t[name .. "_blocks"]:get(group * 16 + math.floor(c % 32 / 2) + 1)
  local code = c % 2 == 0 and byte % 16 or math.floor(byte / 16)
  return values[code] * 2 ^ (t[name .. "_scales"]:get(group + 1) - 127)
end

describe("format mxfp4", function()
  it("FORMATS 7: each expert's gate, up and down come out as modules; gate and up rows take turns", function()
    local t = tensors()
    local ck = support.checkpoint(t, CONFIG)
    local list = assert(formats.modules(ck))
    assert.equal(3 * E + 1, #list)
    for e = 0, E - 1 do
      for leaf, where in pairs { gate_proj = { "gate_up_proj", 0, 2, I, H }, up_proj = { "gate_up_proj", 1, 2, I, H },
        down_proj = { "down_proj", 0, 1, H, I } } do
        local name = ("model.layers.0.mlp.experts.%d.%s"):format(e, leaf)
        local rec, w = assert(formats.record(ck, name)), assert(formats.weight(ck, name, "f32"))
        assert.same({ "linear", where[4], where[5], true }, { rec.kind, rec.n, rec.k, rec.bias })
        assert.equal("MXFP4A16", nb.scheme.describe(rec.scheme))
        for r = 0, rec.n - 1 do
          for c = 0, rec.k - 1, 7 do
            assert.equal(value(t, where[1], e, where[2] + r * where[3], c), w:get(r * rec.k + c + 1))
          end
        end
        local q = assert(formats.quantized(ck, name))
        local fused = t["model.layers.0.mlp.experts." .. where[1] .. "_bias"]
        assert.equal(fused:get(e * fused:size(2) + where[2] + (rec.n - 1) * where[3] + 1), q.bias:get(rec.n))
      end
    end
    assert.equal("plain", assert(formats.record(ck, "model.layers.0.mlp.router")).format)
  end)

  it("counts every byte once", function()
    local t, bytes = tensors(), 0
    for _, tensor in pairs(t) do bytes = bytes + tensor:bytes() end
    local sum = 0
    for _, rec in ipairs(assert(formats.modules(support.checkpoint(t, CONFIG)))) do sum = sum + rec.bytes end
    assert.is_true(math.abs(sum - bytes) < 1e-6)
  end)

  it("reads in tiles what it reads whole", function()
    local ck = support.checkpoint(tensors(), CONFIG)
    local whole = assert(support.load(ck, "model.layers.0.mlp.experts.2.up_proj"))
    for _, rows in ipairs { 1, 7, 16 } do
      assert.is_true((whole:equal((assert(support.load(ck, "model.layers.0.mlp.experts.2.up_proj", rows))))))
    end
  end)

  it("becomes plain weights with every expert's own bias", function()
    local root = files.temporary()
    local dir = root .. "/oss"
    assert(nb.checkpoint.mkdir(dir))
    local list, t = {}, tensors()
    for name, tensor in pairs(t) do list[#list + 1] = { name = name, dtype = tensor:type(), shape = tensor:size() } end
    table.sort(list, function(a, b) return a.name < b.name end)
    local writer = assert(nb.checkpoint.writer { dir = dir, tensors = list, shard_bytes = 1e9, metadata = { format = "pt" } })
    for _, entry in ipairs(list) do assert(writer:put(entry.name, t[entry.name])) end
    assert(writer:finish())
    writer:close()
    files.write(dir .. "/config.json", nb.json.encode { quantization_config = CONFIG })
    assert(nb.convert.to(assert(nb.open(dir)), "plain", root .. "/plain"))
    local out = assert(nb.open(root .. "/plain"))
    local name = "model.layers.0.mlp.experts.1.up_proj"
    assert.equal(value(t, "gate_up_proj", 1, 2 * 5 + 1, 9), assert(out:tensor(name .. ".weight")):get(5 * H + 10))
    assert.equal(t["model.layers.0.mlp.experts.gate_up_proj_bias"]:get(2 * I + 2 * 5 + 2), assert(out:tensor(name .. ".bias")):get(6))
    files.remove(root)
  end)

  it("is only read, and says what to write instead", function()
    local can, reason = assert(formats.get "mxfp4").can(nb.scheme.parse "MXFP4A16")
    assert.is_false(can)
    assert.matches("only read; compressed%-tensors holds the same codes %(MXFP4A16%)", reason)
  end)

  it("says which tensor doesn't fit, is missing, or belongs to nobody", function()
    local function refused(change, pattern)
      local t = tensors()
      change(t, "model.layers.0.mlp.experts.")
      local list, msg, code = formats.modules(support.checkpoint(t, CONFIG))
      assert.is_nil(list)
      assert.equal("eformat", code)
      assert.matches(pattern, msg)
    end
    refused(function(t, m) t[m .. "down_proj_scales"] = nil end, "mlp.experts: the tensor down_proj_scales is missing")
    refused(function(t, m) t[m .. "down_proj_blocks"] = nil end, "mlp.experts: the tensor down_proj_blocks is missing")
    refused(function(t, m) t[m .. "down_proj_blocks"] = nb.tensor("bf16", { E, H, 1, 16 }) end, "down_proj_blocks is bf16, expected u8")
    refused(function(t, m) t[m .. "down_proj_blocks"] = nb.tensor("u8", { E, H, 16 }) end,
      "down_proj_blocks is %[3x64x16%], expected experts × rows × groups × 16 bytes")
    refused(function(t, m) t[m .. "gate_up_proj_blocks"] = nb.tensor("u8", { E, 2 * I, 2, 15 }) end, "expected experts × rows")
    refused(function(t, m) t[m .. "down_proj_scales"] = nb.tensor("u8", { E, H, 2 }) end,
      "down_proj_blocks is %[3x64x1x16%], so down_proj_scales must be %[3x64x1%], but it is %[3x64x2%]")
    refused(function(t, m) t[m .. "down_proj_bias"] = nb.tensor("bf16", { E, I }) end, "so down_proj_bias must be %[3x64%]")
    refused(function(t, m) t[m .. "down_proj_extra"] = nb.tensor("u8", { 1 }) end, "holds down_proj_extra beside fused experts")
    refused(function(t, m)
      t[m .. "gate_up_proj_blocks"], t[m .. "gate_up_proj_scales"] = nb.tensor("u8", { E, 3, 2, 16 }), nb.tensor("u8", { E, 3, 2 })
      t[m .. "gate_up_proj_bias"] = nil
    end, "gate_up_proj_blocks has 3 rows, expected gate and up in turn")
    local t = tensors()
    t["model.layers.0.mlp.experts.down_proj_scales"]:set(E * H, 255)
    local q, msg = formats.quantized(support.checkpoint(t, CONFIG), "model.layers.0.mlp.experts.2.down_proj")
    assert.is_nil(q)
    assert.matches("experts.2.down_proj: the scale of row 63, group 0 is NaN", msg)
  end)
end)
