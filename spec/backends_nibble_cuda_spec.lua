-- What the oracle says of nibble's own CUDA kernels, and that it is true: the device function takes what it takes, and
-- refuses what it refuses. The device is the emulator's; each of its states is a process of its own.
local backends = require "nibble.backends"
local command = require "spec.support.command"
local support = require "spec.support.backends"
local with, chosen, weight, linear, experts = support.with, support.chosen, support.weight, support.linear, support.experts

local emulator = (os.getenv "NIBBLE_BUILD" or "build") .. "/libcuemu.so"

-- What Lua code prints in a process with these variables; its errors after it.
local function run(code, environment)
  local before = { "NIBBLE_LUA=lua", "NB_CUDA_DRIVER=" .. emulator }
  for name, value in pairs(environment or {}) do before[#before + 1] = ("%s='%s'"):format(name, value) end
  local r = command.run({ "-e", "local nb = require 'nibble' " .. code }, { before = table.concat(before, " ") })
  return r.out:gsub("\n$", "") .. r.err, r.status
end

describe("the oracle: device cuda", function()
  local function device(name, environment)
    return (run(([[print(select(2, pcall(function()
      local d, msg = require("nibble.backends.query").device(%q)
      return d and d.text .. " " .. d.platform .. " " .. d.capability or msg
    end)))]]):format(name), environment))
  end

  it("is the one of this machine, by its capability", function()
    assert.equal("sm_90 cuda 90", device "cuda")
    assert.equal("sm_89 cuda 89", device("cuda:1", { NB_EMU_SM = 89, NB_EMU_DEVICES = 2 }))
  end)

  it("or the sentence why there is none, and what to say instead", function()
    assert.matches("^device cuda: there is no CUDA driver here: /none: .*; name the one that is meant, as sm_80 or sm_90$",
      device("cuda", { NB_CUDA_DRIVER = "/none" }))
    assert.equal("device cuda:3: devices here: 1, from cuda:0 on; name the one that is meant, as sm_80 or sm_90", device "cuda:3")
    local r = command.run({ "explain", "spec/models/tiny-llama", "--consumer", "nibble", "--device", "cuda" },
      { before = "NB_CUDA_DRIVER=/none" })
    assert.equal(2, r.status)
    assert.is_nil(r.err:match "did you mean")
  end)
end)

describe("the oracle: nibble on CUDA", function()
  it("says of what is not written yet that it is not, and what computes it", function()
    local function why(q)
      local found, msg = chosen(q)
      assert.is_nil(found)
      return msg
    end
    local base = linear { consumer = "nibble", device = "sm_90" }
    local fp8 = { type = "float", bits = 8, strategy = "tensor" }
    assert.matches("fp8: is not written yet: the product of FP8 weights and FP8 activations; with %-%-device cpu nibble computes it",
      why(with(base, { weight = fp8, activation = { type = "float", bits = 8, strategy = "token" } })))
    assert.matches("nvfp4: is not written yet: the product of 4%-bit floats and 4%-bit activations", why(with(base, {
      weight = { type = "float", bits = 4, group = 16 }, activation = { type = "float", bits = 4, group = 16 } })))
    assert.matches("marlin_moe: is not written yet", why(experts { consumer = "nibble", device = "sm_90" }))
    assert.matches("needs SM 80 or above, found SM 75", why(with(base, { device = "sm_75" })))
  end)

  it("leaves what the CPU computes as it was", function()
    assert.equal("reference", chosen(linear { consumer = "nibble", device = "cpu" }))
    for _, t in ipairs(backends.consumer("nibble").tables) do
      for _, b in ipairs(t.backends) do
        for _, class in ipairs(b.classes) do
          local cuda = false
          for _, check in ipairs(class.checks) do cuda = cuda or check[1] == "capability" end
          assert.equal(t.name:match "CUDA" ~= nil, cuda)
        end
      end
    end
  end)

  it("names the smallest change for what the kernel does not take, and cuBLASLt for what only it multiplies", function()
    local base = linear { consumer = "nibble", device = "sm_90" }
    local r = assert(backends.select(base))
    assert.same({ "marlin_cuda", "dequantize_cuda" }, { r.backend, r.also[1] })
    r = assert(backends.select(with(base, { n = 11000 })))
    assert.same({ "dequantize_cuda", "pad N from 11000 to 11008" }, { r.backend, r.change })
    assert.equal("needs N of a multiple of 64, found 11000", r.rejected[1].reason)
    r = assert(backends.select(with(base, { weight = weight { group = 16 } })))
    assert.same({ "dequantize_cuda", "group 128 instead of 16" }, { r.backend, r.change })
    assert.matches("takes the group sizes %-1, 32, 64, multiples of 128 or the whole K %(4096%), found 16", r.rejected[1].reason)
    local _, msg = chosen(with(base, { dtype = "f32", packages = { cublaslt = false } }))
    assert.matches("marlin_cuda: takes input of f16 or bf16, found f32", msg)
    assert.matches("dequantize_cuda: needs the package cublaslt, which is not installed", msg)
  end)

  it("asks this machine for cuBLASLt where its device is meant", function()
    local code = [[
      local found, msg = nb.backends.select({ consumer = "nibble", kind = "linear", device = "cuda", k = 256, n = 72,
        weight = { type = "int", bits = 4, group = 64 } }, { change = false })
      print(found and found.backend or msg) ]]
    assert.equal("dequantize_cuda", run(code))
    assert.matches("dequantize_cuda: needs the package cublaslt", (run(code, { NB_CUBLASLT = "/none" })))
  end)
end)
