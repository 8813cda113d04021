-- Causal attention and rotary embedding against plain double-precision models.
local nb = require "nibble"
local C = require("nibble.ffi").C
local compute = nb.compute

local function random(shape, seed)
  math.randomseed(seed)
  local t = nb.tensor("f32", shape)
  for i = 1, t:numel() do t:set(i, 4 * math.random() - 2) end
  return t
end

-- One query row of one head: softmax over what it may see.
local function attend(q, k, v, at, i, o, d, kv_row, q_row)
  local first = o.sliding and math.max(0, i - o.sliding + 1) or 0
  local scores, max = {}, -math.huge
  for j = first, i do
    local s = 0
    for t = 0, d - 1 do s = s + q[at.q + i * q_row + t] * k[at.kv + j * kv_row + t] end
    scores[j] = s * (o.scale or 1 / math.sqrt(d))
    max = math.max(max, scores[j])
  end
  local sum, out = 0, {}
  for j = first, i do
    scores[j] = math.exp(scores[j] - max)
    sum = sum + scores[j]
  end
  for t = 0, d - 1 do
    out[t] = 0
    for j = first, i do out[t] = out[t] + scores[j] / sum * v[at.kv + j * kv_row + t] end
  end
  return out
end

local function worst(found, q, k, v, o)
  local d, most = q:size(2) / o.heads, 0
  local q_row, kv_row, p = q:size(2), k:size(2), found:ptr()
  for row = 0, q:size(1) - 1, o.length do
    for h = 0, o.heads - 1 do
      local at = { q = row * q_row + h * d, kv = row * kv_row + math.floor(h / (o.heads / o.kv_heads)) * d }
      for i = 0, o.length - 1 do
        local want = attend(q:ptr(), k:ptr(), v:ptr(), at, i, o, d, kv_row, q_row)
        for t = 0, d - 1 do most = math.max(most, math.abs(p[at.q + i * q_row + t] - want[t])) end
      end
    end
  end
  return most
end

describe("compute.attention", function()
  after_each(function()
    C.nb_cpu_limit(-1)
    C.nb_threads_set(0)
  end)

  for path, features in pairs { portable = 0, all = -1 } do
    -- sequences, length, heads, kv_heads, d, sliding: one token; odd counts; past a block of 64; windows within,
    -- across and beyond the sequence
    for _, s in ipairs {
      { 3, 1, 2, 1, 4 }, { 2, 7, 6, 2, 6 }, { 1, 131, 3, 3, 8 }, { 2, 66, 4, 1, 10, 1 }, { 1, 131, 2, 1, 8, 5 },
      { 1, 131, 2, 1, 8, 70 }, { 1, 65, 2, 2, 8, 65 }, { 1, 20, 2, 2, 8, 2 ^ 52 },
    } do
      it(("%d sequences of %d, %d heads over %d of %d, window %s, %s"):format(s[1], s[2], s[3], s[4], s[5],
        tostring(s[6] or "none"), path), function()
        C.nb_cpu_limit(features)
        local m = s[1] * s[2]
        local q, k, v = random({ m, s[3] * s[5] }, 1), random({ m, s[4] * s[5] }, 2), random({ m, s[4] * s[5] }, 3)
        local o = { heads = s[3], kv_heads = s[4], length = s[2], sliding = s[6] }
        C.nb_threads_set(1)
        local found = compute.attention(nb.tensor("f32", { m, s[3] * s[5] }), q, k, v, o)
        assert.is_true(worst(found, q, k, v, o) < 3e-6)
        C.nb_threads_set(3)
        assert.is_true(compute.attention(nb.tensor("f32", { m, s[3] * s[5] }), q, k, v, o):equal(found))
      end)
    end
  end

  it("takes another scale", function()
    local q, k, v = random({ 5, 8 }, 1), random({ 5, 8 }, 2), random({ 5, 8 }, 3)
    local o = { heads = 2, kv_heads = 2, length = 5, scale = 0.7 }
    assert.is_true(worst(compute.attention(nb.tensor("f32", { 5, 8 }), q, k, v, o), q, k, v, o) < 3e-6)
  end)

  it("says what doesn't fit", function()
    local t = nb.tensor("f32", { 4, 8 })
    local function with(o) return function() compute.attention(t, t, t, t, o) end end
    assert.error_matches(with { heads = 4, kv_heads = 3, length = 4 }, "4 heads over 3 key/value heads")
    assert.error_matches(with { heads = 3, kv_heads = 3, length = 4 }, "don't divide rows of 8")
    assert.error_matches(with { heads = 2, kv_heads = 2, length = 3 }, "4 rows are not whole sequences of 3")
    assert.error_matches(with { heads = 2, kv_heads = 1, length = 4 }, "attention: k: expected f32 %[4x4%], found f32 %[4x8%]")
    assert.error_matches(with { heads = 2, kv_heads = 2, length = 4, sliding = -1 }, "sliding window of %-1")
  end)
end)

describe("compute.rope", function()
  it("turns each pair (i, i + d/2) by the row's angle", function()
    local d, length, m, heads = 6, 3, 6, 2
    local x = random({ m, heads * d }, 4)
    local before = x:clone()
    local c, s = nb.tensor("f32", { 4, 3 }), nb.tensor("f32", { 4, 3 })
    for i = 1, 12 do
      c:set(i, math.cos(i))
      s:set(i, math.sin(i))
    end
    compute.rope(x, c, s, d, length)
    for row = 0, m - 1 do
      for h = 0, heads - 1 do
        for i = 0, 2 do
          local at, angle = row * heads * d + h * d + i + 1, row % length * 3 + i + 1
          local a, b = before:get(at), before:get(at + 3)
          assert.is_true(math.abs(x:get(at) - (a * math.cos(angle) - b * math.sin(angle))) < 1e-6)
          assert.is_true(math.abs(x:get(at + 3) - (b * math.cos(angle) + a * math.sin(angle))) < 1e-6)
        end
      end
    end
  end)

  it("says what doesn't fit", function()
    local x, c = nb.tensor("f32", { 2, 6 }), nb.tensor("f32", { 2, 3 })
    assert.error_matches(function() compute.rope(x, c, c, 4, 2) end, "rows of 6 are not heads of 4")
    assert.error_matches(function() compute.rope(x, c, c, 3, 2) end, "heads of 3 %(an even number%)")
    assert.error_matches(function() compute.rope(x, c, c, 6, 3) end, "sequences of 3, but the table has 2 positions")
    assert.error_matches(function() compute.rope(x, x, c, 6, 2) end, "rope: cosines: expected f32 %[%*x3%], found f32 %[2x6%]")
  end)
end)
