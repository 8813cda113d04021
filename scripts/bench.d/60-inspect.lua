-- Looking into a checkpoint of 100,000 tensors and 1 TB (sparse files, headers only): the whole command, as a table
-- and as JSON, beside reading the same headers' bytes and `wc` of the same JSON.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local checkpoint = require "nibble.checkpoint"

ffi.cdef "int truncate(const char *path, int64_t bytes);"

local TENSORS, BYTES, SHARDS = 100000, 10 * 1024 * 1024, 100

local function name(i) -- as a mixture of experts has them
  return ("model.layers.%d.mlp.experts.%d.%s_proj.weight"):format(math.floor(i / 1536), math.floor(i / 3) % 512,
    i % 3 == 0 and "gate" or i % 3 == 1 and "up" or "down")
end

local function u64(n) return ffi.string(ffi.new("uint64_t[1]", n), 8) end

local function make(dir)
  local map = {}
  assert(checkpoint.mkdir(dir))
  for s = 0, SHARDS - 1 do
    local file, header, at = ("model-%05d-of-%05d.safetensors"):format(s + 1, SHARDS), {}, 0
    for i = s * TENSORS / SHARDS, (s + 1) * TENSORS / SHARDS - 1 do
      header[#header + 1] = ('"%s":{"dtype":"BF16","shape":[2560,2048],"data_offsets":[%.0f,%.0f]}'):format(name(i), at, at + BYTES)
      map[#map + 1] = ('"%s":"%s"'):format(name(i), file)
      at = at + BYTES
    end
    local text = "{" .. table.concat(header, ",") .. "}"
    assert(checkpoint.write_file(dir .. "/" .. file, u64(#text) .. text))
    if ffi.C.truncate(dir .. "/" .. file, 8 + #text + at) ~= 0 then return nil end
  end
  return checkpoint.write_file(dir .. "/model.safetensors.index.json", '{"metadata":{},"weight_map":{' .. table.concat(map, ",") .. "}}")
end

-- Seconds of processor time that a command takes: on a machine with other work its clock says little.
local function processor_seconds(command)
  local pipe = io.popen(("bash -c 'TIMEFORMAT=\"%%U %%S\"; time %s >/dev/null' 2>&1"):format(command))
  local user, system = pipe:read("*a"):match "([%d.]+) ([%d.]+)%s*$"
  pipe:close()
  return tonumber(user) + tonumber(system)
end

local function shell(command) return function() assert(os.execute(command) == 0) end end

return {
  title = "inspect of 100,000 tensors, 1 TB",
  run = function(ctx)
    local dir = (os.getenv "NIBBLE_BENCH_DIR" or "/tmp") .. "/nibble-bench-" .. tostring(C.nb_now()):gsub("%D", "")
    local nibble = ctx.build .. "/nibble"
    local ok, why = pcall(function()
      if not make(dir) then return print "  no sparse files of this size here" end
      local results = ctx.compare({
        { run = shell(("head -qc 100000 %s/*.safetensors | wc -c >/dev/null"):format(dir)) },
        { run = shell(("%s inspect %s >/dev/null"):format(nibble, dir)) },
        { run = shell(("%s inspect %s --json >%s/out"):format(nibble, dir, dir)) },
      }, { reps = 5, seconds = 30 })
      for i, what in ipairs { "reading the headers", "table", "JSON" } do
        print(("  %-20s %4.0f ms at best, %4.0f at the median"):format(what, results[i].min * 1e3, results[i].median * 1e3))
      end
      print(("  processor time: table %.0f ms, JSON %.0f ms"):format(processor_seconds(nibble .. " inspect " .. dir) * 1e3,
        processor_seconds(nibble .. " inspect --json " .. dir) * 1e3))
    end)
    os.execute("rm -rf " .. dir)
    if not ok then error(why, 0) end
  end,
}
