-- The golden repacks and permutations through the emulated kernels: what the peers' own code gave, bit for bit, with
-- every function of layout.marlin that a device has done there (spec/support/golden_cuda.lua), and so the methods that use
-- them. NIBBLE_GOLDEN names another set of cases.
local command = require "spec.support.command"

describe("golden, on a device", function()
  it("repacks, permutations and what is made of them", function()
    local r = command.run({ "spec/support/golden_cuda.lua" }, { before = ("NIBBLE_LUA=lua NB_CUDA_DRIVER=%s/libcuemu.so")
      :format(os.getenv "NIBBLE_BUILD" or "build") })
    local cases, calls, operations, failures = 0, 0, {}, {}
    for line in r.out:gmatch "[^\n]+" do
      local op, of, done = line:match "^([^|]+)|(%d+)|(%d+)$"
      if op then operations[op], cases, calls = tonumber(of), cases + of, calls + done end
      if line:match "^!" then failures[#failures + 1] = line:sub(2) end
    end
    assert.equal("", table.concat(failures, "\n"))
    assert.equal(0, r.status, r.err)
    for _, op in ipairs { "gptq_marlin_repack", "gptq_marlin_moe_repack", "awq_marlin_repack", "awq_marlin_moe_repack",
      "marlin_permute_scales", "marlin_moe_permute_scales", "marlin_permute_bias", "marlin_zero_points",
      "awq_to_marlin_zero_points", "moe_awq_to_marlin_zero_points", "moe_packed_to_marlin_zero_points",
      "marlin_act_int8_process_scales", "marlin_int4_fp8_preprocess", "nvfp4_marlin_process_scales",
      "linear_process_weights", "awq_moe_process_weights", "gptq_moe_process_weights", "prepare_fp8_layer_for_marlin" } do
      assert.is_truthy(operations[op], op .. " did not reach the device")
    end
    assert.is_true(operations["products of floats"] >= 8)
    assert.is_true(operations["products of 8-bit activations"] >= 5) -- w13 and w2 of two mixtures, and a layer
    local names = 0
    for _ in pairs(operations) do names = names + 1 end
    io.stdout:write(("\ngolden on the device: %d cases of %d operations, %d calls there\n"):format(cases, names, calls))
  end)
end)
