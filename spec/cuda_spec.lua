-- cuda: tensors on a device, and one sentence for every way in which there is none to use. Against the stand-in
-- driver (build/libcuemu.so), which makes a crash of every look at device memory from outside; each case is a
-- process of its own, because a process opens its driver once.
local standin = require "spec.support.standin"

local run = standin.run

describe("cuda: tensors on a device", function()
  it("go there and come back byte for byte, whatever their dtype, and are accounted", function()
    assert.equal("true", run [[
      local C, same = require("nibble.ffi").C, true
      for _, dtype in ipairs { "f32", "bf16", "u4", "f8_e4m3", "f6_e2m3", "i64" } do
        local t = nb.tensor(dtype, { 3, 40 })
        collectgarbage() collectgarbage()
        for i = 1, 120 do t:set(i, i % 7) end
        local before = C.nb_live_bytes()
        local d = assert(t:to "cuda")
        same = same and C.nb_live_bytes() == before + t:bytes() and d:to("cpu"):equal(t) and d:where() == "cuda:0"
        d:free()
        collectgarbage() collectgarbage()
        same = same and C.nb_live_bytes() == before and t:to "cpu" == t and t:where() == "cpu"
      end
      print(same) ]])
  end)

  it("have views, which keep their memory", function()
    assert.equal("f32 [1×3]  12 B  on cuda:0 4 5 6\n[2] 5 6 3 4", run [[
      local t = nb.tensor("f32", { 2, 3 }, { 1, 2, 3, 4, 5, 6 })
      local d = assert(t:to "cuda")
      local row = d:rows(2, 2)
      d:free()
      collectgarbage()
      print(tostring(row) .. " " .. table.concat(row:to("cpu"):totable(), " "))
      local u = t:to("cuda"):reshape(3, 2)
      print("[" .. #u:rows(2, 3) .. "] " .. table.concat(u:rows(3, 3):to("cpu"):totable(), " ") ..
        " " .. table.concat(u:rows(2, 2):as("u32"):as("f32"):to("cpu"):totable(), " ")) ]])
  end)

  it("live as long as they are used, also those that have no name", function()
    assert.equal("true", run [[
      collectgarbage("setpause", 0) collectgarbage("setstepmul", 100000)
      local t, perm = nb.tensor("i32", { 4, 64 }):fill(7), nb.tensor("i32", { 32 })
      for i = 1, 32 do perm:set(i, 32 - i) end
      for _ = 1, 100 do
        assert(t:to("cuda"):reshape(64, 4):rows(2, 5):as("i32"):to("cpu"):get(16) == 7)
        assert(nb.layout.marlin.repack(t:to "cuda", 4, false, perm:to "cuda"))
        assert(nb.layout.marlin.fp8_preprocess(nb.tensor("i32", { 32, 8 }):to "cuda", nb.tensor("i32", { 1, 8 }):to "cuda"))
      end
      print(true) ]])
  end)

  it("are zero when new, may be empty, and go from one device to another", function()
    assert.equal("0 0 0 0 cuda:1 0 cuda:1 7", run([[
      local z = assert(nb.cuda.new("cuda", "f32", { 4 }))
      local none = assert(nb.tensor("f32", { 0, 8 }):to "cuda")
      local far = assert(z:to "cuda:1")
      local seven = nb.tensor("f32", { 1 }, { 7 }):to("cuda"):to("cuda:1")
      print(table.concat(z:to("cpu"):totable(), " ") .. " " .. far:where() .. " " .. none:to("cpu"):numel() .. " " ..
        seven:where() .. " " .. seven:to("cpu"):get(1)) ]], { NB_EMU_DEVICES = 2 }))
  end)

  it("give their room back: a loop needs no more than the device has", function()
    assert.equal("true", run([[
      local t = nb.tensor("u8", { 300000 })
      for _ = 1, 50 do assert(t:to "cuda") end
      print(true) ]], { NB_EMU_MEMORY = 1000000 }))
  end)

  it("are refused by what works in the computer's memory, with a sentence", function()
    local out = run [[
      local C = require("nibble.ffi").C
      local t = nb.tensor("f32", { 2, 2 })
      local d = t:to "cuda"
      for _, f in ipairs { function() return d:stats() end, function() return d[1] end, function() d[1] = 2 end,
        function() return nb.compare(d, t) end, function() return C.nb_transpose(t, d) end,
        function() return d:rows(1, 3) end, function() return d:reshape(3) end } do
        print(select(2, pcall(f)))
      end
      -- In C, where both are nb_tensor.
      for _, f in ipairs { "nb_tensor_copy", "nb_cast", "nb_transpose", "nb_tensor_equal", "nb_tensor_stats" } do
        local out = f == "nb_tensor_stats" and require("ffi").new "nb_stats" or t
        print(f == "nb_cast" and C[f](out, d.t, 0) or C[f](out, d.t), require("ffi").string(C.nb_error()))
      end ]]
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.matches("t:stats: the tensor lies on cuda:0; t:to \"cpu\" gives a copy", lines[1])
    assert.matches("an element: the tensor lies on cuda:0", lines[2])
    assert.matches("the tensor lies on cuda:0", lines[3])
    assert.matches("expected a tensor", lines[4])
    assert.matches("nb_device_tensor", lines[5])
    assert.matches("rows: %[0, 3%) lies outside the 2 rows", lines[6])
    assert.matches("reshape: 4 elements don't fit a shape of 3", lines[7])
    for i = 8, 12 do assert.matches("^%-6.*f32 %[2x2%] lies on cuda:0; copy it to the computer's memory first", lines[i]) end
    assert.equal(12, #lines)
  end)
end)

describe("cuda: what fails", function()
  -- The one sentence that t:to "cuda" gives, with its code.
  local function why(environment)
    return (run([[
      local ok, msg, code = nb.tensor("u8", { 600000 }):to "cuda"
      print(ok, code, msg) ]], environment))
  end

  it("is told in one sentence: driver, version, device, sm", function()
    assert.matches("^nil\teunsupported\tthere is no CUDA driver here: /none/libcuda.so: .*No such file[^\n]*$",
      why { NB_CUDA_DRIVER = "/none/libcuda.so" })
    assert.matches("^nil\teunsupported\tthe CUDA driver is too old: libm.so.6 has no cuInit; nibble needs CUDA 11.0[^\n]*$",
      why { NB_CUDA_DRIVER = "libm.so.6" })
    assert.matches("too old: it is for CUDA 10.2, nibble needs 11.0", why { NB_EMU_VERSION = 10020 })
    assert.matches("no CUDA device here: the driver %(CUDA 13.0%) lists none$", why { NB_EMU_DEVICES = 0 })
    assert.matches('lists none, CUDA_VISIBLE_DEVICES is "7"$', why { NB_EMU_DEVICES = 0, CUDA_VISIBLE_DEVICES = "7" })
    assert.matches("cuda:0 %(nibble's emulator%) is sm_75; nibble's kernels need sm_80 or later$", why { NB_EMU_SM = 75 })
    assert.matches("does not start: an unknown error %(803%)", why { NB_EMU_FAIL = "cuInit:1:803" })
    assert.matches("cuda:0 %(nibble's emulator%) cannot be used: .*%(46%)", why { NB_EMU_FAIL = "cuDevicePrimaryCtxRetain:1:46" })
    assert.matches("no cuda:3; devices here: 1, from cuda:0 on", run [[print(nb.tensor("u8", { 1 }):to "cuda:3")]])
    assert.matches('unknown device "gpu"; known: "cpu", "cuda"', run [[nb.tensor("u8", { 1 }):to "gpu"]])
  end)

  it("says how much memory was asked for and is free, and the session goes on", function()
    assert.equal("nil\tenomem\tcuda:0 is out of memory: 600000 bytes were asked for, 500000 of its 500000 are free",
      why { NB_EMU_MEMORY = 500000 })
    assert.equal("nil true 0", run([[
      local big, small = nb.tensor("u8", { 600000 }), nb.tensor("u8", { 9 })
      local live = require("nibble.ffi").C.nb_live_bytes()
      local d = big:to "cuda"
      print(tostring(d) .. " " .. tostring(small:to("cuda"):to("cpu"):equal(small)) .. " " ..
        tonumber(require("nibble.ffi").C.nb_live_bytes() - live - 18)) ]], { NB_EMU_MEMORY = 500000 }))
  end)

  it("leaves nothing behind when a copy fails", function()
    assert.equal("nil\teio\tcuda:0: copying 600000 bytes to it: CUDA_ERROR_INVALID_VALUE (1), said by the emulator\n0", run([[
      local t = nb.tensor("u8", { 600000 })
      local live = require("nibble.ffi").C.nb_live_bytes()
      local ok, msg, code = t:to "cuda"
      print(ok, code, msg)
      print(tonumber(require("nibble.ffi").C.nb_live_bytes() - live)) ]], { NB_EMU_FAIL = "cuMemcpyHtoDAsync_v2:1:1" }))
  end)

  it("loses the device for good where the driver says so, the computer's memory not", function()
    local out = run([[
      local t = nb.tensor("u8", { 10 }):fill(3)
      local d = t:to "cuda"
      print((select(2, d:to "cpu")))
      print((select(2, t:to "cuda")))
      print(nb.cuda.available())
      print(t:stats().max) ]], { NB_EMU_FAIL = "cuMemcpyDtoHAsync_v2:1:700" })
    local sentence = "cuda:0 is lost: copying 10 bytes from it: CUDA_ERROR_ILLEGAL_ADDRESS (700), said by the " ..
      "emulator; what lay on it is gone until nibble starts anew"
    assert.equal(sentence .. "\n" .. sentence .. "\nfalse\t" .. sentence .. "\n3", out)
  end)

  it("obeys Ctrl-C before and between blocks of a copy", function()
    assert.equal("interrupted\n-5 interrupted", run [[
      local C, ffi = require("nibble.ffi").C, require "ffi"
      local t, d = nb.tensor("u8", { 10 }), ffi.new "nb_device_tensor"
      C.nb_stop_request()
      print(select(2, pcall(t.to, t, "cuda")))
      print(C.nb_tensor_to(d.t, t, 1) .. " " .. ffi.string(C.nb_error())) ]])
  end)
end)

describe("cuda: in the session", function()
  it("a tensor on a device is listed, and Tab knows its methods", function()
    local out = run [[
      local d = nb.tensor("f32", { 2, 3 }):to "cuda"
      local memory = require "nibble.repl.memory"
      print(memory.bytes_of(d))
      local names = {}
      for name in pairs(require("nibble.repl.reflect").metatable_of(d).__methods) do names[#names + 1] = name end
      table.sort(names)
      print(table.concat(names, " ")) ]]
    assert.equal("24\nas bytes cast free numel quantize reshape rows show size to type where", out)
  end)

  it("names, bytes and memory tell where tensors lie, before a driver is begun and after", function()
    local out = run([[
      local memory = require "nibble.repl.memory"
      local t = nb.tensor("f32", { 4, 8 })
      print(memory.summary():match "cuda" == nil)
      local d, e = t:to "cuda:1", t:to("cuda"):reshape { 32 }
      io.write(memory.variables { d = d, e = e, t = t }, memory.summary():match "  cuda:0[^\n]*\n  cuda:1[^\n]*\n")
      d:free() d, e = nil, nil
      collectgarbage() collectgarbage()
      print(memory.summary():match "cuda" == nil) ]], { NB_EMU_DEVICES = 2, NB_EMU_MEMORY = 2 ^ 20 })
    assert.equal("true\nd  f32  128 B  4×8  on cuda:1\ne  f32  128 B  32  on cuda:0\nt  f32  128 B  4×8\n" ..
      "  cuda:0  128 B  of them; 1024 KiB of its 1.0 MiB are free\n  cuda:1  128 B  of them; 1024 KiB of its 1.0 MiB are free\ntrue",
      (out:gsub(" +", function(s) return #s > 2 and "  " or s end)))
  end)

  it("show a corner, for which no more is copied", function()
    local out = run([[
      local d = nb.cuda.new("cuda", "u8", { 3, 100000 })
      print(d:show())
      print(nb.tensor("f32", { 3, 2 }, { 1, 2, 3, 4, 5, 6 }):to("cuda"):rows(2, 3):show())
      print(nb.tensor("i32", { 5 }, { 1, 2, 3, 4, 5 }):to("cuda"):show())
      print(nb.cuda.new("cuda", "u4", { 3, 6 }):rows(2, 3):show())
      print(nb.cuda.new("cuda", "u4", { 2, 3 }):show())
      print(nb.cuda.new("cuda", "u8", { 1, 2 ^ 23 }):show())
      print(nb.cuda.new("cuda", "f32", {}):show(), nb.cuda.new("cuda", "f32", { 0, 4 }):show())
      print(#d, d.ndim, d.shape[1], d.dtype == nb.tensor("u8", { 1 }).dtype) ]], {})
    assert.equal("u8 [3×100000]  293 KiB  on cuda:0\n" .. ("  0  0  0  0  0  0  0  0  …\n"):rep(3) ..
      "f32 [2×2]  16 B  on cuda:0\n  3  4\n  5  6\ni32 [5]  20 B  on cuda:0\n  1  2  3  4  5\n" ..
      "u4 [2×6]  6 B  on cuda:0\n  0  0  0  0  0  0\n  0  0  0  0  0  0\n" ..
      "u4 [2×3]  3 B  on cuda:0\n  0  0  0\n  0  0  0\nu8 [1×8388608]  8.0 MiB  on cuda:0\n" ..
      "f32 []  4 B  on cuda:0\tf32 [0×4]  0 B  on cuda:0\n3\t2\t100000LL\ttrue", out)
  end)

  it("a corner that cannot be copied says why below the line", function()
    assert.matches("^i32 %[2×2%]  16 B  on cuda:0\ncuda:0 is lost: copying 16 bytes from it: [^\n]*$", (run(
      [[print(nb.tensor("i32", { 2, 2 }):to("cuda"):show())]], { NB_EMU_FAIL = "cuMemcpyDtoHAsync_v2:1:700" })))
  end)

  it("what wants the computer's memory says how to get there; methods are described", function()
    local out = run [[
      local t, plot = nb.tensor("f32", { 2, 2 }), require "nibble.repl.plot"
      local q = nb.tensor("f32", { 32, 64 }):fill(1):quantize { scheme = "W4A16", group = 32 }
      local d, far = t:to "cuda", q:to "cuda"
      for _, f in ipairs { function() nb.compare(t, d) end, function() nb.stats.of(d) end, function() plot.hist(d) end,
        function() nb.compare(far, q) end, function() plot.error(q, far) end, function() plot.hist(far) end,
        function() q:equal(far) end, function() d:nothing() end } do
        print((select(2, pcall(f))))
      end
      print(far)
      local help = require "nibble.repl.help"
      for name in pairs(nb.cuda.methods) do print(help.about("d." .. name, { d = d }):match "^t:[a-z]+%(" ~= nil) end
      for name, f in pairs(nb.cuda) do
        if type(f) == "function" and not help.doc(f) then print(name .. " is not described") end
      end ]]
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    for i = 1, 6 do assert.matches('expected a tensor.* one on cuda:0; t:to "cpu" gives a copy', lines[i]) end
    assert.matches('weight in the computer.s memory, found one on cuda:0; t:to "cpu" gives a copy', lines[7])
    assert.matches('a tensor has no method "nothing"', lines[8])
    assert.matches("^quantized %[32×64%]  W4A16 g32 sym  scales [a-z0-9]+  on cuda:0$", lines[9])
    assert.equal(("true "):rep(#lines - 9), table.concat(lines, " ", 10) .. " ")
  end)
end)

describe("cuda: what is here", function()
  it("is listed by nibble.cuda and by doctor", function()
    assert.equal("true\n2 cuda:1 nibble's emulator 89 13.0\n1048576\t1048576", run([[
      print(nb.cuda.available())
      local list = nb.cuda.devices()
      print(#list, list[2].name, list[2].model, list[2].sm, list[2].driver)
      print(nb.cuda.memory "cuda:1") ]], { NB_EMU_DEVICES = 2, NB_EMU_SM = 89, NB_EMU_MEMORY = 2 ^ 20 }):gsub("\t", " ", 4))
    local text = run([[io.write(nb.doctor.text(nb.doctor.examine()))]])
    assert.matches("\nCUDA driver +yes, for CUDA 13.0\n  cuda:0 +nibble's emulator, sm_90, 1.0 GiB", text)
    assert.matches("\n  cuda:0 +no: cuda:0 %(nibble's emulator%) is sm_75",
      (run([[io.write(nb.doctor.text(nb.doctor.examine()))]], { NB_EMU_SM = 75 })))
  end)

  it("or why not", function()
    assert.matches("^false\tthere is no CUDA driver here: [^\n]*\n%$",
      (run([[print(nb.cuda.available()) print "$"]], { NB_CUDA_DRIVER = "/none" })))
    assert.matches("\nCUDA driver +no: there is no CUDA driver here: /none: ",
      (run([[io.write(nb.doctor.text(nb.doctor.examine()))]], { NB_CUDA_DRIVER = "/none" })))
  end)
end)
