-- Hostile bytes: thousands of mutations of small valid files, always the same
-- ones; each either opens or gets a sentence. And the crash files that fuzzing
-- (scripts/fuzz-safetensors) has found, in spec/fuzz/.
local nb = require "nibble"
local ffi = require "ffi"
local C = require("nibble.ffi").C
local files = require "spec.support.files"

local dir
setup(function() dir = files.temporary() end)
teardown(function() files.remove(dir) end)

-- The same numbers everywhere and every time (math.random may differ).
local function generator(seed)
  local state = ffi.new("uint64_t", seed)
  return function(n) -- 0 .. n-1
    state = state * 6364136223846793005ULL + 1442695040888963407ULL
    return tonumber((state / 2 ^ 33ULL) % n)
  end
end

local alphabet = "{}[],:\"\\0123456789-.eEnN \n\255"

local function mutate(text, random)
  for _ = 1, 1 + random(3) do
    local at, kind = 1 + random(#text), random(5)
    local head, tail = text:sub(1, at - 1), text:sub(at + 1)
    local c = 1 + random(#alphabet)
    if kind == 0 then text = head .. string.char(random(256)) .. tail
    elseif kind == 1 then text = head .. alphabet:sub(c, c) .. tail
    elseif kind == 2 then text = head .. tail
    elseif kind == 3 then text = head .. text:sub(at, at) .. text:sub(at)
    else text = random(4) == 0 and head .. " " or text end
  end
  return #text > 0 and text or " "
end

local codes = { eformat = true, eio = true, eunsupported = true }

-- nil with a sentence, or a checkpoint whose every tensor can be read.
local function judge(path)
  local ck, msg, code = nb.open(path)
  if not ck then
    assert(codes[code], code)
    assert(#msg > 20 and #msg < 2000, msg)
    return 0
  end
  for _, t in ipairs(ck.tensors) do
    local view = assert(ck:tensor(t.name))
    if #t.shape > 0 and view:bytes() > 0 then C.nb_tensor_equal(view, view) end
    assert(view:bytes() == t.bytes)
  end
  return 1
end

describe("hostile bytes", function()
  local header = '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
    .. '"b\\u00e9":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}} '

  it("as a safetensors file never crash the reader", function()
    local random, opened = generator(1), 0
    local valid = files.safetensors(header, 22)
    for _ = 1, 2000 do
      files.write(dir .. "/x.safetensors", mutate(valid, random))
      opened = opened + judge(dir .. "/x.safetensors")
    end
    assert.is_true(opened > 20 and opened < 1900) -- both ways are really taken
  end)

  it("as an index never crash the reader", function()
    local random, opened = generator(2), 0
    files.write(dir .. "/s", files.safetensors(header, 22))
    local valid = '{"metadata":{"total_size":22},"weight_map":{"a":"s","b\\u00e9":"s"}}'
    for _ = 1, 1000 do
      files.write(dir .. "/x.safetensors.index.json", mutate(valid, random))
      opened = opened + judge(dir .. "/x.safetensors.index.json")
    end
    assert.is_true(opened > 20 and opened < 1900)
  end)

  it("as JSON never crash the parser", function()
    local random, parsed = generator(3), 0
    local valid = files.read "spec/models/tiny-llama/config.json"
    for _ = 1, 2000 do
      local value, msg = nb.json.decode(mutate(valid, random))
      if value == nil then assert(#msg > 10) else parsed = parsed + 1 end
    end
    assert.is_true(parsed > 20 and parsed < 1900)
  end)

  it("that once crashed a reader don't any more", function()
    for _, name in ipairs(nb.checkpoint.exists "spec/fuzz" and nb.checkpoint.list "spec/fuzz" or {}) do
      local input = files.read("spec/fuzz/" .. name)
      local kind, text = input:byte(1) % 4, input:sub(3)
      local path = dir .. (kind == 1 and "/y.json" or "/y")
      files.write(path, text)
      if kind == 2 then nb.json.decode(text)
      elseif kind == 3 then nb.checkpoint.journal(path):close()
      else nb.open(path) end
    end
  end)
end)
