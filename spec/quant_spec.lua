-- Methods and whole weights: the registry, options, Lua functions as methods, errors.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local quant = nb.quant
local C = nffi.C

local function weight(n, k, seed)
  local t, state = nb.tensor("f32", { n, k }), seed or 1
  for i = 0, n * k - 1 do
    state = (state * 1103515245 + 12345) % 2147483648
    t:ptr()[i] = (state / 2147483648 - 0.5) * (state % 7 == 0 and 3 or 1)
  end
  return t
end

-- Round to nearest, narrow range, written the way a recipe's function would be.
local function by_hand(w, scheme, options, out)
  local top, half = 2 ^ (scheme.bits - 1) - 1, 2 ^ (scheme.bits - 1)
  local x, codes, scales = w:ptr(), out.codes:ptr(), out.scales:ptr()
  for g = 0, out.n * out.groups - 1 do
    local absmax = 0
    for i = g * out.group, (g + 1) * out.group - 1 do absmax = math.max(absmax, math.abs(x[i])) end
    local s = out.round(absmax * (options.shrink or 1) / top)
    scales[g] = s
    for i = g * out.group, (g + 1) * out.group - 1 do
      local q = math.floor(x[i] / s + 0.5)
      codes[i] = math.max(-half, math.min(top, q)) + half
    end
  end
end

describe("quant", function()
  after_each(function() C.nb_stop_clear() end)

  it("quantizes a tensor by a scheme's name", function()
    local w = weight(4, 256)
    local q = assert(w:quantize { scheme = "W4A16", group = 128, method = "rtn" })
    assert.equal("W4A16 g128 sym", nb.scheme.describe(q.scheme))
    assert.same({ 4, 256 }, q.codes:size())
    assert.same({ 4, 2 }, q.scales:size())
    assert.equal("f32", q.scales:type())
    assert.is_nil(q.zeros)
    local a = assert(quant.quantize(w, "W4A16"))
    assert.is_true((a:equal(q)))
    q = assert(w:quantize { scheme = "W3A16_ASYM", group = 32, scale_dtype = "bf16" })
    assert.equal("bf16", q.scales:type())
    assert.same({ 4, 8 }, q.zeros:size())
    assert.is_table((w:quantize "W8A16"))
  end)

  it("keeps bf16 weights' scales in bf16", function()
    local w = nb.open "spec/models/tiny-llama":tensor "model.layers.0.self_attn.k_proj.weight"
    assert.equal("bf16", assert(w:quantize { scheme = "W4A16" }).scales:type())
  end)

  it("gives channel and tensor strategies their scales", function()
    local w = weight(4, 96)
    local q = assert(quant.quantize(w, nb.scheme.parse("W8A16", { strategy = "channel" })))
    assert.same({ 4, 1 }, q.scales:size())
    q = assert(quant.quantize(w, nb.scheme.parse("W8A16", { strategy = "tensor" })))
    assert.same({ 4, 1 }, q.scales:size())
    assert.equal(q.scales:get(1), q.scales:get(4))
    assert.is_true(quant.error_of(q, w).sqnr_db > 30)
    assert.is_false(quant.row_local(quant.methods.rtn, q.scheme))
  end)

  -- Convert streams tiles of rows: a method that says row_local must not care.
  it("gives a tile of rows the codes of the whole weight", function()
    local w = weight(16, 128)
    for name, method in pairs(quant.methods) do
      assert.is_true(method.row_local)
      for _, scheme in ipairs { nb.scheme.parse("W4A16", { group = 32 }), nb.scheme.parse "W3A16_ASYM" } do
        local whole = assert(quant.quantize(w, scheme, { method = name }))
        local part = assert(quant.quantize(w:rows(5, 11), scheme, { method = name }))
        assert.is_true((part:equal(whole:rows(5, 11))))
      end
    end
  end)

  it("does better with mse than with rtn", function()
    local w = weight(16, 256)
    local rtn = quant.error_of(assert(w:quantize { scheme = "W3A16", group = 64 }), w)
    local mse = quant.error_of(assert(w:quantize { scheme = "W3A16", group = 64, method = "mse" }), w)
    assert.is_true(mse.mse < rtn.mse and mse.sqnr_db > rtn.sqnr_db)
  end)

  it("knows each method's options", function()
    for name, method in pairs(quant.methods) do
      assert.equal(name, method.name)
      for _, o in ipairs(method.options) do
        assert.equal("string", type(o.doc))
        assert.equal(o.type, type(o.default))
        assert.is_table((quant.method(name, { [o.name] = o.default })))
      end
    end
    local function why(...) return select(2, quant.method(...)) end
    assert.equal('unknown method "rtm"; did you mean "rtn"?', why "rtm")
    assert.equal('method rtn has no option "rang"; did you mean "range"?', why("rtn", { rang = "full" }))
    assert.equal('method rtn: range = "ful"; did you mean "full"?', why("rtn", { range = "ful" }))
    assert.equal('method mse: grid must be a number, found a string (many)', why("mse", { grid = "many" }))
    assert.equal("method mse: norm = 9, expected 1 to 4", why("mse", { norm = 9 }))
    assert.equal("a method is a name, a method or a function, found a number", why(4))
  end)

  it("refuses the caller's mistakes at the caller", function()
    local w = weight(2, 100)
    assert.error_matches(function() quant.quantize(w, "W4A16") end,
      "K = 100 is not a multiple of the group size 128; choose")
    assert.error_matches(function() quant.quantize(w, "W5") end, "unknown scheme")
    assert.error_matches(function() quant.quantize(7, "W4A16") end, "expected a tensor, found a number")
    assert.error_matches(function() quant.quantize(nb.tensor("u8", { 2, 4 }), "W4A16") end, "found u8 %[2×4%]")
    assert.error_matches(function() w:quantize {} end, "name a scheme")
    local calls = { function() quant.quantize(w, "W4A16") end, function() w:quantize { scheme = "W4A16" } end }
    for _, call in ipairs(calls) do
      assert.matches("^spec/quant_spec.lua:%d+: quantize: K = 100", select(2, pcall(call)))
    end
    assert.error_matches(function() w:quantize { scheme = "W4A16", group = 50, methd = "rtn" } end,
      'method rtn has no option "methd"')
    assert.error_matches(function() w:quantize { scheme = "W4A16", group = 50, actorder = "group" } end,
      'method rtn doesn\'t order columns by itself: actorder = "group" needs to know their importance')
  end)

  it("returns what is wrong with the numbers", function()
    local w = weight(2, 128)
    w:ptr()[130] = 0 / 0
    local q, msg, code = w:quantize { scheme = "W4A16" }
    assert.is_nil(q)
    assert.matches("NaN in row 1, column 2", msg)
    assert.equal("eformat", code)
    w:ptr()[130] = 1e9
    q, msg, code = w:quantize { scheme = "W4A16", scale_dtype = "f16" }
    assert.is_nil(q)
    assert.matches("too large for f16", msg)
    assert.equal("eunsupported", code)
  end)

  it("runs a Lua function as a method", function()
    local w = weight(8, 128)
    local q = assert(w:quantize { scheme = "W4A16", group = 32, method = by_hand })
    local r = assert(w:quantize { scheme = "W4A16", group = 32, method = "rtn", range = "narrow" })
    assert.is_true(q.scales:equal(r.scales))
    assert.is_true(math.abs(quant.error_of(q, w).sqnr_db - quant.error_of(r, w).sqnr_db) < 0.01)
    local s = assert(quant.quantize(w, "W4A16", { method = by_hand, options = { shrink = 0.5 } }))
    assert.is_true(s.scales:get(1) < r.scales:get(1))
    assert.matches("^function quant_spec.lua:%d+$", assert(quant.method(by_hand)).name)
  end)

  -- DESIGN 3: a recipe names a quantizer written as a plain loop.
  it("runs the method that a recipe carries, on bf16 weights", function()
    local r = assert(nb.recipe "recipes/llama-w4a16-lua-method.lua")
    assert.equal("function", type(r.method))
    assert.is_nil((debug.gethook())) -- the recipe's instruction limit ends with the recipe
    local w = nb.open "spec/models/tiny-llama":tensor "model.layers.0.mlp.up_proj.weight"
    local q = assert(quant.quantize(w, nb.scheme.parse(r.scheme, { group = r.group }),
      { method = r.method, options = r.options }))
    assert.equal("bf16", q.scales:type())
    assert.is_true(quant.error_of(q, w).sqnr_db > 17)
    local scales = q.scales:cast "f32"
    for i = 1, scales:numel() do assert.equal(0.5, (math.frexp(scales:get(i)))) end
    local doubled = assert(quant.quantize(w, q.scheme, { method = r.method, options = { gain = 2 } }))
    assert.equal(2 * scales:get(1), doubled.scales:cast "f32":get(1))
  end)

  it("runs a Lua loop tile by tile of a large weight, and says in which rows it failed", function()
    local w, tiles = weight(300, 4096), {}
    local function nearest(t, scheme, _, out)
      local x, codes, scales, half = t:ptr(), out.codes:ptr(), out.scales:ptr(), 2 ^ (scheme.bits - 1)
      tiles[#tiles + 1] = out.n
      for g = 0, out.n * out.groups - 1 do
        local first, last, absmax = g * out.group, (g + 1) * out.group - 1, 0
        for i = first, last do absmax = math.max(absmax, math.abs(x[i])) end
        local s = out.round(absmax > 0 and absmax / (half - 0.5) or 1)
        scales[g] = s
        for i = first, last do codes[i] = math.max(-half, math.min(half - 1, math.floor(x[i] / s + 0.5))) + half end
      end
    end
    local q = assert(w:quantize { scheme = "W4A16", group = 128, method = nearest })
    assert.is_true(#tiles > 1)
    local rows = 0
    for _, n in ipairs(tiles) do rows = rows + n end
    assert.equal(300, rows)
    for _, part in ipairs { { 1, 64 }, { 129, 192 }, { 257, 300 } } do -- as those rows by themselves
      local a, b = unpack(part)
      assert.same({ true }, { q:rows(a, b):equal(assert(w:rows(a, b):quantize { scheme = "W4A16", group = 128, method = nearest })) })
    end
    local c = quant.error_of(assert(w:quantize { scheme = "W4A16", group = 128 }), w)
    assert.is_true(math.abs(quant.error_of(q, w).sqnr_db - c.sqnr_db) < 0.01) -- ties fall the other way
    local calls = 0
    local none, msg = quant.quantize(w, nb.scheme.parse("W4A16", { group = 128 }), { method = function(t, s, o, out)
      calls = calls + 1
      nearest(t, s, o, out)
      if calls == 3 then out.scales:set(1, 0 / 0) end
    end })
    assert.is_nil(none)
    assert.matches("^rows 129%-192: function quant_spec.lua:%d+: scales: %-?nan in row 0, group 0", msg)
  end)

  it("takes what a function returns, when it fits", function()
    local w = weight(2, 64)
    local q = assert(quant.quantize(w, nb.scheme.parse("W4A16_ASYM", { group = 64 }), { method = function(x, _, _, out)
      local zeros = nb.tensor("u8", { x:size(1), 1 }, { 3, 4 })
      out.scales:set(1, 0.5)
      out.scales:set(2, 0.25)
      return { codes = nb.tensor("u8", x:size()), zeros = zeros }
    end }))
    assert.same({ 3, 4 }, q.zeros:totable())
    assert.same({ 0.5, 0.25 }, q.scales:totable())
  end)

  it("checks what a function made, and says what is wrong", function()
    local w = weight(2, 64)
    local function why(f, scheme)
      local ok, got, msg = pcall(quant.quantize, w, nb.scheme.parse(scheme or "W4A16", { group = 64 }), { method = f })
      if not ok then return got end
      assert.is_nil(got)
      return msg
    end
    local function fill(out)
      out.scales:set(1, 1)
      out.scales:set(2, 1)
    end
    assert.matches("function quant_spec.lua:%d+: scales: 0 in row 0, group 0", why(function() end))
    assert.matches("scales: nan in row 1, group 0", (why(function(_, _, _, out)
      fill(out)
      out.scales:set(2, 0 / 0)
    end):gsub("%-nan", "nan")))
    assert.matches("codes: 16 in row 1, column 3 %(counted from 0%); 4 bits hold 0 to 15", why(function(_, _, _, out)
      fill(out)
      out.codes:set(68, 16)
    end))
    assert.matches("zeros: 200 in row 0, column 0", why(function(_, _, _, out)
      fill(out)
      out.zeros:set(1, 200)
    end, "W4A16_ASYM"))
    assert.matches("codes: expected u8 %[2×64%], found i8 %[2×64%]", why(function()
      return { codes = nb.tensor("i8", { 2, 64 }) }
    end))
    assert.matches("scales: expected f32 %[2×1%], found f32 %[2×2%]", why(function()
      return { scales = nb.tensor("f32", { 2, 2 }) }
    end))
    assert.matches("scales must be a tensor, found a number", why(function() return { scales = 3 } end))
    assert.matches("zeros were returned, but the scheme is symmetric", why(function()
      return { zeros = nb.tensor("u8", { 2, 1 }) }
    end))
    assert.matches("expected nothing or a table {codes=, scales=, zeros=}, found a number",
      why(function() return 7 end))
    assert.matches("function quant_spec.lua:%d+: .*: no", why(function() error "no" end))
  end)

  it("keeps NaN bits away from a Lua function", function()
    local w = nb.tensor("f32", { 2, 32 })
    w:as("u32"):ptr()[5] = 0xfffff123 -- as a number, LuaJIT would take it for something else
    local called = false
    local q, msg, code = w:quantize { scheme = "W4A16", group = 32, method = function() called = true end }
    assert.is_nil(q)
    assert.equal("eformat", code)
    assert.matches("1 weights are NaN or infinite", msg)
    assert.is_false(called)
  end)

  it("adds up the error of tiles as that of the whole", function()
    local w = weight(10, 64)
    local q = assert(w:quantize { scheme = "W2A16", group = 32 })
    local whole, sums = quant.error_of(q, w), {}
    quant.add_error(sums, q:rows(1, 4), w:rows(1, 4))
    quant.add_error(sums, q:rows(5, 10), w:rows(5, 10))
    assert.same(whole, quant.finish_error(sums))
    local d, e2, w2, worst = q:dequantize "f32", 0, 0, 0
    for i = 1, w:numel() do
      local e = w:get(i) - d:get(i)
      e2, w2, worst = e2 + e * e, w2 + w:get(i) ^ 2, math.max(worst, math.abs(e))
    end
    assert.near(e2 / 640, whole.mse, 1e-9)
    assert.near(10 * math.log10(w2 / e2), whole.sqnr_db, 1e-5)
    assert.near(worst, whole.max_abs, 1e-6)
    assert.is_true(whole.worst_row >= 1 and whole.worst_row <= 10 and whole.worst_row_share >= 0.1)
    assert.equal(math.huge, quant.error_of(q, d).sqnr_db)
  end)
end)
