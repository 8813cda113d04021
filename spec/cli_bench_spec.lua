-- `nibble bench --device cuda`: the device's cases, and a sentence where there is none. Figures are never tested.
local command = require "spec.support.command"

local build = os.getenv "NIBBLE_BUILD" or "build"

local function bench(arguments, environment)
  return command.run("bench --device cuda " .. arguments, { before = "NIBBLE_LUA=lua NIBBLE_BUILD=" .. build .. " " .. environment })
end

describe("nibble bench --device cuda", function()
  it("runs the cases on the emulator, which gives no figures", function()
    local r = bench("'repack awq'", ("NB_CUDA_DRIVER=%s/libcuemu.so"):format(build))
    assert.equal(0, r.status)
    assert.matches("^device  nibble's emulator, sm_90, [^\n]*; kernels: the emulator's own\nemulated: no figures\n", r.out)
    assert.matches("\n  repack awq 4 bits, [^\n]* ran\n", r.out)
    assert.is_nil(r.out:match "gptq")
    assert.is_nil(r.out:match "[GTM]B/s" or r.out:match "FLOP/s")
    assert.is_nil(r.err:match "bench")
  end)

  it("says why there is no device, or none that can be used", function()
    local r = bench("", "NB_CUDA_DRIVER=/none/libcuda.so")
    assert.equal(1, r.status)
    assert.equal("", r.out)
    assert.matches("^bench: there is no CUDA driver here: /none/libcuda.so: [^\n]*\n$", r.err)
    r = bench("", ("NB_CUDA_DRIVER=%s/libcuemu.so NB_EMU_SM=75"):format(build))
    assert.equal(1, r.status)
    assert.matches("sm_75; nibble's kernels need sm_80 or later", r.err)
  end)

  it("goes on without cuBLASLt, and says so", function()
    local r = bench("'repack awq'", ("NB_CUDA_DRIVER=%s/libcuemu.so NB_CUBLASLT=/none"):format(build))
    assert.equal(0, r.status)
    assert.matches("\nbf16    not measured: there is no cuBLASLt here: /none: [^\n]*\n  repack awq", r.out)
  end)

  it("tells a case that fails, goes on and ends with 1", function()
    local r = bench("'repack awq'", ("NB_CUDA_DRIVER=%s/libcuemu.so NB_EMU_FAIL=cuLaunchKernel:1:1"):format(build))
    assert.equal(1, r.status)
    assert.matches("repack awq[^\n]*failed: [^\n]*launching kernel nb_repack_awq", r.out)
  end)

  it("takes only devices that it knows", function()
    local r = command.run("bench --device tpu", {})
    assert.equal(2, r.status)
    assert.matches('%-%-device is cpu or cuda, found "tpu"', r.err)
  end)
end)
