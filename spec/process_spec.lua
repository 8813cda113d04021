-- Programs started without a shell: what they print, how they end, what can't be started; and locks between processes.
local files = require "spec.support.files"
local lock = require "nibble.lock"
local nffi = require "nibble.ffi"
local process = require "nibble.process"

describe("process", function()
  it("keeps what a program prints, its status and its peak memory", function()
    local r = assert(process.run { "sh", "-c", "echo out; echo err >&2; read x || echo 'no input'; exit 3" })
    assert.same({ 3, "out\nno input\n", "err\n" }, { r.status, r.out, r.err })
    assert.is_nil(r.signal)
    assert.is_true(r.peak_bytes > 100000 and r.peak_bytes < 2 ^ 30)
  end)

  it("keeps more than a pipe holds, on both at once", function()
    local r = assert(process.run { "sh", "-c", "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2" })
    assert.same({ 0, 300000, 300000 }, { r.status, #r.out, #r.err })
  end)

  it("passes arguments as they are", function()
    assert.equal([[a b|$HOME 'x' "y" *|]], assert(process.run { "printf", "%s|", "a b", [[$HOME 'x' "y" *]] }).out)
  end)

  it("tells the signal that ended it", function()
    local r = assert(process.run { "sh", "-c", "kill -9 $$" })
    assert.is_nil(r.status)
    assert.equal("killed by signal 9 (out of memory?)", process.killed(r.signal))
    assert.equal("killed by signal 40", process.killed(40))
  end)

  it("says what can't be started", function()
    local r, msg, code = process.run { "/nowhere/at-all" }
    assert.is_nil(r)
    assert.same({ "cannot start /nowhere/at-all: No such file or directory", "eio" }, { msg, code })
  end)

  it("leaves no file descriptor behind", function()
    local function open() return #assert(require("nibble.checkpoint").list("/proc/self/fd")) end
    local before = open()
    for _ = 1, 20 do
      process.run { "true" }
      process.run { "/nowhere" }
    end
    assert.equal(before, open())
  end)

  it("ends the program at Ctrl-C", function()
    nffi.C.nb_stop_request()
    local ok, why = pcall(process.run, { "sleep", "100" })
    nffi.C.nb_stop_clear()
    assert.is_false(ok)
    assert.equal("interrupted", why)
  end)
end)

describe("a lock", function()
  local dir
  setup(function() dir = files.temporary() end)
  teardown(function() files.remove(dir) end)

  it("is one's or several readers', and says whose", function()
    local a = assert(lock.take(dir .. "/lock"))
    assert(a:say "mine, and a long text")
    assert(a:say "mine")
    local b, msg, code = lock.take(dir .. "/lock", { shared = true })
    assert.is_nil(b)
    assert.same({ "mine", "ebusy" }, { msg, code })
    a:release()
    a, b = assert(lock.take(dir .. "/lock", { shared = true })), assert(lock.take(dir .. "/lock", { shared = true }))
    assert.equal("ebusy", select(3, lock.take(dir .. "/lock")))
    a:release()
    b:release()
    assert(lock.take(dir .. "/lock")):release()
  end)

  it("ends with its process, and isn't inherited", function()
    local a = assert(lock.take(dir .. "/lock"))
    local p = assert(process.spawn { "sleep", "100" })
    a:release()
    assert(lock.take(dir .. "/lock")):release()
    p:kill(process.SIGKILL)
    assert.equal(9, p:wait().signal)
  end)

  it("of a place that isn't there is an error", function()
    local a, msg, code = lock.take(dir .. "/nowhere/lock")
    assert.is_nil(a)
    assert.matches("^cannot open .*/nowhere/lock: No such file or directory$", msg)
    assert.equal("eio", code)
  end)
end)
