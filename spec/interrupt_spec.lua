-- Ctrl-C reaches every job and every loop of nibble's own: with the stop flag set each of these raises "interrupted",
-- gives back what it took, and works the next time.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local C = nffi.C

local MODEL, QUANTIZED = "spec/models/tiny-llama", "spec/interop/ct-w4a16-g128"
local IDS = "spec/models/eval/test_tokens.safetensors"

local function weight() return nb.tensor("f32", { 64, 256 }) end

-- name -> function that makes what the job needs and returns the job.
local jobs = {
  ["a new tensor"] = function() return weight end,
  ["a copy"] = function()
    local a, b = weight(), weight()
    return function() nffi.must(C.nb_tensor_copy(a, b)) end
  end,
  ["clone"] = function() local w = weight() return function() w:clone() end end,
  ["map"] = function() local w = weight() return function() w:map(function(v) return v + 1 end) end end,
  ["totable"] = function() local w = nb.tensor("u8", { 131072 }) return function() w:totable() end end,
  ["stats"] = function() local w = weight() return function() w:stats() end end,
  ["cast"] = function() local w = weight() return function() w:cast "bf16" end end,
  ["transpose"] = function() local w = weight() return function() w:transpose() end end,
  ["compare"] = function() local a, b = weight(), weight() return function() nb.compare(a, b) end end,
  ["quantize"] = function() local w = weight() return function() w:quantize { scheme = "W4A16" } end end,
  ["quantize by mse"] = function() local w = weight() return function() w:quantize { scheme = "W4A16", method = "mse" } end end,
  ["dequantize"] = function() local q = weight():quantize { scheme = "W4A16" } return function() q:dequantize() end end,
  ["the error of a quantized weight"] = function()
    local w, sums = weight(), require("ffi").new "nb_quant_sums"
    return function() nffi.must(C.nb_quant_error_of(sums, w, w)) end
  end,
  ["packing FP4"] = function()
    local codes, bytes = nb.tensor("u8", { 64, 256 }), nb.tensor("u8", { 64, 128 })
    return function() nffi.must(C.nb_fp4_pack(bytes, codes, 0)) end
  end,
  ["unpacking FP4"] = function()
    local codes, bytes = nb.tensor("u8", { 64, 256 }), nb.tensor("u8", { 64, 128 })
    return function() nffi.must(C.nb_fp4_unpack(codes, bytes, 0)) end
  end,
  ["the list of tensors"] = function() local ck = assert(nb.open(MODEL)) return function() return ck.tensors end end,
  ["the list of modules"] = function() local ck = assert(nb.open(MODEL)) return function() return ck:modules() end end,
  ["grep"] = function()
    local ck = assert(nb.open(MODEL))
    ck:modules()
    return function() return ck:grep "proj" end
  end,
  ["a plan"] = function()
    local ck = assert(nb.open(MODEL))
    ck:modules()
    return function() return nb.plan("any-w4a16", ck) end
  end,
  ["a conversion's plan"] = function()
    local ck = assert(nb.open(QUANTIZED))
    ck:modules()
    return function() return require("nibble.plan").conversion(ck, "gptq") end
  end,
  ["explain"] = function() local ck = assert(nb.open(QUANTIZED)) ck:modules() return function() return tostring(nb.explain(ck)) end end,
  ["eval"] = function()
    local ck = assert(nb.open(MODEL))
    return function() return nb.eval.run { model = ck, ids = IDS, context = 64, windows = 1 } end
  end,
  ["search in the descriptions"] = function() return function() return require("nibble.repl.search").find "tensor" end end,
}

describe("Ctrl-C", function()
  for name, prepare in pairs(jobs) do
    it("stops " .. name, function()
      local job = prepare()
      C.nb_stop_request()
      finally(function() C.nb_stop_clear() end)
      local ok, msg = pcall(job)
      C.nb_stop_clear()
      assert.is_false(ok)
      assert.matches("interrupted$", tostring(msg))
      assert.is_true((pcall(job)))
    end)
  end
end)
