-- A 100,000-tensor, 1-TB checkpoint opens at once and in little memory: headers
-- only, and no Lua value a tensor. Files are sparse. Times and memory are
-- printed, not asserted, except for a bound far above them.
local nb = require "nibble"
local ffi = require "ffi"
local files = require "spec.support.files"

ffi.cdef "int truncate(const char *, int64_t);"

local TENSORS, BYTES = 100000, 10 * 1024 * 1024

local dir
setup(function() dir = files.temporary() end)
teardown(function() files.remove(dir) end)

local function name(i) -- as a mixture of experts has them
  return ("model.layers.%d.mlp.experts.%d.%s_proj.weight"):format(math.floor(i / 1536), math.floor(i / 3) % 512,
    i % 3 == 0 and "gate" or i % 3 == 1 and "up" or "down")
end

local function sparse(path, first, last)
  local header, at = {}, 0
  for i = first, last do
    header[#header + 1] = ('"%s":{"dtype":"BF16","shape":[2560,2048],"data_offsets":[%.0f,%.0f]}'):format(name(i), at, at + BYTES)
    at = at + BYTES
  end
  local text = "{" .. table.concat(header, ",") .. "}"
  files.write(path, files.u64(#text) .. text)
  if ffi.C.truncate(path, 8 + #text + at) ~= 0 then return nil end -- this file system has no such sizes
  return true
end

-- Opens path in a process of its own, whose peak memory is this opening's.
local function measure(path)
  files.write(dir .. "/open.lua", ([[
    package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
    local nb = require "nibble"
    local C = require("nibble.ffi").C
    local before, t0 = tonumber(C.nb_peak_rss()), C.nb_now()
    local ck = assert(nb.open(%q))
    local t1 = C.nb_now()
    local last = assert(ck:info(%q))
    assert(ck:tensor(last.name):bytes() == last.bytes)
    local opened = tonumber(C.nb_peak_rss())
    local t2 = C.nb_now()
    assert(#ck:modules() == ck.count)
    print(ck.count, (t1 - t0) * 1e3, opened / 2^20, before / 2^20, (C.nb_now() - t2) * 1e3,
      tonumber(C.nb_peak_rss()) / 2^20)]]):format(path, name(TENSORS - 1)))
  local p = io.popen("luajit " .. dir .. "/open.lua 2>&1")
  local text = p:read "*a"
  p:close()
  local count, ms, peak_mib, before_mib, modules_ms, modules_mib = text:match("^(%d+)" .. ("\t(%S+)"):rep(5) .. "\n$")
  if not count then error(text) end
  print(("  %d tensors, 1 TB, %s: %.0f ms, peak %.0f MiB (%.0f before); modules: %.0f ms, peak %.0f MiB"):format(
    tonumber(count), path:match "[^/]+$", tonumber(ms), tonumber(peak_mib), tonumber(before_mib), tonumber(modules_ms),
    tonumber(modules_mib)))
  assert.equal(TENSORS, tonumber(count))
  assert.is_true(tonumber(peak_mib) < 400)
  assert.is_true(tonumber(modules_mib) < 400)
end

describe("a 100,000-tensor, 1-TB checkpoint", function()
  it("opens from one file", function()
    assert(nb.checkpoint.mkdir(dir .. "/single"))
    if not sparse(dir .. "/single/model.safetensors", 0, TENSORS - 1) then return pending "no files of 1 TB here" end
    measure(dir .. "/single")
  end)

  it("opens from twenty shards and an index", function()
    assert(nb.checkpoint.mkdir(dir .. "/sharded"))
    local map = {}
    for s = 0, 19 do
      local file = ("model-%05d-of-00020.safetensors"):format(s + 1)
      local first, last = s * TENSORS / 20, (s + 1) * TENSORS / 20 - 1
      if not sparse(dir .. "/sharded/" .. file, first, last) then return pending "no files of 1 TB here" end
      for i = first, last do map[name(i)] = file end
    end
    files.write(dir .. "/sharded/model.safetensors.index.json",
      nb.json.encode({ metadata = { total_size = TENSORS * BYTES }, weight_map = map }, { indent = 2 }))
    measure(dir .. "/sharded")
  end)
end)
