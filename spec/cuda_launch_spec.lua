-- cuda_launch: kernels from Lua, by their names, through the driver: the stand-in's run them on the processor, and a
-- kernel that fails is told with its name. And scripts/fatbin, which carries kernels into the build or says why not.
local command = require "spec.support.command"
local files = require "spec.support.files"

local emulator = (os.getenv "NIBBLE_BUILD" or "build") .. "/libcuemu.so"

local function run(code, environment)
  local before = { "NIBBLE_LUA=lua", "NB_CUDA_DRIVER=" .. emulator }
  for name, value in pairs(environment or {}) do before[#before + 1] = ("%s='%s'"):format(name, value) end
  local r = command.run({ "-e", "local nb = require 'nibble' " .. code }, { before = table.concat(before, " ") })
  -- ASan says once that the emulator's fibers are beyond it.
  return r.out:gsub("\n$", "") .. r.err:gsub("==%d+==WARNING: ASan doesn't fully support makecontext[^\n]*\n", "")
end

-- u32 words 1..n on the device, room for as many, and the launch of a kernel that copies them shifted.
local shifted = [[
  local t = nb.tensor("i32", { 64 })
  for i = 1, 64 do t:set(i, i) end
  local from, to = assert(t:to "cuda"), assert(nb.cuda.new("cuda", "i32", { 64 }))
  local function shift(by) return nb.cuda.launch("emu_copy_shifted", { grid = 2, block = 32, from, to, by }) end
]]

describe("cuda: a kernel", function()
  it("runs by its name with tensors and numbers", function()
    assert.equal("true true\ntrue", run(shifted .. [[
      print(tostring(shift(0)) .. " " .. tostring(nb.cuda.wait()))
      print(to:to("cpu"):equal(t)) ]]))
  end)

  it("repacks as the processor does, shared memory beyond 48 KiB and a null pointer included", function()
    assert.equal("true", run [[
      local words = nb.tensor("i32", { 16, 128 })
      for i = 1, words:numel() do words:set(i, (i * 2654435761) % 4294967296 - 2147483648) end
      local expected = nb.layout.marlin.repack(words, 4)
      local out = nb.cuda.new("cuda", "i32", expected:size())
      assert(nb.cuda.launch("nb_repack_gptq", { grid = 2, block = 128, shared_bytes = 60 * 1024,
        words:to "cuda", false, out, 1, 128, 128, 4 }))
      print(out:to("cpu"):equal(expected)) ]])
  end)

  it("that fails is named by the next call, and the device is lost", function()
    local out = run(shifted .. [[
      print(shift(1000))
      print(nb.cuda.wait())
      print(to:to "cpu")
      print(t:equal(t:clone())) ]])
    local lost = "nil\tcuda:0 is lost: kernel emu_copy_shifted failed: CUDA_ERROR_LAUNCH_FAILED %(719%), [^\n]*reads 4 bytes of " ..
      "global memory[^\n]*past the end[^\n]*; what lay on it is gone until nibble starts anew\teio\n"
    assert.matches("^true\n" .. lost .. lost .. "true$", out)
  end)

  it("is waited for by :time, which then tells of its failure instead of a figure", function()
    local r = command.run("", { before = "NIBBLE_LUA=lua NB_CUDA_DRIVER=" .. emulator .. " exec", stdin = [[
d = nibble.tensor("i32", { 64 }):to "cuda"
:time nibble.cuda.launch("emu_copy_shifted", { grid = 2, block = 32, d, d, 0 })
:time nibble.cuda.launch("emu_copy_shifted", { grid = 2, block = 32, d, d, 1000 })
]] })
    assert.matches("^true\n[%d.]+ ms  Lua [^\n]*\n$", r.out)
    assert.matches("cuda:0 is lost: kernel emu_copy_shifted failed", r.err)
  end)

  it("is refused where it cannot be: its name, its sizes, its arguments", function()
    assert.matches("^nil\tthis build of nibble has no kernel nb_nothing\teunsupported", run(
      [[print(nb.cuda.launch("nb_nothing", { grid = 1, block = 32 }))]]))
    assert.matches("a grid of 1x70000x1 blocks of 32x1x1 threads cannot be",
      run [[nb.cuda.launch("nb_repack_awq", { grid = { 1, 70000 }, block = 32 })]])
    assert.matches("a block has 2048 threads, expected at most 1024",
      run [[nb.cuda.launch("nb_repack_awq", { grid = 1, block = { 32, 64 } })]])
    assert.matches("kernel nb_repack_awq: a block needs 300000 bytes of shared memory, cuda:0 has 232448\teunsupported",
      run [[print(nb.cuda.launch("nb_repack_awq", { grid = 1, block = 32, shared_bytes = 300000 }))]])
    assert.matches("argument 1 of k: expected a tensor on a device or a number, found one in the computer's memory",
      run [[nb.cuda.launch("k", { grid = 1, block = 1, nb.tensor("u8", { 1 }) })]])
    assert.matches("argument 2 of k: expected a tensor on a device or a number, found a string",
      run [[nb.cuda.launch("k", { grid = 1, block = 1, 1, "x" })]])
    assert.matches("launch: expected grid as a number or {x, y, z}, found a nil", run [[nb.cuda.launch("k", { block = 1 })]])
  end)

  it("that cannot be launched says so, and the session goes on", function()
    assert.equal("nil\tcuda:0: launching kernel emu_copy_shifted: CUDA_ERROR_INVALID_VALUE (1), said by the emulator\teio\ntrue",
      run(shifted .. "print(shift(0)) print(shift(0))", { NB_EMU_FAIL = "cuLaunchKernel:1:1" }))
  end)
end)

describe("cuda: marlin_repack", function()
  it("is layout.marlin's repack and awq_repack, bit for bit, experts and activation orders too", function()
    assert.equal("20 of 20", run [[
      local marlin, same, of = nb.layout.marlin, 0, 0
      local function words(shape)
        local t = nb.tensor("i32", shape)
        for i = 1, t:numel() do t:set(i, (i * 2654435761) % 4294967296 - 2147483648) end
        return t
      end
      local function compare(device, cpu)
        of = of + 1
        if assert(device):to("cpu"):equal(cpu) then same = same + 1 end
      end
      for _, bits in ipairs { 4, 8 } do
        for _, lead in ipairs { {}, { 3 } } do
          local function shape(a, b) return lead[1] and { lead[1], a, b } or { a, b } end
          for _, k in ipairs { 16, 80 } do
            local perm, experts = nb.tensor("i32", lead[1] and { 3, k } or { k }), lead[1] or 1
            for e = 0, experts - 1 do
              for i = 0, k - 1 do perm:set(e * k + i + 1, (i * 7 + e) % k) end
            end
            local gptq, awq = words(shape(k * bits / 32, 192)), words(shape(k, 192 * bits / 32))
            local d = gptq:to "cuda"
            compare(nb.cuda.marlin_repack(d, bits), marlin.repack(gptq, bits))
            compare(nb.cuda.marlin_repack(awq:to "cuda", bits, { order = "awq" }), marlin.awq_repack(awq, bits))
            if k == 80 then
              compare(nb.cuda.marlin_repack(d, bits, { perm = perm }), marlin.repack(gptq, bits, false, perm))
            end
          end
        end
      end
      -- none of it
      local none = nb.cuda.marlin_repack(nb.tensor("i32", { 0, 64 }):to "cuda", 4)
      assert(none:to("cpu"):numel() == 0)
      print(same .. " of " .. of) ]])
  end)

  it("refuses what the kernel cannot take, before it is launched", function()
    local function why(words, bits, options)
      return run(("print(nb.cuda.marlin_repack(%s, %s, %s))"):format(words, bits, options or "nil"))
    end
    local words = 'nb.tensor("i32", { 2, 64 }):to "cuda"'
    assert.matches("bits must be 4 or 8, found 3", why(words, 3))
    assert.matches("k must be a multiple of 16 and n of 64, found k 16 and n 32", why('nb.tensor("i32", { 2, 32 }):to "cuda"', 4))
    assert.matches("expected i32 words of 2 or 3 dimensions, found u8 %[2x64%]", why('nb.tensor("u8", { 2, 64 }):to "cuda"', 4))
    assert.matches('expected words on a device %(words:to "cuda"%)', why('nb.tensor("i32", { 2, 64 })', 4))
    assert.matches('order must be "gptq" or "awq", found "marlin"', why(words, 4, '{ order = "marlin" }'))
    assert.matches("AWQ knows no activation order", why('nb.tensor("i32", { 16, 8 }):to "cuda"', 4,
      '{ order = "awq", perm = nb.tensor("i32", { 16 }) }'))
    assert.matches("perm: expected i32 %[16%], found i32 %[8%]", why(words, 4, '{ perm = nb.tensor("i32", { 8 }) }'))
    assert.matches("perm: 16 at position 0 is outside 0..15\teformat", why(words, 4, '{ perm = nb.tensor("i32", { 16 }):fill(16) }'))
    assert.matches("nb_device_tensor", why(words, 4, '{ perm = nb.tensor("i32", { 16 }):to "cuda" }'))
  end)

  it("takes no view that begins within 16 bytes", function()
    assert.matches("the words begin 4 bytes past a multiple of 16", run [[
      local bytes = nb.tensor("u8", { 520 }):to "cuda"
      nb.cuda.marlin_repack(bytes:rows(5, 516):as("i32", { 2, 64 }), 4) ]])
  end)

  it("that fails gives back what it took", function()
    assert.equal("nil eio true", run([[
      local d, perm = nb.tensor("i32", { 64, 64 }):to "cuda", nb.tensor("i32", { 512 })
      local live = require("nibble.ffi").C.nb_live_bytes()
      local out, msg, code = nb.cuda.marlin_repack(d, 4, { perm = perm })
      print(tostring(out) .. " " .. code .. " " .. tostring(require("nibble.ffi").C.nb_live_bytes() == live)) ]],
      { NB_EMU_FAIL = "cuLaunchKernel:1:1" }))
    assert.equal("nil enomem true", run([[
      local d = nb.tensor("i32", { 64, 64 }):to "cuda"
      local live = require("nibble.ffi").C.nb_live_bytes()
      local out, msg, code = nb.cuda.marlin_repack(d, 4)
      print(tostring(out) .. " " .. code .. " " .. tostring(require("nibble.ffi").C.nb_live_bytes() <= live)) ]],
      { NB_EMU_MEMORY = 20000 }))
  end)
end)

describe("cuda: kernels of this build", function()
  it("are loaded by a driver that has none, or the sentence says why there are none", function()
    local out = run([[print(nb.cuda.kernels()) print(nb.cuda.launch("nb_repack_awq", { grid = 1, block = 1 }))]],
      { NB_EMU_REAL = 1, NB_EMU_FAIL = "cuModuleLoadData:1:222" })
    if out:match "^nil" then
      local none = "this build of nibble has no CUDA kernels: [^\n]*\teunsupported"
      assert.matches("^nil\t" .. none .. "\nnil\t" .. none .. "$", out)
    else
      assert.matches("^[^\n]*PTX, by nvcc [%d.]+\nnil\tcuda:0: loading the kernels of repack.cu %(.*; its driver is for CUDA 13.0%): " ..
        "an unknown error %(222%), [^\n]*\teio$", out)
      local old = { NB_EMU_REAL = 1, NB_EMU_FAIL = "cuModuleLoadData:1:200", NB_EMU_VERSION = 11040 }
      assert.matches("; they need a driver for CUDA %d+.0 or later, the one here is for 11.4\nnil\tcuda:0: the kernels of this build " ..
        "%(.*%) need a driver for CUDA %d+.0 or later, the one here is for 11.4; update it, or build nibble with an older " ..
        "toolkit\teunsupported$", (run([[print(nb.cuda.kernels()) print(nb.cuda.launch("nb_repack_awq", { grid = 1, block = 1 }))]], old)))
    end
    local text = run([[io.write(nb.doctor.text(nb.doctor.examine()))]], { NB_EMU_REAL = 1 })
    assert.matches(out:match "^nil" and "\nCUDA kernels +no: this build of nibble has no" or "\nCUDA kernels +yes, .*by nvcc", text)
  end)

  -- The assembler source that scripts/fatbin writes with this nvcc.
  local function fatbin(nvcc)
    local dir = files.temporary()
    if nvcc then files.write(dir .. "/nvcc", nvcc) os.execute("chmod +x " .. dir .. "/nvcc") end
    local status = os.execute(("NVCC=%s scripts/fatbin %s/kernels.S cuda/kernels/repack.cu 2>/dev/null")
      :format(nvcc and dir .. "/nvcc" or "", dir))
    local text = files.read(dir .. "/kernels.S")
    assert.equal(0, os.execute(("gcc -c %s/kernels.S -o %s/kernels.o"):format(dir, dir)))
    files.remove(dir)
    return text, status
  end

  it("are left out, with the reason, where there is no nvcc or it fails", function()
    local text, status = fatbin(nil)
    assert.equal(0, status)
    assert.matches('kernels: .asciz " nb_repack_gptq nb_repack_awq "\ntargets: .asciz ""\n', text, 1, true)
    assert.matches("nvcc was not found when it was built; install NVIDIA's CUDA toolkit", text, 1, true)
    text, status = fatbin '#!/bin/sh\necho "nvcc fatal : \\"this\\" host compiler is too new" >&2\nexit 1\n'
    assert.equal(0, status)
    assert.matches('kernels: .asciz " nb_repack_gptq nb_repack_awq "\ntargets: .asciz ""\n', text, 1, true)
    assert.matches("nvcc failed when it was built: nvcc fatal : this host compiler is too new", text, 1, true)
  end)

  it("leave out the targets that an older nvcc doesn't know", function()
    local text = fatbin [[#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 11.4, V11.4.1" ;;
  *--help*) echo "--fatbin" ;;
  *_90a*|*_89*|*_1[02]0*) exit 1 ;;
  *-fatbin*) while [ "$1" != -o ]; do shift; done; echo image > "$2" ;;
esac
]]
    assert.matches('targets: .asciz "sm_80 and PTX, by nvcc 11.4"\n', text, 1, true)
    assert.matches("\n.incbin ", text, 1, true)
    assert.matches("\n.int 11000, 0\n", text, 1, true)
  end)
end)
