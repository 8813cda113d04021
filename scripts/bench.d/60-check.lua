-- Values of files in the page cache: the scan, check's rules on values, and diff, as a share of the rate at which the same
-- bytes are read and nothing else is done: by looking at the files' mapped pages, mapped anew each time, and by read(2).
-- Reading and job take turns.
local ffi = require "ffi"
local nb = require "nibble"
local C = require("nibble.ffi").C
local checkpoint = require "nibble.checkpoint"
local diff = require "nibble.diff"
local values = require "nibble.check.values"

local N, K, LAYERS, TURNS = 14336, 4096, 3, 7

local function make_float(dir)
  local list = {}
  for i = 0, LAYERS - 1 do
    list[i + 1] = { name = ("model.layers.%d.mlp.down_proj.weight"):format(i), dtype = "bf16", shape = { N, K } }
  end
  local w = nb.tensor("bf16", { N, K })
  local p, x = ffi.cast("uint16_t *", w.data), 12345
  for i = 0, N * K - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = 0x3c00 + math.floor(x / 1024) % 512 + (math.floor(x / 65536) % 2 == 1 and 0x8000 or 0)
  end
  assert(checkpoint.mkdir(dir))
  local out = assert(checkpoint.writer { dir = dir, tensors = list })
  for _, t in ipairs(list) do assert(out:put(t.name, w)) end
  assert(out:finish())
  assert(checkpoint.write_file(dir .. "/config.json", '{"model_type": "llama", "torch_dtype": "bfloat16"}\n'))
end

local function make_quantized(from, dir, format, scheme)
  local recipe = assert(nb.recipe { name = "bench", scheme = scheme,
    group = scheme:find "W4" and 128 or nil, method = "rtn", output = { format = format } })
  assert(assert(nb.plan(recipe, assert(nb.open(from)))):run(dir))
end

-- Seconds to read all tensors of the checkpoints; bytes.
local function read_all(list, threads)
  local seconds, bytes = 0, 0
  for _, ck in ipairs(list) do
    for _, info in ipairs(ck.tensors) do
      local t = assert(ck:tensor(info.name))
      if info.bytes >= 2 ^ 20 then
        local whole = info.bytes - info.bytes % 2 ^ 20
        seconds = seconds + whole / math.abs(C.nb_peak_read(t, threads))
        bytes = bytes + whole
        t:drop()
      end
    end
  end
  return seconds, bytes
end

-- Seconds to read so many bytes of the checkpoints, each of one file, by read(2).
local function read_files(list, bytes, threads)
  local seconds, total = 0, 0
  for _, ck in ipairs(list) do
    local size = 0
    for _, info in ipairs(ck.tensors) do size = size + info.bytes end
    local rate = C.nb_peak_file_read(ck.path .. "/model.safetensors", threads)
    assert(rate > 0, ck.path)
    seconds, total = seconds + size / rate, total + size
  end
  return seconds * bytes / total
end

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

local function row(what, threads, list, job)
  local shares, of_files, rates, reads = {}, {}, {}, {}
  for turn = 1, TURNS do
    local read, bytes = read_all(list, threads)
    local file_read = read_files(list, bytes, threads)
    local start = C.nb_now()
    job()
    local seconds = C.nb_now() - start
    shares[turn], of_files[turn], rates[turn], reads[turn] = read / seconds, file_read / seconds, bytes / seconds / 1e9, bytes / read / 1e9
  end
  print(("  %-34s %dT  %5.1f GB/s  %3.0f %% of reading mapped pages (%.1f GB/s), %3.0f %% of read(2)"):format(what, threads, median(rates),
    100 * median(shares), median(reads), 100 * median(of_files)))
end

local function scan(ck)
  for _, info in ipairs(ck.tensors) do
    local t = assert(ck:tensor(info.name))
    t:scan()
    t:drop()
  end
end

local function measure(dir, threads)
  local float, others = assert(nb.open(dir .. "/float")), {}
  for _, format in ipairs { "compressed-tensors", "awq", "gptq", "fp8" } do
    others[#others + 1] = { name = format, ck = assert(nb.open(dir .. "/" .. format)) }
  end
  row("scan bf16", threads, { float }, function() scan(float) end)
  for _, o in ipairs { { name = "bf16", ck = float }, unpack(others) } do
    row("check values " .. o.name, threads, { o.ck }, function()
      assert(values.findings { ck = o.ck, modules = assert(o.ck:modules()) })
    end)
  end
  for _, o in ipairs(others) do
    row("diff bf16 " .. o.name, threads, { float, o.ck }, function() assert(diff.run(float, o.ck)) end)
  end
end

return {
  title = "values of files in the page cache",
  run = function(ctx)
    local dir = (os.getenv "NIBBLE_BENCH_DIR" or "/tmp") .. "/nibble-bench-" .. tostring(C.nb_now()):gsub("%D", "")
    local ok, why = pcall(function()
      make_float(dir .. "/float")
      make_quantized(dir .. "/float", dir .. "/compressed-tensors", "compressed-tensors", "W4A16")
      make_quantized(dir .. "/float", dir .. "/awq", "awq", "W4A16_ASYM")
      make_quantized(dir .. "/float", dir .. "/gptq", "gptq", "W4A16_ASYM")
      make_quantized(dir .. "/float", dir .. "/fp8", "fp8", "FP8_BLOCK")
      for _, threads in ipairs(ctx.threads) do
        C.nb_threads_set(threads)
        measure(dir, threads)
      end
    end)
    os.execute(("rm -rf '%s'"):format(dir))
    if not ok then error(why, 0) end
  end,
}
