-- Layers of checkpoints that AutoAWQ, GPTQModel, AutoRound and llm-compressor wrote: the numbers in them, and the
-- same bytes after a way through the canonical form (FORMATS 2-4, 10).
local ffi = require "ffi"
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local sha256 = dofile "scripts/sha256.lua"
local formats, scheme = nb.formats, nb.scheme

local folders = { "autoawq-gemm-w4g128", "gptq-v1-sym-w4g128", "gptq_v2-asym-w4g32", "autoround-auto_gptq-w4g128",
  "ct-w4a16-g128", "moe-ct-w4a16-g128" }

local function open(name) return assert(nb.open("spec/interop/" .. name)) end

-- sha256 of w + 0.0.
local function hash(w)
  local wide = w:type() == "f32"
  local bits = ffi.cast(wide and "uint32_t *" or "uint16_t *", w.data)
  local minus_zero = wide and 0x80000000 or 0x8000
  for i = 0, w:numel() - 1 do
    if bits[i] == minus_zero then bits[i] = 0 end
  end
  local hex = sha256(w.data, w:bytes()) -- no tail call: w must outlive its pointer
  w:free()
  return hex
end

-- q through another format and back, in tiles.
local function through(format, name, q, dtype)
  local f = formats.get(format)
  local rec = formats.target(f, name, q.scheme, q.n, q.k, { dtype = dtype })
  local dst = {}
  for _, entry in ipairs(f.layout(rec)) do dst[entry.suffix] = nb.tensor(entry.dtype, entry.shape) end
  local out = scheme.quantized(rec.scheme, q.n, q.k, rec.dtype)
  for a = 1, q.n, 64 do
    assert(f.write(dst, rec, a, a + 63, q:rows(a, a + 63)))
    assert(f.read(dst, rec, a, a + 63, out:rows(a, a + 63)))
  end
  return out, dst
end

describe("interop", function()
  for _, name in ipairs(folders) do
    describe(name, function()
      it("dequantizes to the hashes that the tool's own numbers have", function()
        local ck = open(name)
        local expected = assert(nb.json.decode(assert(checkpoint.read_file(ck.path .. "/expected.json"))))
        local layers = 0
        for layer, want in pairs(expected.dequant) do
          assert.equal(want.sha256_f32, hash(assert(ck:weight(layer, "f32"))), layer)
          assert.equal(want.sha256_bf16, hash(assert(ck:weight(layer, "bf16"))), layer)
          layers = layers + 1
        end
        assert.equal(2, layers)
      end)

      it("goes through compressed-tensors and back to the same bytes", function()
        local ck = open(name)
        for _, rec in ipairs(ck:modules()) do
          if rec.scheme then
            local q = assert(ck:quantized(rec.name))
            local ct = through("compressed-tensors", rec.name, q)
            assert.same({ true }, { q:equal(ct) })
            assert.equal(q:hash(), ct:hash())
            local _, tensors = through(rec.format, rec.name, ct)
            for suffix in pairs(rec.tensors) do
              assert.is_true(tensors[suffix]:equal(assert(ck:tensor(rec.name .. "." .. suffix))), rec.name .. "." .. suffix)
            end
          end
        end
      end)
    end)
  end
end)
