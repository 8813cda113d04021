-- What Marlin takes, and layers made ready for it (MRL-01 to MRL-08, MRL-46, MRL-47, MRL-50, MRL-56).
local nb = require "nibble"
local ffi = require "ffi"
local marlin = require "nibble.marlin"
local method = require "nibble.methods.marlin"
local layout = nb.layout

describe("marlin", function()
  it("MRL-01: has its constants by name", function()
    local c = marlin.constants
    assert.same({ 16, 64, 128, 4, 16, true },
      { c.tile, c.min_thread_n, c.min_thread_k, c.max_blocks_per_sm, c.max_parallel, c.fp32_reduce })
    assert.same({ -1, 32, 64, 128 }, c.group_sizes)
  end)

  it("MRL-02: packs the type ids of SYSTEMS 1 and looks them up", function()
    for name, id in pairs { uint4 = 0x4000000000400ULL, uint8 = 0x4000000000800ULL, uint4b8 = 0x4000000100400ULL,
                            uint8b128 = 0x4000001000800ULL, int4 = 0x4000000010300ULL, int8 = 0x4000000010700ULL,
                            float8_e4m3fn = 0xA000000010304ULL, float4_e2m1f = 0x2000000010102ULL } do
      assert.is_true(marlin.types[name].id == id, name)
      assert.equal(name, marlin.type_of_id(id).name)
    end
    assert.error_matches(function() marlin.type_of_id(ffi.new("uint64_t", 77)) end, "no scalar type has the id 77")
  end)

  it("MRL-03: types by zero-points, capability and platform", function()
    local function types(o) return table.concat(marlin.supported_types(o), " ") end
    assert.equal("", types { capability = 70 })
    assert.equal("", types {})
    assert.equal("uint4", types { capability = 75, zero_points = true })
    assert.equal("uint4b8 uint8b128 float8_e4m3fn float4_e2m1f", types { capability = 80, zero_points = false })
    assert.equal("uint4b8 uint8b128", types { capability = 80, zero_points = false, floats = false })
    assert.equal("uint4b8 uint8b128 float8_e4m3fn float4_e2m1f uint4", types { capability = 80 })
    assert.equal("uint4", types { platform = "cpu", zero_points = true })
    assert.equal("uint4b8", types { platform = "cpu", zero_points = false })
    assert.equal("uint4 uint4b8", types { platform = "xpu", zero_points = true })
    assert.equal("uint4", types { platform = "rocm", zero_points = true }) -- no SM to check there
  end)

  it("MRL-04: a refusal states type, allowed types, group, capability and zero-points", function()
    local ok, why = marlin.supported("uint8", 128, true, 80)
    assert.is_false(ok)
    for _, part in ipairs { "uint8", "types uint4 are", "group size 128", "capability 80", "zero%-points yes" } do
      assert.matches(part, why)
    end
    ok, why = marlin.supported("uint4b8", 16, false, 80)
    assert.is_false(ok)
    assert.matches("group size 16: %-1, 32, 64, 128", why)
    assert.is_false(marlin.check_supported("uint4b8", nil, false, 80))
    assert.has_error(function() marlin.verify_supported("uint4b8", 16, false, 80) end, why)
    assert.is_true(marlin.check_supported("uint4b8", 128, false, 75))
  end)

  it("MRL-06: the pymllm policy needs SM 80 and takes uint8", function()
    marlin.policy = "pymllm"
    local ok, why = marlin.supported("uint4", 128, true, 75)
    local eight, other = marlin.supported("uint8", 128, true, 80), marlin.supported("uint4b8", 128, false, 80)
    local group, list = marlin.supported("uint4", 256, true, 80)
    marlin.policy = "vllm"
    assert.is_false(ok)
    assert.matches("SM 80 or above, found SM 75", why)
    assert.is_true(eight)
    assert.is_true(other) -- types are not checked
    assert.is_false(group)
    assert.matches("group size 256: %-1, 32, 64, 128", list)
    assert.is_false(marlin.supported("uint8", 128, true, 80))
    assert.is_true(marlin.supported("uint8", 128, true, 80, "cuda", "pymllm"))
  end)

  it("MRL-05, MRL-07: shapes, in their order, with the numbers", function()
    local function why(...) return select(2, ...) end
    local advice = ": use a smaller tensor%-parallel size or the method without Marlin"
    assert.matches("N = 96 is not a multiple of 64" .. advice, why(marlin.supports_shape(96, 64, 256, 96)))
    assert.matches("K = 64 is not a multiple of 128" .. advice, why(marlin.supports_shape(64, 64, 256, 96)))
    assert.matches("K = 256 is not a multiple of the group size 96", why(marlin.supports_shape(64, 256, 256 * 2, 96)))
    assert.is_true(marlin.supports_shape(64, 128, 128, 128))
    -- The group counts only below the whole K.
    assert.is_true(marlin.supports_shape(64, 128, 192, 192))
    assert.is_false(marlin.supports_shape(64, 128, 193, 192))
    assert.is_true(marlin.supports_shape(64, 128, 256, -1))
    assert.matches("ROCm", why(marlin.supports_moe(128, 64, 64, { platform = "rocm" })))
    assert.matches("hidden size 192", why(marlin.supports_moe(192, 64, 64)))
    assert.matches("intermediate size 64 is not a multiple of 128", why(marlin.supports_moe(128, 64, 128)))
    assert.matches("group size 16: %-1, 32, 64, 128", why(marlin.supports_moe(128, 64, 16)))
    assert.matches("intermediate size 32 is not a multiple of 64", why(marlin.supports_moe(128, 32, -1)))
    assert.is_true(marlin.supports_moe(128, 64, 32))
    assert.is_true(marlin.supports_moe(128, 64, 32, { router_weight_on_input = false, activation = "silu" }))
    assert.matches("router", why(marlin.supports_moe(128, 64, 64, { router_weight_on_input = true })))
    assert.matches("gelu", why(marlin.supports_moe(128, 64, 64, { activation = "gelu" })))
  end)

  it("MRL-05: the verifying form raises the reason", function()
    assert.has_error(function() marlin.verify_shape(96, 128, 128, 64) end,
      select(2, marlin.supports_shape(96, 128, 128, 64)))
    marlin.verify_shape(128, 128, 128, 64)
  end)

  it("MRL-46, MRL-47: activation dtypes and what goes with them", function()
    assert.equal("none", marlin.activation_dtype(nil, 90))
    assert.equal("int8", marlin.activation_dtype("INT8", 75))
    assert.equal("none", marlin.activation_dtype("int4", 90))
    for _, sm in ipairs { 89, 120, 121 } do assert.equal("fp8", marlin.activation_dtype("fp8", sm)) end
    assert.is_nil(marlin.activation_dtype("fp8", nil))
    local got, msg, code = marlin.activation_dtype("fp8", 90)
    assert.is_nil(got)
    assert.matches("SM 89 or SM 12x, found SM 90; int8", msg)
    assert.equal("eunsupported", code)
    assert.is_true(marlin.check_pair("uint4b8", "int8"))
    assert.is_true(marlin.check_pair("uint4", "fp8", true))
    assert.matches("uint4b8 weights, found uint4", select(2, marlin.check_pair("uint4", "fp8")))
    assert.matches("W8A8 is unsupported", select(2, marlin.check_pair("uint8b128", "int8")))
    assert.matches("NVFP4", select(2, marlin.check_pair("float4_e2m1f", "fp8")))
  end)

  it("MRL-50: workspaces are zero and big enough", function()
    local w = marlin.workspace(132, 4)
    assert.same({ "i32", 528, 0 }, { w:type(), w:numel(), w:get(528) })
    assert.is_true(marlin.check_workspace(w, { sms = 132 }))
    local ok, msg = marlin.check_workspace(marlin.workspace(100), { sms = 132 })
    assert.is_nil(ok)
    assert.matches("has 100 words, the kernel needs 132", msg)
    -- A mixture's: never more than 4 blocks a multiprocessor.
    local moe = { sms = 132, n = 8192, sorted_ids = 1024, block_m = 16 }
    assert.is_true(marlin.check_workspace(marlin.workspace(132, 4), moe))
    assert.matches("has 527 words, the kernel needs 528", select(2, marlin.check_workspace(marlin.workspace(527), moe)))
    assert.matches("has 63 words, the kernel needs 64", select(2, marlin.check_workspace(marlin.workspace(63),
      { sms = 132, n = 1024, sorted_ids = 64, block_m = 16 })))
    assert.is_true(marlin.check_workspace(marlin.workspace(64), { sms = 132, n = 1024, sorted_ids = 64, block_m = 16 }))
  end)

  it("MRL-08: the cheaper padding, by area and then by the sum; a mixture's intermediate size alone", function()
    local function size(...) return { marlin.padded_size(...) } end
    assert.same({ 64, 128 }, size(64, 128, 64))
    assert.same({ 64, 128 }, size(1, 1, 64))      -- areas the same, sums too: the first
    assert.same({ 128, 64 }, size(128, 64, 64))   -- nothing to fill up
    assert.same({ 128, 192 }, size(72, 192, 64))  -- 128 x 192 before 128 x 256
    assert.same({ 64, 256 }, size(64, 192, 64))
    assert.same({ 64, 384 }, size(64, 200, 96))   -- lcm(128, 96) = 384
    assert.same({ 128, 192 }, size(100, 192, 96)) -- lcm(64, 96) = 192
    assert.same({ 128, 192 }, size(64, 192, 96))  -- 64 x 384 has the same area and a larger sum
    assert.same({ 256, 320 }, size(256, 300, -1)) -- one group divides every K
    assert.same({ 128, 192, 192 }, { marlin.padded_intermediate(72, -1), marlin.padded_intermediate(100, 96),
      marlin.padded_intermediate(192, 64) })
  end)

  it("MRL-08: a padded layer unpacks to the codes and zeros beside them", function()
    local k, n = 128, 72
    local codes = nb.tensor("u8", { n, k })
    for i = 1, n * k do codes:set(i, i * 7 % 16) end
    local out = assert(method.prepare { words = layout.gptq.pack(codes, 4), order = "gptq", bits = 4, group = 64,
                                        scales = nb.tensor("f16", { 2, n }), bias = nb.tensor("f16", { n }) })
    assert.same({ 8, 256 }, out.words:size())
    assert.same({ 2, 128 }, out.scales:size())
    assert.same({ 128 }, out.bias:size())
    local back = layout.gptq.unpack(layout.marlin.unpack(out.words, 4), 4, k)
    assert.is_true(back:rows(1, n):equal(codes))
    assert.is_true(back:rows(n + 1, 128):equal(nb.tensor("u8", { 128 - n, k })))
  end)

  it("MRL-47: a layer with a pair that no kernel runs is refused", function()
    local ok, msg, code = method.prepare { words = nb.tensor("i32", { 32, 64 }), order = "gptq", bits = 8, group = -1,
                                           scales = nb.tensor("f16", { 1, 64 }), activations = "int8" }
    assert.is_nil(ok)
    assert.matches("W8A8 is unsupported: uint8b128 weights with int8", msg)
    assert.equal("eunsupported", code)
    -- zero-points with 8-bit activations: experts only
    local zp = { words = nb.tensor("i32", { 128, 8 }), order = "awq", bits = 4, group = 64, zeros = nb.tensor("i32", { 2, 8 }),
                 scales = nb.tensor("f16", { 2, 64 }):fill(1), activations = "int8" }
    assert.matches("int8 activations need uint4b8 weights, found uint4", select(2, method.prepare(zp)))
    for _, name in ipairs { "words", "zeros", "scales" } do
      local size = zp[name]:size()
      zp[name] = zp[name]:reshape { 1, size[1], size[2] }
    end
    assert.is_truthy(method.prepare(zp))
  end)

  it("MRL-22: experts use their own K, so that several groups are always permuted in groups", function()
    local m = { words = nb.tensor("i32", { 1, 32, 64 }), order = "gptq", bits = 4, group = 128,
                scales = nb.tensor("u16", { 1, 2, 64 }) }
    for i = 1, 128 do m.scales:set(i, i) end
    local own = method.prepare(m)
    assert.is_true(own.scales:equal(layout.marlin.permute_scales(m.scales, 256, 128)))
    m.scale_k = 128 -- what a peer passes
    assert.is_false(method.prepare(m).scales:equal(own.scales))
  end)
end)
