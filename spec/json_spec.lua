-- JSON: strict reading with line and column, deterministic writing.
local nb = require "nibble"
local nffi = require "nibble.ffi"
local ffi = require "ffi"
local json = nb.json

local function refused(text, pattern)
  local value, msg, code = json.decode(text, "config.json")
  assert.is_nil(value)
  assert.equal("eformat", code)
  assert.matches(pattern, msg)
end

describe("json", function()
  it("reads every kind of value", function()
    local v = json.decode '{"a": [1, -2.5e3, "x", true, false, null], "b": {}, "c": []}'
    assert.equal(1, v.a[1])
    assert.equal(-2500, v.a[2])
    assert.equal("x", v.a[3])
    assert.is_true(v.a[4])
    assert.is_false(v.a[5])
    assert.equal(json.null, v.a[6])
    assert.is_true(json.is_array(v.c))
    assert.is_false(json.is_array(v.b))
    assert.equal(json.null, json.decode "null")
    assert.is_false(json.decode "false")
  end)

  it("says where and why a text is wrong", function()
    refused('{"a": 1,\n  "b": 2,\n}', "^config.json:3:1: not JSON: expected another member after ',', found '}'")
    refused('{"a" 1}', "config.json:1:6: not JSON: expected ':', found '1'")
    refused('{"a": [1 2]}', "1:10: not JSON: expected ',' or '%]', found '2'")
    refused('{"a": NaN}', "NaN and Infinity are not JSON; expected a finite number or null")
    refused('[-Infinity]', "NaN and Infinity are not JSON")
    refused('[01]', "must not begin with 0")
    refused('[1.]', "expected a digit, found '%]'")
    refused('["a', "closing quote, found the end of the text")
    refused('["\\x"]', "after a backslash")
    refused('["\\ud800"]', "surrogate pair")
    refused('["a\nb"]', "control characters")
    refused('[1] x', "expected nothing more, found 'x'")
    refused("", "1:1: not JSON: expected a value, found the end of the text")
    refused("// x\n{}", "expected a value, found '/'")
    refused('["ä", x]', "config.json:1:7:") -- columns are characters
  end)

  it("bounds the depth", function()
    refused(("["):rep(100000), "nested more than 512 deep")
    assert.is_table(json.decode(("["):rep(500) .. ("]"):rep(500)))
  end)

  it("keeps escapes, surrogate pairs, U+0000 and bytes that are not UTF-8", function()
    assert.equal('"\\/\b\f\n\r\t', json.decode [["\"\\\/\b\f\n\r\t"]])
    assert.equal("\240\159\152\128é", json.decode '"\\ud83d\\ude00\\u00e9"')
    assert.equal("a\0b\\u0000", json.decode '"a\\u0000b\\\\u0000"')
    assert.equal("\255\254", json.decode '"\255\254"')
  end)

  it("keeps integers to 2^53 exactly and rounds larger ones", function()
    assert.equal(9007199254740992, json.decode "9007199254740992")
    assert.equal(2 ^ 63, json.decode "9223372036854775807")
    assert.equal("9223372036854775807", json.encode(9223372036854775807LL))
  end)

  it("writes the same bytes for the same value: sorted keys, or __order", function()
    assert.equal("[false,true]", json.encode(json.array { false, true }))
    local v = { b = 1, a = { 1, 2, json.array {} }, c = {}, d = "\"\1é/" }
    assert.equal('{"a":[1,2,[]],"b":1,"c":{},"d":"\\"\\u0001é/"}', json.encode(v))
    v = { z = 1, a = 2, m = 3, __order = { "m", "z" } }
    assert.equal('{"m":3,"z":1,"a":2}', json.encode(v))
    assert.equal('{\n  "a": [\n    1,\n    {}\n  ],\n  "b": null\n}',
      json.encode({ a = { 1, {} }, b = json.null }, { indent = 2 }))
  end)

  it("writes numbers so that they read back the same", function()
    for _, v in ipairs { 0.1, 1 / 3, 1e-5, 1e300, -2.5, 123456789012, 5e-324, 1.7976931348623157e308, 2 ^ 60 } do
      assert.equal(v, json.decode(json.encode(v)))
    end
    assert.equal("1e-05", json.encode(1e-5))
    assert.equal("10000", json.encode(10000))
  end)

  it("refuses what has no JSON form", function()
    assert.error_matches(function() json.encode(0 / 0) end, "has no JSON form; expected a finite number")
    assert.error_matches(function() json.encode { math.huge } end, "inf has no JSON form")
    assert.error_matches(function() json.encode { f = print } end, "a function has no JSON form")
    assert.error_matches(function() json.encode { 1, x = 2 } end, "the key 1 is a number")
    local loop = {}
    loop.loop = loop
    assert.error_matches(function() json.encode(loop) end, "does a table hold itself")
    assert.error_matches(function() json.decode(7) end, "expected a string, found number")
  end)

  it("tells the order of keys (GPTQ's dynamic rules: the first match wins)", function()
    local v = json.decode '{"z": 1, "a": 2, "m": 3}'
    v.b, v.a = 4, nil
    assert.same({ "z", "m", "b" }, json.keys(v))
  end)

  it("turns failed allocations into nil, msg", function()
    local text = '{"a": [1, 2, {"b": "c\\u0000"}]}'
    local failures = 0
    for n = 1, 40 do
      nffi.C.nb_debug_fail_alloc(n)
      local v, msg, code = json.decode(text)
      if nffi.C.nb_error() ~= nil and not v then
        failures = failures + 1
        assert.equal("enomem", code)
        assert.matches("out of memory", msg)
      end
    end
    nffi.C.nb_debug_fail_alloc(0)
    assert.is_true(failures > 5)
    assert.is_truthy(ffi)
  end)
end)
