-- The journal: lines that survive kill -9; a torn or damaged tail is cut off.
local nb = require "nibble"
local C = require("nibble.ffi").C
local files = require "spec.support.files"
local journal = nb.checkpoint.journal

local dir, path
before_each(function()
  dir = files.temporary()
  path = dir .. "/journal"
end)
after_each(function() files.remove(dir) end)

local function lines()
  local j = assert(journal(path))
  local found = j.lines
  j:close()
  return found
end

local function write_three()
  local j = assert(journal(path))
  assert(j:append "plan 1")
  assert(j:append "")
  assert(j:append "done model.layers.0 \0 é")
  j:close()
end

describe("journal", function()
  it("keeps lines in order", function()
    assert.same({}, lines())
    write_three()
    assert.same({ "plan 1", "", "done model.layers.0 \0 é" }, lines())
    local j = assert(journal(path))
    assert(j:append "four")
    j:close()
    assert.equal("four", lines()[4])
  end)

  it("cuts off a tail torn at any byte", function()
    write_three()
    local whole = files.read(path)
    local ends, at = { 0 }, 0
    for line in whole:gmatch "[^\n]*\n" do
      at = at + #line
      ends[#ends + 1] = at
    end
    for n = 0, #whole do
      files.write(path, whole:sub(1, n))
      local expected = 0
      for i = 2, #ends do if ends[i] <= n then expected = i - 1 end end
      assert.equal(expected, #lines())
      assert.equal(ends[expected + 1], #files.read(path))
    end
  end)

  it("goes on after a torn tail as if it had not been", function()
    write_three()
    local whole = files.read(path)
    files.write(path, whole .. "0123456789abcdef torn")
    local j = assert(journal(path))
    assert(j:append "four")
    j:close()
    assert.same({ "plan 1", "", "done model.layers.0 \0 é", "four" }, lines())
  end)

  it("finds every changed, lost or exchanged line", function()
    write_three()
    local whole = files.read(path)
    for i = 1, #whole do
      files.write(path, whole:sub(1, i - 1) .. string.char((whole:byte(i) + 1) % 256) .. whole:sub(i + 1))
      assert.is_true(#lines() < 3)
    end
    local a, b, c = whole:match "^([^\n]*\n)([^\n]*\n)([^\n]*\n)$"
    files.write(path, a .. c)
    assert.equal(1, #lines())
    files.write(path, b .. a .. c)
    assert.equal(0, #lines())
  end)

  it("keeps what was appended when the process is killed", function()
    local code = ([[
      package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
      local j = assert(require("nibble").checkpoint.journal(%q))
      for i = 1, 50 do assert(j:append("line " .. i)) end
      io.stdout:write "ready" io.stdout:flush()
      require("ffi").cdef "int kill(int, int); int getpid(void);"
      require("ffi").C.kill(require("ffi").C.getpid(), 9)]]):format(path)
    files.write(dir .. "/x.lua", code)
    local p = io.popen("luajit " .. dir .. "/x.lua 2>&1")
    assert.matches("^ready", p:read "*a")
    p:close()
    assert.equal(50, #lines())
  end)

  it("belongs to one process at a time", function()
    local j = assert(journal(path))
    local second, msg, code = journal(path)
    assert.is_nil(second)
    assert.equal("eio", code)
    assert.matches("journal is in use: another nibble works in that folder", msg)
    j:close()
    assert(journal(path)):close()
  end)

  it("can be removed, refuses newlines, says what the system refused", function()
    local j = assert(journal(path))
    assert.error_matches(function() j:append "a\nb" end, "must not hold a newline")
    assert(j:remove())
    assert.is_nil(nb.checkpoint.exists(path))
    assert.error_matches(function() j:append "a" end, "journal: it is closed")
    local none, msg, code = journal(dir .. "/nothing/journal")
    assert.is_nil(none)
    assert.equal("eio", code)
    assert.matches("cannot open the journal .*No such file", msg)
    none, msg = journal(dir)
    assert.is_nil(none)
    assert.matches("Is a directory", msg)
    j = assert(journal(path))
    assert(j:append "x")
    j:close()
    files.write(path, files.read(path) .. ("x"):rep(100000))
    assert.equal(1, #lines())
  end)

  it("survives failed allocations", function()
    write_three()
    local failures = 0
    for n = 1, 12 do
      C.nb_debug_fail_alloc(n)
      local ok, j, msg = pcall(journal, path)
      C.nb_debug_fail_alloc(0)
      if ok and j then
        j:close()
      else
        failures = failures + 1
        assert.matches("out of memory", ok and msg or j)
      end
    end
    assert.is_true(failures >= 3)
    assert.equal(3, #lines())
  end)
end)
