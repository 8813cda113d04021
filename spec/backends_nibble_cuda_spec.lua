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
    assert.matches("nvfp4: is not written yet: the product of 4%-bit floats", why(with(base, { weight = {
      type = "float", bits = 4, group = 16 } })))
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
    assert.is_truthy(weight)
  end)
end)
