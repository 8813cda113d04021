-- The router on a device: kernels/moe_route.cu in every order of threads, bit for bit what nb_moe_route gives in the
-- computer's memory.
local standin = require "spec.support.standin"

local run = standin.with [[
  local cuda_moe = require 'spec.support.cuda_moe'
  local hash = cuda_moe.hash
  local function any(i) return hash(i, 40000) / 5000 - 4 end
  local function few(i) return hash(i, 4) end -- many ties
  local function small(i) return hash(i, 1000) / 2000 - 0.25 end
  local nan, inf = 0 / 0, 1 / 0
  local function edges(i) return ({ nan, inf, -inf, 0, -0.0, 100, -100, 1, 1, 1e-42 })[hash(i * 7, 14) + 1] or any(i) end
  local function check(o) local wrong = cuda_moe.route(o) if wrong then print(wrong) end end
]]

describe("the router on a device", function()
  it("chooses and weighs as the CPU does, to the bit: any number of experts and chosen ones", function()
    assert.equal("", run [[
      for _, c in ipairs { { 1, 1, 1 }, { 5, 8, 2 }, { 9, 7, 7 }, { 6, 33, 5 }, { 3, 60, 4 }, { 2, 257, 8 } } do
        for _, scoring in ipairs { "softmax", "sigmoid" } do
          check { rows = c[1], experts = c[2], top = c[3], scoring = scoring, logits = any }
          check { rows = c[1], experts = c[2], top = c[3], scoring = scoring, logits = any, normalize = true, scale = 2.5, bias = small }
        end
      end
      check { rows = 2, experts = 4096, top = 3, logits = any, bias = small, orders = false }
      check { rows = 1, experts = 300, top = 300, logits = any, normalize = true, orders = false } ]])
  end)

  it("takes f16 and bf16 logits and bias", function()
    assert.equal("", run [[
      for _, dtype in ipairs { "f16", "bf16" } do
        check { rows = 4, experts = 21, top = 3, dtype = dtype, logits = any, bias = small, bias_dtype = dtype }
        check { rows = 4, experts = 21, top = 3, dtype = dtype, logits = any, bias = small, scoring = "sigmoid", normalize = true }
      end ]])
  end)

  it("gives ties to the lower expert, in groups too", function()
    assert.equal("", run [[
      for _, scoring in ipairs { "softmax", "sigmoid" } do
        check { rows = 8, experts = 40, top = 9, logits = few, scoring = scoring }
        check { rows = 8, experts = 40, top = 6, logits = few, scoring = scoring, groups = 8, top_groups = 3 }
      end
      check { rows = 2, experts = 64, top = 6, logits = function() return 0 end, bias = function(i) return i % 2 == 0 and 0 or -0.0 end } ]])
  end)

  it("chooses among the best groups: by one expert, or by two with a bias; groups of every size", function()
    assert.equal("", run [[
      for _, c in ipairs { { 12, 12, 5, 3 }, { 12, 1, 1, 4 }, { 256, 8, 4, 8 }, { 96, 6, 2, 5 }, { 160, 5, 2, 6 }, { 80, 40, 7, 9 }, { 99, 33, 3, 9 },
        { 512, 64, 8, 8 }, { 4, 2, 1, 2 } } do
        for _, bias in ipairs { false, true } do
          check { rows = 3, experts = c[1], groups = c[2], top_groups = c[3], top = c[4], scoring = "sigmoid", logits = any, bias = bias and small or nil,
            normalize = true, scale = 2.5 }
        end
      end
      check { rows = 3, experts = 256, groups = 8, top_groups = 4, top = 8, logits = any } ]])
  end)

  it("goes with NaN, infinities and signed zeros as the CPU does", function()
    assert.equal("", run [[
      for _, scoring in ipairs { "softmax", "sigmoid" } do
        for _, bias in ipairs { false, true } do
          check { rows = 24, experts = 13, top = 5, scoring = scoring, logits = edges, bias = bias and edges or nil, normalize = true }
          check { rows = 24, experts = 12, top = 4, scoring = scoring, logits = edges, bias = bias and function(i) return edges(i + 3) end or nil,
            groups = 4, top_groups = 2 }
          check { rows = 3, experts = 12, top = 5, scoring = scoring, logits = any, bias = bias and function(i) return i < 9 and -inf or nan end or nil,
            groups = 4, top_groups = 2 }
        end
        check { rows = 4, experts = 9, top = 9, scoring = scoring, logits = function() return nan end }
      end ]])
  end)
end)
