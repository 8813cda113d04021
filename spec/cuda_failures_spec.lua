-- cuda_failures: whichever call of the driver fails in the course of an eval, it ends in one sentence (or does without what it
-- asked for), nothing stays behind, and the next one in the same session gives what it gave before.
local files = require "spec.support.files"
local small_models = require "spec.support.small_models"
local standin = require "spec.support.standin"

local run = standin.with [[
  local ffi, C = require "ffi", require("nibble.ffi").C
  ffi.cdef "int setenv(const char *, const char *, int); int unsetenv(const char *); long emu_calls(const char *);"
  local driver = ffi.load(os.getenv "NB_CUDA_DRIVER")
  -- The nth call from now on of a function ("*": any) gives this code of the driver's.
  local function fails(name, nth, code)
    ffi.C.setenv("NB_EMU_FAIL", ("%s:%d:%d"):format(name, tonumber(driver.emu_calls(name)) + nth, code), 1)
  end
  local function live()
    for _ = 1, 3 do collectgarbage() end
    return tonumber(C.nb_live_bytes())
  end
  -- Evals of a model in which every `step`th call of the driver fails, one in each, and a good one after each.
  local function tried(path, code, step, options, name)
    name = name or "*"
    local function eval()
      local o = { model = assert(nb.open(path)), ids = nb.tensor("i32", { 2, 8 }):fill(7), device = "cuda" }
      return nb.eval.run(setmetatable(o, { __index = options }))
    end
    local nll = assert(eval()).nll
    local before = tonumber(driver.emu_calls(name))
    assert(eval().nll == nll)
    local calls, most = tonumber(driver.emu_calls(name)) - before, live()
    local told, done = 0, 0
    for nth = 1 + step % 7, calls, step do
      fails(name, nth, code)
      local worked, r, msg, kind = pcall(eval)
      ffi.C.unsetenv "NB_EMU_FAIL"
      local text = tostring(worked and msg or r)
      if worked and r and math.abs(r.nll - nll) < 1e-3 then done = done + 1
      elseif worked and not r and (kind == "eio" or kind == "enomem") and text:match "cuda:0" and not text:match "\n" then told = told + 1
      else print(("call %d of %d: %s"):format(nth, calls, worked and r and r.nll or text)) end
      r = nil
      local after = assert(eval()).nll
      if after ~= nll then print(("after call %d: nll %.9g, before %.9g"):format(nth, after, nll)) end
    end
    if live() > most then print(live() - most .. " bytes stay behind") end
    assert(told + done >= 6, "too few calls were tried")
    io.write(told > 0 and "told" or "never told")
  end
]]

describe("a call of the driver that fails in an eval", function()
  local root, experts
  setup(function()
    root = files.temporary()
    experts = small_models.quantized(small_models.first_layers(root, "tiny-moe", 1))
  end)
  teardown(function() files.remove(root) end)

  it("is one sentence, and the next eval is well: floats", function()
    assert.equal("told", run 'tried("spec/models/parity/llama", 1, 67)')
  end)

  it("for want of memory is done without, or told", function()
    for _, name in ipairs { "cuMemAlloc_v2", "cuLaunchKernel" } do -- which may come after what was made for it
      local out = run(('tried("spec/models/parity/llama", 2, 3, nil, %q)'):format(name))
      assert.is_true(out == "told" or out == "never told", out)
    end
  end)

  it("is one sentence: weights and experts in 4 bits that are streamed", function()
    assert.equal("told", run(("tried(%q, 1, 53, { cache_bytes = 0 })"):format(experts)))
  end)

  it("that waits for a copy leaves none under way into memory that is given back", function()
    assert.equal("told", run 'tried("spec/models/parity/llama", 1, 3, nil, "cuStreamSynchronize")')
  end)

  it("that waits for a copy ends after it all the same: the place is free for others", function()
    assert.equal("-1\t9", run [[
      local here, there, stream = nb.tensor("i32", { 4 }), nb.tensor("i32", { 4 }):fill(7):to "cuda", nb.cuda.stream()
      local rc
      fails("cuStreamSynchronize", 1, 3)
      stream:use(function() rc = C.nb_device_copy(here, there.t) end)
      ffi.C.unsetenv "NB_EMU_FAIL"
      here:fill(9)
      stream:wait()
      print(rc < 0 and -1 or rc, here:get(1)) ]])
  end)

  it("and loses the device is one sentence, then and later; the computer's own memory serves on", function()
    for _, nth in ipairs { 60, 430 } do
      local out = run(([[
        local function eval(device)
          local r, msg = nb.eval.run { model = assert(nb.open "spec/models/parity/llama"), ids = nb.tensor("i32", { 2, 8 }):fill(7),
            device = device }
          print(r and "well" or msg)
        end
        fails("*", %d, 700)
        eval "cuda"
        eval "cuda"
        eval() ]]):format(nth))
      assert.matches("^spec/models/parity/llama: [^\n]*cuda:0 is lost: [^\n]+\ncuda:0 is lost: [^\n]+\nwell$", out)
    end
  end)
end)

describe("where the driver fails", function()
  it("for want of memory, what the first try made is given back before the second", function()
    assert.equal("f16\t0", run [[
      local t = nb.tensor("f32", { 64 }):to "cuda"
      local before = live()
      fails("cuLaunchKernel", 1, 2)
      local cast = t:cast "f16"
      local made = cast:type()
      cast = nil
      print(made, live() - before) ]])
  end)

  it("streams and graphs are left as they were found", function()
    assert.equal("true\tnil\ttrue\ttrue", run [[
      local s = assert(nb.cuda.stream())
      s:use(function() fails("*", 1, 1) end)
      local back = C.nb_stream_current(1) == nil
      ffi.C.unsetenv "NB_EMU_FAIL"
      local calls = 0
      local g = nb.cuda.graph(function()
        calls = calls + 1
        if calls == 2 then fails("*", 1, 1) end
      end)
      ffi.C.unsetenv "NB_EMU_FAIL"
      print(back, g, C.nb_stream_current(1) == nil, (nb.cuda.wait())) ]])
  end)
end)
