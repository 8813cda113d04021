-- Whole runs over a 1-GB checkpoint in the page cache: quantizing (bf16 to W4A16 g128) and an exact
-- change of format (AWQ to compressed-tensors), beside `cp` of the same bytes on the same disk.
local ffi = require "ffi"
local C = require("nibble.ffi").C
local checkpoint = require "nibble.checkpoint"
local tensor = require "nibble.tensor"

local N, K, LAYERS = 14336, 4096, 9 -- 9 × 112 MiB of bf16: the MLP shape of an 8-billion-parameter model

local function shell(command) return os.execute(command .. " >/dev/null 2>&1") == 0 end

-- Noise of a weight's size, the same in every layer: what matters here is the number of bytes.
local function make_model(dir)
  local list = {}
  for i = 0, LAYERS - 1 do
    list[#list + 1] = { name = ("model.layers.%d.mlp.down_proj.weight"):format(i), dtype = "bf16", shape = { N, K } }
  end
  local w = assert(tensor.new("bf16", { N, K }))
  local p, x = ffi.cast("uint16_t *", w.data), 12345
  for i = 0, N * K - 1 do
    x = (x * 1103515245 + 12345) % 2147483648
    p[i] = 0x3c00 + x % 512 + (x % 1024 >= 512 and 0x8000 or 0) -- ± 2^-7 … 2^-3
  end
  assert(checkpoint.mkdir(dir))
  local out = assert(checkpoint.writer { dir = dir, tensors = list })
  for _, t in ipairs(list) do assert(out:put(t.name, w)) end
  assert(out:finish())
  assert(checkpoint.write_file(dir .. "/config.json", '{"model_type": "llama", "torch_dtype": "bfloat16"}\n'))
end

-- The same tensors four times over under other names: 1 GB of 4-bit words without 4 GB of floats.
local function repeat_model(from, to)
  local ck, list = assert(require("nibble").open(from)), {}
  for c = 0, 3 do
    for _, t in ipairs(ck.tensors) do
      local name = t.name:gsub("layers%.(%d+)", function(d) return "layers." .. d + c * LAYERS end)
      list[#list + 1] = { name = name, dtype = t.dtype, shape = t.shape, source = t.name }
    end
  end
  assert(checkpoint.mkdir(to))
  local out = assert(checkpoint.writer { dir = to, tensors = list })
  for _, t in ipairs(list) do assert(out:put(t.name, assert(ck:tensor(t.source)))) end
  assert(out:finish())
  assert(checkpoint.copy_file(from .. "/config.json", to .. "/config.json"))
end

-- Runs Lua code in the executable and returns what it prints: seconds and peak bytes.
local function child(dir, build, threads, code, ...)
  local args = {}
  for i, a in ipairs { ... } do args[i] = ("%q"):format(a) end
  local file = dir .. "/child.lua"
  local f = assert(io.open(file, "w"))
  f:write('local nb = require "nibble"\nlocal C = require("nibble.ffi").C\n', code,
    '\nio.write(seconds, " ", tonumber(C.nb_peak_rss()), "\\n")\n')
  f:close()
  local pipe = io.popen(("OMP_NUM_THREADS=%d %s/nibble %s %s"):format(threads, build, file, table.concat(args, " ")))
  local seconds, peak = pipe:read("*a"):match "([%d.e+-]+) (%d+)\n$"
  pipe:close()
  os.remove(file)
  assert(seconds, "the run failed")
  return tonumber(seconds), tonumber(peak)
end

local run_code = [[
local plan = assert(nb.plan(assert(nb.recipe { name = "bench", scheme = "W4A16", group = 128, method = arg[3],
  output = { format = arg[4] } }), assert(nb.open(arg[1]))))
local t0 = C.nb_now()
assert(plan:run(arg[2]))
local seconds = C.nb_now() - t0]]

local convert_code = [[
local ck = assert(nb.open(arg[1]))
local t0 = C.nb_now()
assert(nb.convert.to(ck, arg[3], arg[2]))
local seconds = C.nb_now() - t0]]

-- Seconds of cp and of cp with the bytes safely on the disk, as a run leaves them.
local function copy_seconds(from, to)
  shell("rm -rf " .. to)
  local t0 = C.nb_now()
  assert(shell(("cp -r %s %s"):format(from, to)))
  local plain = C.nb_now() - t0
  assert(shell(("sync %s/*"):format(to)))
  local synced = C.nb_now() - t0
  shell("rm -rf " .. to)
  return plain, synced
end

return {
  title = "whole runs, 1 GB in the page cache",
  run = function(ctx)
    local dir = (os.getenv "NIBBLE_BENCH_DIR" or "/tmp") .. "/nibble-bench-" .. tostring(C.nb_now()):gsub("%D", "")
    local build = ctx.build or "build"
    local float, awq, out = dir .. "/float", dir .. "/awq", dir .. "/out"
    assert(checkpoint.mkdir(dir))
    local ok, why = pcall(function()
      make_model(float)
      local bytes = N * K * LAYERS * 2
      shell(("cat %s/*.safetensors"):format(float))
      for _, method in ipairs { "rtn", "mse" } do
        for threads = 1, math.min(2, C.nb_threads()) do
          shell("rm -rf " .. out)
          local s, peak = child(dir, build, threads, run_code, float, out, method, "compressed-tensors")
          print(("  run W4A16 g128 %-4s %dT  %6.2f s  %5.2f GB/s of input  peak %4.0f MiB"):format(method, threads, s,
            bytes / s / 1e9, peak / 2 ^ 20))
        end
      end
      child(dir, build, 2, run_code, float, out .. "-awq", "rtn", "awq")
      repeat_model(out .. "-awq", awq)
      shell(("rm -rf %s-awq %s; cat %s/*.safetensors"):format(out, float, awq))
      local best = { cp = math.huge, synced = math.huge, convert = math.huge }
      local peak
      for _ = 1, 3 do -- interleaved, so that both see the same machine
        local cp, synced = copy_seconds(awq, dir .. "/copy")
        shell("rm -rf " .. out)
        local s
        s, peak = child(dir, build, 2, convert_code, awq, out, "compressed-tensors")
        best.cp, best.synced, best.convert = math.min(best.cp, cp), math.min(best.synced, synced), math.min(best.convert, s)
      end
      print(("  convert AWQ → compressed-tensors 2T  %.2f s: %.2f × cp and sync (%.2f s), %.2f × cp alone (%.2f s)  peak %.0f MiB"):format(
        best.convert, best.convert / best.synced, best.synced, best.convert / best.cp, best.cp, peak / 2 ^ 20))
    end)
    shell("rm -rf " .. dir)
    if not ok then error(why, 0) end
  end,
}
