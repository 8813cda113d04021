-- cuda_stream: streams, the order between them, times and graphs. The stand-in driver does work as late as it may, the
-- latest first: an order that was not asked for doesn't come about.
local standin = require "spec.support.standin"

-- A kernel that copies from -> to; words 1..n on the device.
local prelude = [[
  local nb = require "nibble"
  local cuda = nb.cuda
  local function words(n, first)
    local t = nb.tensor("i32", { n })
    for i = 1, n do t:set(i, first + i) end
    return t
  end
  local function copy(from, to)
    return assert(cuda.launch("emu_copy_shifted", { grid = from:numel() / 32, block = 32, from, to, 0 }))
  end
  local a, b = words(64, 0):to "cuda", words(64, 1000):to "cuda"
  local c = assert(cuda.new("cuda", "i32", { 64 }))
  cuda.wait()
  local function first(t) return t:to("cpu"):get(1) end
]]

local run = standin.with(prelude)

describe("cuda: a stream", function()
  it("keeps its order, and what it leaves is there for a copy on it", function()
    assert.equal("1001 1", run [[
      local s = assert(cuda.stream())
      s:use(function()
        copy(a, c)
        copy(b, a)
        io.write(first(a), " ", first(c))
      end) ]])
  end)

  it("is waited for by the default stream, and waits for it", function()
    assert.equal("1 1001", run [[
      local s, t = cuda.stream(), cuda.stream()
      s:use(copy, a, c)
      io.write(first(c), " ")
      copy(b, a)
      t:use(copy, a, c)
      t:wait()
      io.write(t:use(first, c)) ]])
  end)

  it("goes beside another one, unless it comes after it", function()
    local function through(order)
      return (run(([[
        local s, t = cuda.stream(), cuda.stream()
        s:use(copy, a, c)
        %s
        t:use(copy, c, b)
        t:wait()
        io.write(t:use(first, b)) ]]):format(order)))
    end
    assert.equal("0", through "") -- c was zero when t read it
    assert.equal("1", through "assert(t:after(s))")
    assert.equal("1", through "s:wait()")
    assert.equal("1", through "cuda.wait()")
  end)

  it("comes after another one in what follows alone, and on its own device", function()
    assert.equal("0", (run [[
      local s, t = cuda.stream(), cuda.stream()
      t:after(s)
      s:use(copy, a, c)
      t:use(copy, c, b)
      io.write(t:use(first, b)) ]]))
    assert.equal("1 cuda:1 stream on cuda:1", run([[
      local far = cuda.new("cuda:1", "i32", { 64 })
      local s, t = cuda.stream(), cuda.stream "cuda:1"
      s:use(copy, a, c)
      assert(t:after(s))
      io.write(first(c), " ", t:where(), " ", tostring(t)) ]], { NB_EMU_DEVICES = 2 }))
  end)

  it("lets memory go only when nobody uses it any more", function()
    assert.equal("1", run [[
      local s, t = cuda.stream(), cuda.stream()
      t:use(function()
        local between = cuda.new("cuda", "i32", { 64 })
        copy(a, between)
        copy(between, c)
        between:free()
        a:free()
      end)
      io.write(s:use(first, c)) ]])
  end)

  it("may end before its work, and its function may fail", function()
    assert.equal("false\tno such luck\n1", run [[
      local s = cuda.stream()
      print(pcall(s.use, s, function() copy(a, c) error("no such luck", 0) end))
      s = nil
      collectgarbage() collectgarbage()
      io.write(first(c)) ]])
  end)

  it("makes tensors that are zero for it", function()
    assert.equal("0 7", run [[
      local s = cuda.stream()
      s:use(function()
        io.write(first(cuda.new("cuda", "i32", { 4 })), " ", first(nb.tensor("i32", { 1 }, { 7 }):to "cuda"))
      end) ]])
  end)

  it("tells in a sentence what cannot be", function()
    assert.matches("nil\tcuda:0: making a stream: CUDA_ERROR_OUT_OF_MEMORY %(2%)", run("print(cuda.stream())",
      { NB_EMU_FAIL = "cuStreamCreate:1:2" }))
    assert.matches("unknown device \"gpu\"", run [[cuda.stream "gpu"]])
    assert.matches("there is no cuda:3", run [[print(cuda.stream "cuda:3")]])
    assert.matches("after: expected a stream, found a nil", run [[cuda.stream():after()]])
    assert.matches("the stream is one of cuda:0, expected one of cuda:1", run([[
      local C = require("nibble.ffi").C
      print(C.nb_stream_use(2, cuda.stream().handle) < 0 and require("ffi").string(C.nb_error())) ]], { NB_EMU_DEVICES = 2 }))
    assert.matches("^nil\tcuda:0 is lost: kernel emu_copy_shifted failed: CUDA_ERROR_LAUNCH_FAILED", run [[
      local s = cuda.stream()
      s:use(function() cuda.launch("emu_copy_shifted", { grid = 2, block = 32, a, c, 1000 }) end)
      print(s:wait()) ]])
  end)
end)

describe("cuda: time", function()
  it("is what the device took between begin and end", function()
    assert.equal("true true", run [[
      local s = cuda.stream()
      local one = assert(cuda.time(function() copy(a, c) end))
      local none = s:use(function() return assert(cuda.time(function() end)) end)
      io.write(tostring(one > 0), " ", tostring(none >= 0 and none < one)) ]])
  end)
  it("fails in a sentence", function()
    assert.matches("^nil\tcuda:0: marking the time: .*%(1%)", run("print(cuda.time(function() end))", { NB_EMU_FAIL = "cuEventRecord:2:1" }))
    assert.matches("^nil\tcuda:0: measuring the time: .*%(1%)", run("print(cuda.time(function() end))",
      { NB_EMU_FAIL = "cuEventElapsedTime:1:1" }))
    assert.matches("^nil\tcuda:0 is lost: kernel emu_copy_shifted failed", run [[
      print(cuda.time(function() cuda.launch("emu_copy_shifted", { grid = 2, block = 32, a, c, 1000 }) end)) ]])
  end)
end)

describe("cuda: a graph", function()
  it("does again what was begun once, on the current stream", function()
    assert.equal("0 1 true 51 7 ", run [[
      local g, result = assert(cuda.graph(function()
        local between = cuda.new("cuda", "i32", { 64 })
        copy(a, between)
        copy(between, c)
        return c
      end))
      assert(result == c and g.results[1] == c)
      local function set(first)
        cuda.launch("emu_copy_shifted", { grid = 2, block = 32, words(64, first):to "cuda", a, 0 })
      end
      copy(cuda.new("cuda", "i32", { 64 }), c)
      io.write(first(c), " ")
      g()
      io.write(first(c), " ", tostring(g()), " ")
      set(50) g()
      io.write(first(c), " ")
      set(6)
      cuda.stream():use(g)
      io.write(first(c), " ") ]])
  end)

  it("keeps the memory that it made, and gives it back at its end", function()
    assert.equal("1 true", run [[
      collectgarbage() collectgarbage()
      local free = cuda.memory()
      local g = assert(cuda.graph(function()
        local between = cuda.new("cuda", "i32", { 64 })
        copy(a, between)
        local made = cuda.new("cuda", "i32", { 64 })
        copy(between, made)
        copy(made, c)
        between:free()
        return made
      end))
      g.results[1]:free()
      g.results = nil
      collectgarbage() collectgarbage()
      assert(cuda.memory() < free)
      g()
      io.write(first(c), " ")
      g = nil
      collectgarbage() collectgarbage()
      io.write(tostring(cuda.memory() == free)) ]])
  end)

  it("keeps memory that was given back while it was captured, and leaves the current stream as it was", function()
    assert.equal("1 true", run [[
      local C, calls, s = require("nibble.ffi").C, 0, cuda.stream()
      local g = s:use(function()
        local g = assert(cuda.graph(function()
          calls = calls + 1
          copy(a, c)
          if calls == 2 then a:free() end
        end))
        io.write(first(c), " ")
        assert(cuda.new("cuda", "i32", { 64 })) -- where a was, if it were free
        io.write(tostring(C.nb_stream_current(1) == s.handle))
        return g
      end)
      assert(g() and cuda.wait()) ]])
  end)

  it("may hold the device's copies and zeros, not those of the computer's memory, and nothing waits in it", function()
    local out = run [[
      local C, ffi = require("nibble.ffi").C, require "ffi"
      local t = words(64, 0)
      for _, f in ipairs { function() assert(t:to "cuda") end, function() assert(a:to "cpu") end,
          function() assert(cuda.wait()) end, function() assert(cuda.stream():wait()) end,
          function() assert(cuda.time(function() end)) end, function() assert(cuda.stream():after(cuda.stream())) end,
          function() cuda.stream():use(function() end) end,
          function() assert(cuda.graph(function() end)) end } do
        local calls = 0
        print(select(2, pcall(cuda.graph, function()
          calls = calls + 1
          if calls == 2 then f() end
        end)))
      end
      print(C.nb_graph_end(ffi.new "nb_graph *[1]", 1), ffi.string(C.nb_error()))
      local g = assert(cuda.graph(function() copy(a, c) end))
      g()
      print(first(c)) ]]
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    for i = 1, 2 do assert.matches("cuda:0: while a graph is captured, nothing can be copied to or from the computer's memory", lines[i]) end
    for i = 3, 6 do assert.matches("cuda:0: while a graph is captured, nothing can wait", lines[i]) end
    assert.matches("while a graph is captured, no other stream can be used", lines[7])
    assert.matches("while a graph is captured, another cannot be begun", lines[8])
    assert.matches("^%-1\tcuda:0: no graph was begun on this thread", lines[9])
    assert.equal("1", lines[10])
  end)

  it("holds no more than a launch when it is of a library function", function()
    assert.equal("true", run [[
      local packed = nb.tensor("i32", { 16, 64 }):fill(0x12345678)
      local expected, d = nb.layout.marlin.repack(packed, 4), packed:to "cuda"
      local g, out = cuda.graph(function() return nb.layout.marlin.repack(d, 4) end)
      g()
      io.write(tostring(out:to("cpu"):equal(expected))) ]])
  end)

  it("fails in a sentence: an old driver, no memory, what the driver refuses", function()
    assert.matches("^nil\tgraphs need a driver for CUDA 11.4 %(470%) or later, the one here is for 11.2\teunsupported",
      run("print(cuda.graph(function() end))", { NB_EMU_VERSION = 11020 }))
    assert.matches("^nil\tcuda:0: beginning a graph: .*%(1%)[^\n]*\n1$",
      run("print(cuda.graph(function() end)) copy(a, c) print(first(c))", { NB_EMU_FAIL = "cuStreamBeginCapture_v2:1:1" }))
    assert.matches("^nil\tcuda:0: making a graph of what was captured: .*%(1%)[^\n]*\n1$",
      run("print(cuda.graph(function() end)) copy(a, c) print(first(c))", { NB_EMU_FAIL = "cuGraphInstantiateWithFlags:1:1" }))
    assert.matches("^nil\tcuda:0: launching a graph: .*%(1%)",
      run("print(cuda.graph(function() end)())", { NB_EMU_FAIL = "cuGraphLaunch:1:1" }))
  end)
end)
