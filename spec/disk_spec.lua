-- A full disk (issue "First light", Run): a clear message, what was proven stays, and the same command goes on
-- when there is room. A small tmpfs where mounting is permitted, a limit on files' sizes everywhere.
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local files = require "spec.support.files"

local model = "spec/models/tiny-llama"
local root, arguments, expected

local function digest(dir)
  local p = io.popen(("cd %q && find . -type f | sort | xargs sha256sum"):format(dir))
  local text = p:read "*a"
  p:close()
  return text
end

local function fails_for_room(dir, before, words)
  local r = command.run(arguments .. dir, { before = before })
  assert.equal(2, r.status, r.err)
  assert.equal("", r.out)
  assert.equal(1, #r.lines, r.err)
  assert.matches(words, r.lines[1])
  assert.is_nil(checkpoint.exists(dir)) -- room for all is taken first, so nothing was proven yet
end

local function goes_on(dir)
  local r = command.run(arguments .. dir)
  assert.equal(0, r.status, r.err)
  assert.equal(expected, digest(dir))
end

setup(function()
  root = files.temporary()
  files.write(root .. "/disk.lua", 'return { name = "disk", scheme = "W4A16", group = 32 }')
  arguments = ("run %s/disk.lua %s --out "):format(root, model)
  assert.equal(0, command.run(arguments .. root .. "/whole").status)
  expected = digest(root .. "/whole")
end)

teardown(function() os.execute("rm -rf " .. root) end)

describe("a full disk", function()
  it("of which files may not grow beyond a limit", function()
    for _, blocks in ipairs { 1, 100, 1000, 4000 } do -- of 512 bytes in sh
      local dir = ("%s/limited-%d"):format(root, blocks)
      fails_for_room(dir, ("ulimit -f %d; exec"):format(blocks), "File too large$")
      goes_on(dir)
    end
  end)

  it("that is a small file system, made larger", function()
    local mount = root .. "/mount"
    os.execute("mkdir -p " .. mount)
    if os.execute(("mount -t tmpfs -o size=64k none %s 2>/dev/null"):format(mount)) ~= 0 then
      return pending "mounting is not permitted here"
    end
    local ok, failure = pcall(function()
      for _, size in ipairs { "64k", "300k", "2m" } do
        assert.equal(0, os.execute(("mount -o remount,size=%s %s"):format(size, mount)))
        fails_for_room(mount .. "/out", nil, "No space left on device$")
      end
      assert.equal(0, os.execute(("mount -o remount,size=20m %s"):format(mount)))
      goes_on(mount .. "/out")
    end)
    os.execute("umount " .. mount)
    assert(ok, failure)
  end)
end)
