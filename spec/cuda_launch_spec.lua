-- cuda_launch: kernels from Lua, by their names, through the driver: the stand-in's run them on the processor, and a
-- kernel that fails is told with its name. And scripts/fatbin, which carries kernels into the build or says why not.
local command = require "spec.support.command"
local files = require "spec.support.files"
local standin = require "spec.support.standin"

local emulator = standin.library

local run = standin.with ""

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

  it("repacks as the processor does, shared memory beyond 48 KiB included", function()
    assert.equal("true", run [[
      local words = nb.tensor("i32", { 16, 128 })
      for i = 1, words:numel() do words:set(i, (i * 2654435761) % 4294967296 - 2147483648) end
      local expected = nb.layout.marlin.repack(words, 4)
      local out = nb.cuda.new("cuda", "i32", expected:size())
      assert(nb.cuda.launch("nb_repack_gptq", { grid = 2, block = 128, shared_bytes = 60 * 1024,
        words:to "cuda", out, 1, 128, 128, 4, 0 }))
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
    assert.matches("^%-1 launch: a kernel is found by its name, none was given", run
      [[local C, ffi = require("nibble.ffi").C, require "ffi"
        io.write(C.nb_device_launch(1, nil, ffi.new("nb_launch", { 1, 1, 1 }, { 32, 1, 1 }), nil), " ", ffi.string(C.nb_error()))]])
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
    assert.matches("launch: expected a kernel's name, found a nil", run [[nb.cuda.launch(nil, { grid = 1, block = 1 })]])
    assert.matches("launch: expected grid as a number or {x, y, z}, found a nil", run [[nb.cuda.launch("k", { block = 1 })]])
  end)

  it("that cannot be launched says so, and the session goes on", function()
    assert.equal("nil\tcuda:0: launching kernel emu_copy_shifted: CUDA_ERROR_INVALID_VALUE (1), said by the emulator\teio\ntrue",
      run(shifted .. "print(shift(0)) print(shift(0))", { NB_EMU_FAIL = "cuLaunchKernel:1:1" }))
  end)
end)

describe("cuda: layout.marlin's repacks", function()
  it("give the same bytes on the device, experts, activation orders and 8-bit activations too", function()
    assert.equal("38 of 38", run [[
      local marlin, same, of = nb.layout.marlin, 0, 0
      local function words(shape)
        local t = nb.tensor("i32", shape)
        for i = 1, t:numel() do t:set(i, (i * 2654435761) % 4294967296 - 2147483648) end
        return t
      end
      local function compare(name, t, ...)
        local cpu, device = assert(marlin[name](t, ...)), assert(marlin[name](t:to "cuda", ...))
        of = of + 1
        if device:where() == "cuda:0" and device:to("cpu"):equal(cpu) then same = same + 1 end
      end
      for _, bits in ipairs { 4, 8 } do
        for _, lead in ipairs { {}, { 3 } } do
          local function shape(a, b) return lead[1] and { lead[1], a, b } or { a, b } end
          for _, k in ipairs { 16, 80, 96 } do
            local perm, experts = nb.tensor("i32", lead[1] and { 3, k } or { k }), lead[1] or 1
            for e = 0, experts - 1 do
              for i = 0, k - 1 do perm:set(e * k + i + 1, (i * 7 + e) % k) end
            end
            local gptq, awq = words(shape(k * bits / 32, 192)), words(shape(k, 192 * bits / 32))
            compare("repack", gptq, bits)
            compare("awq_repack", awq, bits)
            if k == 80 then compare("repack", gptq, bits, false, perm) end
            if k == 96 then
              compare("repack", gptq, bits, true)
              compare("awq_repack", awq, bits, true)
            end
          end
        end
      end
      -- none of it, and no order
      compare("repack", nb.tensor("i32", { 0, 64 }), 4)
      compare("repack", words { 2, 64 }, 4, false, nb.tensor("i32", { 0 }))
      print(same .. " of " .. of) ]])
  end)

  it("take an activation order that lies on the device", function()
    assert.equal("true", run [[
      local words, perm = nb.tensor("i32", { 4, 64 }), nb.tensor("i32", { 32 })
      for i = 1, 256 do words:set(i, i * 7919) end
      for i = 1, 32 do perm:set(i, 32 - i) end
      local out = nb.layout.marlin.repack(words:to "cuda", 4, false, perm:to "cuda")
      print(out:to("cpu"):equal(nb.layout.marlin.repack(words, 4, false, perm))) ]])
  end)

  it("refuse what they refuse in the computer's memory, before anything is launched", function()
    local function why(call) return (run(("local m, t = nb.layout.marlin, nb.tensor print(m.%s)"):format(call))) end
    local words = 't("i32", { 2, 64 }):to "cuda"'
    assert.matches("marlin repack: bits must be 4 or 8, found 3", why("repack(" .. words .. ", 3)"))
    assert.matches("marlin repack: bits must be 4 or 8, found 4.5", why("repack(" .. words .. ", 4.5)"))
    assert.matches("marlin awq_repack: bits must be 4 or 8, found nil", why("awq_repack(" .. words .. ")"))
    assert.matches("marlin repack: N = 32 is not a multiple of the tile's 64 columns %(16%-bit activations%)",
      why 'repack(t("i32", { 2, 32 }):to "cuda", 4)')
    assert.matches("marlin repack: K = 16 is not a multiple of the tile's 32 rows %(8%-bit activations%)",
      why("repack(" .. words .. ", 4, true)"))
    assert.matches("marlin awq_repack: expected i32 %[%*x%*%], found u8 %[16x8%]", why 'awq_repack(t("u8", { 16, 8 }):to "cuda", 4)')
    assert.matches("perm%) cannot be combined with 8%-bit activations",
      why 'repack(t("i32", { 4, 64 }):to "cuda", 4, true, t("i32", { 32 }))')
    assert.matches("marlin repack: expected i32 %[16%], found i32 %[8%]", why("repack(" .. words .. ', 4, false, t("i32", { 8 }))'))
    for _, to in ipairs { "", ':to "cuda"' } do
      assert.matches("perm is no permutation of 0..15: 16 at position 0 lies outside",
        why("repack(" .. words .. ', 4, false, t("i32", { 16 }):fill(16)' .. to .. ")"))
      assert.matches("perm is no permutation of 0..15: 3 at position 1 occurs twice",
        why("repack(" .. words .. ', 4, false, t("i32", { 16 }):fill(3)' .. to .. ")"))
    end
  end)

  it("take no view that begins within 16 bytes, no order of another device, and fill only what fits", function()
    local out = run([[
      local C, ffi = require("nibble.ffi").C, require "ffi"
      local function try(f, ...) print(C[f](...), ffi.string(C.nb_error())) end
      local bytes = nb.tensor("u8", { 520 }):to "cuda"
      print(select(2, pcall(nb.layout.marlin.repack, bytes:rows(5, 516):as("i32", { 2, 64 }), 4)))
      local words, far = bytes:rows(1, 512):as("i32", { 2, 64 }), nb.tensor("i32", { 16 }):to "cuda:1"
      local out = nb.tensor("i32", { 1, 128 }):to "cuda"
      print(select(2, pcall(nb.layout.marlin.repack, words, 4, false, far)))
      try("nb_device_marlin_repack", out.t, words.t, nil, 4, 0)
      try("nb_device_marlin_repack", out:reshape(128).t, words.t, nil, 4, 0)
      try("nb_device_marlin_repack", nb.tensor("i32", { 1, 128 }):to("cuda:1").t, words.t, nil, 4, 0)
      try("nb_device_marlin_repack", nb.tensor("i32", { 1, 128 }), words.t, nil, 4, 0)
      try("nb_device_marlin_repack", out.t, out:to "cpu", nil, 4, 0)
      try("nb_device_marlin_repack", out:reshape(2, 64).t, out:reshape(2, 64).t, nil, 4, 0)
      try("nb_device_marlin_repack", words:reshape(1, 128).t, words.t, nil, 4, 0) ]], { NB_EMU_DEVICES = 2 })
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.matches("i32 %[2x64%] begins 4 bytes past a multiple of 16", lines[1])
    assert.matches("perm lies on cuda:1, the words on cuda:0", lines[2])
    assert.matches("^0\t", lines[3])
    assert.matches("expected i32 %[1x128%], found i32 %[128%]", lines[4])
    assert.matches("i32 %[1x128%] lies on cuda:1, the other operand on cuda:0", lines[5])
    assert.matches("i32 %[1x128%] lies in the computer's memory, expected on a device", lines[6])
    assert.matches("lies in the computer's memory, expected on a device", lines[7])
    assert.matches("expected i32 %[1x128%], found i32 %[2x64%]", lines[8])
    assert.matches("cannot be done in place", lines[9])
  end)

  it("that fail give back what they took, wherever they fail", function()
    for _, plan in ipairs { "cuLaunchKernel:1:1", "cuMemAlloc_v2:2:1", "cuMemAlloc_v2:3:1", "cuMemcpyHtoDAsync_v2:2:1", "cuModuleGetFunction:1:1" } do
      assert.equal("nil eio true", run([[
        local d, perm = nb.tensor("i32", { 64, 64 }):to "cuda", nb.tensor("i32", { 512 })
        for i = 1, 512 do perm:set(i, 512 - i) end
        collectgarbage() collectgarbage()
        local live = require("nibble.ffi").C.nb_live_bytes()
        local out, msg, code = nb.layout.marlin.repack(d, 4, false, perm)
        print(tostring(out) .. " " .. code .. " " .. tostring(require("nibble.ffi").C.nb_live_bytes() == live)) ]],
        { NB_EMU_FAIL = plan }), plan)
    end
    assert.equal("nil enomem true", run([[
      local d = nb.tensor("i32", { 64, 64 }):to "cuda"
      local live = require("nibble.ffi").C.nb_live_bytes()
      local out, msg, code = nb.layout.marlin.repack(d, 4)
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
    assert.matches('kernels: .asciz " nb_repack_gptq nb_repack_gptq_ordered nb_repack_awq "\ntargets: .asciz ""\n', text, 1, true)
    assert.matches("it was built without nvcc; install NVIDIA's CUDA toolkit where it is missing, and run make", text, 1, true)
    text, status = fatbin '#!/bin/sh\necho "nvcc fatal : \\"this\\" host compiler is too new" >&2\nexit 1\n'
    assert.equal(0, status)
    assert.matches('kernels: .asciz " nb_repack_gptq nb_repack_gptq_ordered nb_repack_awq "\ntargets: .asciz ""\n', text, 1, true)
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
