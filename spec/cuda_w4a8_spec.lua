-- w4a8_moe on a device: the CPU's packed weights in Marlin's order for int8 activations. Its products give what nb_w4a8_gemm gives,
-- rounded once to the layer's dtype, and the layer what the CPU's apply gives.
local run = require("spec.support.standin").with [[
  local systems, ffi, C = require 'spec.support.systems', require "ffi", require("nibble.ffi").C
  local gemm, nffi = require "nibble.gemm", require "nibble.ffi"
  local function scheme(group)
    return { type = "int", bits = 4, symmetric = true, strategy = group == -1 and "channel" or "group", group = group,
      activations = { type = "int", bits = 8, symmetric = true, strategy = "token", dynamic = true } }
  end
  -- The same layer here and on the device.
  local function both(group, o)
    o.experts = o.experts or 2
    local a, A = systems.made("w4a8_moe", scheme(group), o)
    local b, B = systems.made("w4a8_moe", scheme(group), o, nil, "cuda")
    return a, assert(A), b, assert(B)
  end
  -- Expert e's product w of x: nb_w4a8_gemm's and the device's.
  local function products(a, A, B, w, x, e)
    local packed, want = A:get(w .. "_weight_packed"), nb.tensor("f32", { x:size(1), A[w .. "_out"] })
    nffi.must(C.nb_w4a8_gemm(want, x, packed[e + 1], a.group))
    return want, assert(gemm.marlin(x:to "cuda", gemm.marlin_expert(B.on_device.matrices[w], e))):to "cpu"
  end
]]

describe("w4a8_moe's products on a device", function()
  it("CTM-W4A8-14: give nb_w4a8_gemm's numbers, rounded once; of a scale a row, which is rounded before, within that", function()
    assert.equal(("true "):rep(8), run [[
      for i, group in ipairs { 32, 64, 128, -1 } do
        local o = { dtype = i % 2 == 0 and "f16" or "bf16", bias = true, hidden = 256 }
        local a, A, b, B = both(group, o)
        for _, w in ipairs { "w13", "w2" } do
          local x = systems.values(o.dtype, { ({ 1, 20, 70, 33 })[i], A[w .. "_in"] })
          local want, y = products(a, A, B, w, x, 1)
          local unit, right = o.dtype == "f16" and 2 ^ -11 or 2 ^ -8, y:type() == o.dtype
          local _, _, bias = a:unpack(A, w, 1)
          for at = 1, want:numel() do
            local v, of_scale = want:get(at), 0
            if group == -1 then of_scale = unit * math.abs(v - bias:get((at - 1) % want:size(2) + 1)) end
            right = right and math.abs(y:get(at) - v) <= unit * math.abs(v) + of_scale + 2 ^ -20
          end
          io.write(tostring(right), " ")
        end
      end]])
  end)

  it("CTM-W4A8-14: take rows of zeros, of the largest codes, and rows that aren't finite, whose results are NaN", function()
    assert.equal("true true true true", run [[
      local a, A, b, B = both(64, { hidden = 128 })
      local x = systems.values("f16", { 5, 128 })
      for i = 1, 128 do x:set(i, 0) x:set(128 + i, i % 2 == 0 and 900 or -900) end
      x:set(3 * 128 + 7, 1 / 0)
      local want, y = products(a, A, B, "w13", x, 0)
      local n, said = want:size(2), { true, true, true, true }
      for at = 1, want:numel() do
        local v, found, row = want:get(at), y:get(at), math.floor((at - 1) / n)
        if row == 0 then said[1] = said[1] and found == 0
        elseif row == 1 then said[2] = said[2] and math.abs(found - v) <= 2 ^ -11 * math.abs(v) + 2 ^ -20
        elseif row == 3 then said[3] = said[3] and found ~= found and v ~= v
        else said[4] = said[4] and math.abs(found - v) <= 2 ^ -11 * math.abs(v) + 2 ^ -20 end
      end
      for i = 1, 4 do said[i] = tostring(said[i]) end
      io.write(table.concat(said, " "))]])
  end)

  it("CTM-W4A8-08: hold what was packed", function()
    assert.equal("true true int8 nil", run [[
      local a, A, b, B = both(64, { bias = true, dtype = "bf16" })
      local _, scales, bias = a:unpack(A, "w2", 1)
      local m = gemm.marlin_expert(B.on_device.matrices.w2, 1)
      io.write(tostring(nb.layout.marlin.unpermute_scales(m.scales, m.k, 64, true):to("cpu"):equal(scales:transpose())), " ",
        tostring(nb.layout.marlin.unpermute_bias(m.bias):to("cpu"):cast("f32"):equal(bias)), " ", m.activations, " ",
        tostring(B.on_device.activations))]])
  end)
end)

describe("w4a8_moe on a device", function()
  it("CTM-W4A8-12, CTM-W4A8-13: gives the CPU's bytes where scales are of groups, router weights on either side, without a wait", function()
    assert.equal(("true "):rep(6), run [[
      for i, o in ipairs { { 64, "f16", "silu" }, { 32, "bf16", "swigluoai" }, { 128, "f16", "swiglustep" } } do
        local a, A, b, B = both(o[1], { experts = 3, dtype = o[2], activation = o[3], bias = i == 2, intermediate = 256 - 64 * (i % 3) })
        local x, logits = systems.values(o[2], { 7, 128 }), systems.values("f32", { 7, 3 })
        local d_x, d_logits = x:to "cuda", logits:to "cuda"
        for _, on_input in ipairs { false, true } do
          local how = { router_weight_on_input = on_input }
          local want = a:apply_monolithic(A, x, logits, how)
          local g, y = assert(nb.cuda.graph(function() return b:apply_monolithic(B, d_x, d_logits, how) end)) -- a graph can't wait
          assert(g())
          io.write(tostring(y:to("cpu"):equal(want) and b:apply_monolithic(B, x, logits, how):equal(want)), " ")
        end
      end]])
  end)

  it("takes other groups by 16-bit products of what the codes stand for", function()
    assert.equal("nil int8 true", run [[
      local a, A, b, B = both(48, { dtype = "bf16", intermediate = 96, hidden = 192 })
      local form = B.on_device
      local x, logits = systems.values("bf16", { 5, 192 }), systems.values("f32", { 5, 2 })
      local want = a:apply_monolithic(A, x, logits):cast "f32"
      local off = nb.compare(want, b:apply_monolithic(B, x, logits):cast "f32").max_abs
      io.write(tostring(form.matrices.w13.activations), " ", form.activations.type, form.activations.bits, " ",
        tostring(off <= 8 * 2 ^ -8 * want:stats().absmax))]])
  end)
end)
