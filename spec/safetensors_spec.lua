-- The safetensors reader: every rule of FORMATS 1, each with its own sentence.
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local files = require "spec.support.files"

local dir
before_each(function() dir = files.temporary() end)
after_each(function() files.remove(dir) end)

local u64, safetensors = files.u64, files.safetensors

local function opened(content)
  local path = dir .. "/x.safetensors"
  files.write(path, content)
  return nb.open(path)
end

-- A file with this header and this many data bytes is refused with this sentence.
local function refused(header, data_bytes, pattern, code)
  local ck, msg, c = opened(safetensors(header, data_bytes))
  assert.is_nil(ck)
  assert.matches(pattern, msg)
  assert.matches("x%.safetensors", msg)
  assert.equal(code or "eformat", c)
end

local function entry(dtype, shape, b, e)
  return ('{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(dtype, shape, b, e)
end

describe("safetensors", function()
  it("reads tensors, shapes, dtypes and metadata", function()
    local data = "\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\0\128\63"
    local ck = assert(opened(safetensors(
      '  {"__metadata__":{"format":"pt","k\\u00e9y":"v"},"w":' .. entry("I32", "2,2", 0, 16) .. ',"b":'
      .. entry("U8", "3", 16, 19) .. "} \n\t ", data)))
    assert.same({ format = "pt", ["kéy"] = "v" }, ck.metadata)
    assert.equal(2, ck.count)
    assert.same({ 1, 2, 3, 4 }, ck:tensor("w"):totable())
    assert.same({ 2, 2 }, ck:tensor("w"):size())
    assert.same({ 0, 128, 63 }, ck:tensor("b"):totable())
    assert.equal("i32", ck:info("w").dtype)
    assert.equal(4, ck:info("w").params)
    assert.is_nil(ck:info "nothing")
    assert.same({ nil, "x has no tensor nothing", "eformat" }, (function()
      local t, msg, code = ck:tensor "nothing"
      return { t, (msg:gsub("^.*/x%.safetensors", "x")), code }
    end)())
  end)

  it("reads every dtype of the format", function()
    local names = { "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ",
      "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64" }
    local header, at = {}, 0
    for i, name in ipairs(names) do
      local bytes = 8 * tonumber(C.nb_dtype_bits(i - 1)) / 8
      header[i] = ('"%s":%s'):format(name, entry(name, "2,4", at, at + bytes))
      at = at + bytes
    end
    local ck = assert(opened(safetensors("{" .. table.concat(header, ",") .. "}", at)))
    for _, name in ipairs(names) do
      assert.equal(name:lower(), ck:info(name).dtype)
      assert.equal(ck:info(name).bytes, ck:tensor(name):bytes())
    end
  end)

  it("reads scalars, empty tensors, and files without tensors", function()
    local ck = assert(opened(safetensors('{"e":' .. entry("F32", "0,5", 0, 0) .. ',"s":' .. entry("F32", "", 0, 4)
      .. ',"f":' .. entry("F32", "0", 4, 4) .. "}", 4)))
    assert.equal(1, ck:tensor("s"):numel())
    assert.equal(0, ck:tensor("e"):bytes())
    assert.equal(0, assert(opened(safetensors("{}", 0))).count)
  end)

  it("takes tensors in any order and passes over unknown fields", function()
    local ck = assert(opened(safetensors('{"b":' .. entry("U8", "2", 2, 4) .. ',"a":{"new":[{"x":1}],"dtype":"U8","shape":[2],'
      .. '"data_offsets":[0,2]}}', "abcd")))
    assert.same({ 97, 98 }, ck:tensor("a"):totable())
    assert.equal("b", ck.tensors[1].name)
  end)

  it("refuses files that are too short or too long", function()
    local _, msg = opened "abc"
    assert.matches("3 bytes are no safetensors file; expected at least 8", msg)
    _, msg = opened ""
    assert.matches("0 bytes are no safetensors file", msg)
    _, msg = opened(u64(100000001) .. "{}")
    assert.matches("header claims 100000001 bytes; at most 100000000 are allowed", msg)
    _, msg = opened(u64(50) .. "{}")
    assert.matches("header claims 50 bytes, but only 2 follow: 48 bytes are missing; the file is truncated", msg)
    refused('{"a":' .. entry("U8", "4", 0, 4) .. "}", 7, "3 bytes follow the last tensor's end at byte 4")
    refused("{}", 1, "1 bytes follow the last tensor's end at byte 0")
    refused('{"a":' .. entry("U8", "4", 0, 4) .. ',"b":' .. entry("F32", "4", 4, 20) .. "}", 12,
      "tensor b ends at byte 20 of the data, but the file holds 12: 8 bytes are missing")
  end)

  it("says what a file of another kind is", function()
    local _, msg = opened "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
    assert.matches("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`", msg)
    _, msg = opened "PK\3\4aaaaaaaaaaaaa"
    assert.matches("zip archive", msg)
    _, msg = opened "GGUF\3\0\0\0aaaaaaaaa"
    assert.matches("is a GGUF file", msg)
  end)

  it("refuses headers that are not a JSON object", function()
    refused("{x}", 0, "byte 1 of the header: expected a string, found 'x'")
    refused("[]", 0, "byte 0 of the header: expected an object, '{', found '%['")
    refused("", 0, "found the end of the text")
    refused('{"a":' .. entry("U8", "0", 0, 0), 0, "expected ',' or '}', found the end")
    refused("{} {}", 0, "expected nothing more")
    refused('{"a\255":' .. entry("U8", "0", 0, 0) .. "}", 0, "byte 3 of the header is not valid UTF%-8")
  end)

  it("refuses wrong entries, naming the tensor", function()
    refused('{"a":3}', 0, "tensor a: expected an object with dtype, shape and data_offsets")
    refused('{"a":' .. entry("F33", "1", 0, 4) .. "}", 4, 'tensor a has the unknown dtype "F33"; expected one of')
    refused('{"a":' .. entry("f32", "1", 0, 4) .. "}", 4, 'unknown dtype "f32"')
    refused('{"a":' .. entry("U4", "2", 0, 1) .. "}", 1, 'unknown dtype "U4"')
    refused('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4, "tensor a has no dtype")
    refused('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4, "tensor a has no shape")
    refused('{"a":{"dtype":"F32","shape":[1]}}', 4, "tensor a has no data_offsets")
    refused('{"a":{"dtype":"F32","dtype":"F32","shape":[1]}}', 4, "tensor a has the key dtype twice")
    for _, shape in ipairs { "-1", "1.0", "1e2", '"1"', "01", "null", "9223372036854775808", "1 2", "1," } do
      refused('{"a":' .. entry("F32", shape, 0, 4) .. "}", 4,
        "tensor a: shape must be an array of non%-negative integers below 2%^63")
    end
    refused('{"a":{"dtype":"F32","shape":4,"data_offsets":[0,4]}}', 4, "shape must be an array")
    refused('{"a":' .. entry("F32", "4294967296,4294967296", 0, 4) .. "}", 4, "size of its shape overflows 64 bits")
    refused('{"a":' .. entry("U8", "1,1,1,1,1,1,1", 0, 1) .. "}", 1, "has 7 dimensions; nibble reads at most 6", "eunsupported")
    refused('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}', 4, "data_offsets has 1 numbers, expected 2")
    refused('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}', 4, "data_offsets has 3 numbers, expected 2")
    refused('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,4]}}', 4, "data_offsets must be two non%-negative integers")
    refused('{"a":' .. entry("F32", "1", 4, 0) .. "}", 4, "data_offsets end 0 lies before begin 4")
    refused('{"a":' .. entry("F32", "2", 0, 4) .. "}", 4, "its dtype %(f32%) and shape need 8 bytes, its data_offsets give 4")
    refused('{"a":' .. entry("F4", "3", 0, 2) .. "}", 2, "12 bits of f4 don't end on a byte; expected a multiple of 8")
    refused('{"a":' .. entry("F6_E2M3", "3", 0, 3) .. "}", 3, "18 bits of f6_e2m3 don't end on a byte")
  end)

  it("refuses gaps, overlaps and repeated names", function()
    refused('{"a":' .. entry("U8", "4", 0, 4) .. ',"b":' .. entry("U8", "2", 6, 8) .. "}", 8,
      "tensor b begins at byte 6 of the data: a gap of 2 bytes after a %(ends at 4%)")
    refused('{"a":' .. entry("U8", "4", 0, 4) .. ',"b":' .. entry("U8", "4", 2, 6) .. "}", 6,
      "tensor b begins at byte 2 of the data: an overlap of 2 bytes with a")
    refused('{"a":' .. entry("U8", "4", 0, 4) .. ',"b":' .. entry("U8", "4", 0, 4) .. "}", 4, "an overlap of 4 bytes")
    refused('{"a":' .. entry("U8", "2", 2, 4) .. "}", 4, "a gap of 2 bytes after the data's begin")
    refused('{"a":' .. entry("U8", "1", 0, 1) .. ',"\\u0061":' .. entry("U8", "1", 1, 2) .. "}", 2, "has the key a twice")
  end)

  it("refuses metadata that is not string to string", function()
    refused('{"__metadata__":[]}', 0, "__metadata__ must be an object of strings")
    refused('{"__metadata__":{"a":1}}', 0, "__metadata__: the value of a must be a string")
    refused('{"__metadata__":{"a":"1","a":"2"}}', 0, "__metadata__ has the key a twice")
    refused('{"__metadata__":{},"__metadata__":{}}', 0, "the key __metadata__ twice")
  end)

  it("keeps a hostile name's control characters out of its sentences", function()
    local _, msg = opened(safetensors('{"\\u001b[31m' .. ("x"):rep(5000) .. '":3}', 0))
    assert.matches("tensor %?%[31mxxx", msg)
    assert.is_true(#msg < 600)
  end)

  it("survives failed allocations", function()
    local path = dir .. "/x.safetensors"
    files.write(path, safetensors('{"__metadata__":{"format":"pt"},"w":' .. entry("U8", "2", 0, 2) .. "}", 2))
    local failures = 0
    for n = 1, 60 do
      C.nb_debug_fail_alloc(n)
      local ok, ck, msg = pcall(nb.open, path)
      if not ok or not ck then
        failures = failures + 1
        assert.matches("out of memory", ok and msg or ck)
      end
    end
    C.nb_debug_fail_alloc(0)
    assert.is_true(failures >= 8)
    assert.is_truthy(assert(nb.open(path)))
    assert.is_truthy(ffi)
  end)
end)

describe("levels of names", function()
  local nffi = require "nibble.ffi"

  -- {name = flags} of nb_safetensors_levels.
  local function levels(ck, text, inside, most)
    local t, out = require("nibble.tensor").type(), {}
    nffi.must(nffi.C.nb_safetensors_levels(t, ck.handle, text, #text, inside and 1 or 0, most or 100))
    for flags, name in ffi.string(t.data, t:bytes()):gmatch "(.)(%Z*)%z" do out[name] = flags:byte() - 48 end
    t:free()
    return out
  end

  it("are names up to the next dot, with what lies below, each once", function()
    local support = require "spec.support.files"
    local folder, parts = support.temporary(), {}
    for _, name in ipairs { "a", "a.b.c.d", "ax.w", "a.b.w", "b.c", "a.b2.w", "nul\\u0000.w" } do
      parts[#parts + 1] = ('"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'):format(name)
    end
    support.write(folder .. "/m.safetensors", support.safetensors("{" .. table.concat(parts, ",") .. "}", ""))
    local ck = assert(require("nibble").open(folder .. "/m.safetensors"))
    assert.same({ a = 7, ax = 2, b = 2 }, levels(ck, ""))
    assert.same({ a = 7, ax = 2 }, levels(ck, "a"))
    assert.same({ ["a.b"] = 6, ["a.b2"] = 2 }, levels(ck, "a."))
    assert.same({ ["a.b.c"] = 2, ["a.b.w"] = 1 }, levels(ck, "a.b."))
    assert.same({}, levels(ck, "a.b.w."))
    assert.same({ ["a.b.c"] = 2, ["a.b"] = 2, ["a.b2"] = 2 }, levels(ck, ".b", true))
    assert.same({ ["b.c"] = 1, ["a.b.c"] = 2 }, levels(ck, "c", true))
    assert.same({ a = 7 }, levels(ck, "", false, 1))
    support.remove(folder)
  end)
end)
