-- Columns quantized in the order of their importance (DESIGN 4: actorder).
local nb = require "nibble"
local actorder = require "nibble.actorder"
local C = require("nibble.ffi").C

local function numbers(n, k)
  local w = nb.tensor("f32", { n, k })
  for i = 1, w:numel() do w:set(i, math.sin(i * 1.7) * (1 + (i % k) / 4)) end
  return w
end

describe("actorder", function()
  it("orders by importance, ties where they stand, and numbers the groups", function()
    local order = actorder.order(nb.tensor("f32", { 6 }, { 1, 5, 2, 5, 0, 9 }))
    assert.same({ 5, 1, 3, 2, 0, 4 }, order:totable())
    assert.same({ 2, 0, 1, 1, 2, 0 }, actorder.g_idx(order, 2):totable())
    assert.has_error(function() actorder.order(nb.tensor("f32", { 2 }, { 1, 0 / 0 })) end,
      "actorder: the importance of column 1 is NaN")
  end)

  it("gathers columns of 8, 16 and 32 bits and refuses what is no order", function()
    local order = nb.tensor("i32", { 3 }, { 2, 0, 1 })
    for _, dtype in ipairs { "u8", "bf16", "f32" } do
      local t, out = nb.tensor(dtype, { 2, 3 }, { 1, 2, 3, 4, 5, 6 }), nb.tensor(dtype, { 2, 3 })
      assert.equal(0, C.nb_columns_gather(out, t, order))
      assert.same({ 3, 1, 2, 6, 4, 5 }, out:totable())
    end
    local t = nb.tensor("u8", { 2, 3 })
    assert.is_true(C.nb_columns_gather(nb.tensor("u8", { 2, 3 }), t, nb.tensor("i32", { 3 }, { 0, 3, 1 })) < 0)
    assert.is_true(C.nb_columns_gather(nb.tensor("u8", { 2, 3 }), t, nb.tensor("i32", { 2 })) < 0)
    assert.is_true(C.nb_columns_gather(nb.tensor("i8", { 2, 3 }), t, order) < 0)
    assert.is_true(C.nb_columns_gather(nb.tensor("u64", { 2, 3 }), nb.tensor("u64", { 2, 3 }), order) < 0)
  end)

  it("groups columns of like importance: codes, scales and groups are those of the sorted weight", function()
    local w, importance = numbers(16, 32), nb.tensor("f32", { 32 })
    for i = 1, 32 do importance:set(i, (i * 7) % 32) end
    for _, method in ipairs { "rtn", "mse" } do
      local q = assert(w:quantize { scheme = "W4A16", group = 8, actorder = "group", method = method, importance = importance })
      local order = actorder.order(importance)
      local sorted = nb.tensor("f32", { 16, 32 })
      assert.equal(0, C.nb_columns_gather(sorted, w, order))
      local plain = assert(sorted:quantize { scheme = "W4A16", group = 8, method = method })
      assert.is_true(q.scales:equal(plain.scales))
      local back, whole = nb.tensor("f32", { 16, 32 }), q:dequantize "f32"
      assert.equal(0, C.nb_columns_gather(back, whole, order))
      assert.is_true(back:equal(plain:dequantize "f32"))
    end
    assert.has_error(function() w:quantize { scheme = "W4A16", group = 8, actorder = "group" } end)
  end)

  it("sums the squares of columns in double, whatever the batches", function()
    local x = numbers(40, 600)
    local whole, parts = nb.tensor("f64", { 600 }), nb.tensor("f64", { 600 })
    assert.equal(0, C.nb_column_squares(whole, x))
    assert.equal(0, C.nb_column_squares(parts, x:rows(1, 13)))
    assert.equal(0, C.nb_column_squares(parts, x:rows(14, 40)))
    assert.is_true(whole:equal(parts))
    local sum = 0
    for r = 1, 40 do sum = sum + x:get { r, 600 } ^ 2 end
    assert.equal(sum, whole:get(600))
    assert.is_true(C.nb_column_squares(nb.tensor("f64", { 599 }), x) < 0)
  end)

  describe("in a run", function()
    local dir = os.tmpname()
    os.remove(dir)
    teardown(function() os.execute(("rm -rf %q"):format(dir)) end)
    local recipe = { name = "ao", scheme = "W4A16", group = 64, actorder = "group", lm_head = false }

    it("needs a text, and says so before anything is written", function()
      local plan = assert(nb.plan(recipe, assert(nb.open "spec/models/tiny-moe")))
      assert.matches("orders columns by their inputs: running needs a text", plan.notes[1])
      local ok, msg, code = plan:run(dir)
      assert.is_nil(ok)
      assert.equal("einval", code)
      assert.matches("W4A16 g64 sym actorder needs how large the layer's inputs are, which comes from calibration", msg)
      assert.is_nil(io.open(dir .. "/config.json"))
    end)

    it("writes the columns' groups; the experts' Marlin kernels read them, with the same loss (CTM-WNA16-15)", function()
      recipe.calibrate = { ids = "spec/models/eval/calib.safetensors", samples = 2, length = 256 }
      assert(assert(nb.plan(recipe, assert(nb.open "spec/models/tiny-moe"))):run(dir))
      local ck = assert(nb.open(dir))
      local q = assert(ck:tensor "model.layers.0.self_attn.q_proj.weight_g_idx")
      assert.is_true(q:equal(assert(ck:tensor "model.layers.0.self_attn.k_proj.weight_g_idx")))
      local counts = {}
      for _, g in ipairs(q:totable()) do counts[g + 1] = (counts[g + 1] or 0) + 1 end
      assert.same({ 64, 64, 64, 64 }, counts)
      local function eval(through)
        return assert(nb.eval.run { model = ck, ids = "spec/models/eval/test_tokens.safetensors", context = 256, windows = 1,
          through = through })
      end
      local reference, r = eval "reference", eval "auto"
      assert.same({ "ct_wna16_moe 3 moe", "reference 12 linear" }, { unpack(r.through) })
      assert.is_true(math.abs(r.nll - reference.nll) < 2e-6)
    end)
  end)
end)
