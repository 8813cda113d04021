-- Sweeps against bad input, kills and other processes: a sentence each, no result lost or doubled.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local process = require "nibble.process"
local folder = require "nibble.sweep.folder"
local results = require "nibble.sweep.results"

local llama, text = "spec/models/tiny-llama", "spec/models/eval/test.txt"
local root, made, small, done

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function sweep(arguments, o) return command.run("sweep " .. arguments, o) end
local function of(recipes, more, windows)
  return ("%s --model %s --text %s --context 64 --windows %d %s"):format(recipes, llama, text, windows or 1, more or "")
end

local function copy_of_done()
  local to = fresh()
  os.execute(("cp -r %s %s"):format(done, to))
  return to
end

-- The hash of the folder's job of this recipe (nil: the model itself).
local function job(dir, recipe)
  for _, j in ipairs(assert(folder.read(dir)).jobs) do if j.recipe == recipe then return j.job end end
end

local function result(dir, recipe) return results.read(dir, job(dir, recipe)) end

local function edit(path, from, to)
  local before = files.read(path)
  local after = before:gsub(from, to)
  assert.not_equal(before, after)
  files.write(path, after)
end

local function refused(arguments, pattern, o)
  local r = sweep(arguments, o)
  assert.equal(2, r.status, r.err)
  assert.equal(1, #r.lines, r.err)
  assert.matches(pattern, r.lines[1])
end

setup(function()
  root, made = files.temporary(), 0
  small, done = root .. "/small.lua", fresh()
  files.write(small, 'return { name = "small", scheme = "W4A16", group = 64 }')
  assert.equal(0, sweep(of(small, "--out " .. done)).status)
end)

teardown(function() os.execute("rm -rf " .. root) end)

describe("a command that makes no sense", function()
  it("is refused with a sentence and leaves no folder", function()
    local dir = fresh()
    for arguments, pattern in pairs {
      ["small --model m --text t --out "] = "^nibble: recipe small was not found",
      [small .. " --text " .. text .. " --out "] = "^nibble: sweep needs %-%-model MODEL$",
      [small .. " --model " .. llama .. " --out "] = "^nibble: sweep needs %-%-text FILE$",
      [of(small, "--set group --out ")] = "^nibble: %-%-set expects key=value or key=value,value, found \"group\"$",
      [of(small, "--set gruop=32 --out ")] = "unknown key \"gruop\"; did you mean \"group\"",
      [of(small, "--shard 0/3 --out ")] = "%-%-shard expects i/n with i from 1 to n, found \"0/3\"$",
      [of(small, "--shard 4/3 --out ")] = "found \"4/3\"$",
      [of(small, "--merge --shard 1/3 --out ")] = "one of them at a time$",
      [small .. " --model /nowhere --text " .. text .. " --out "] = "^nibble: /nowhere doesn't exist",
      [small .. " --model " .. llama .. " --text /nowhere --out "] = "^nibble: /nowhere doesn't exist; expected a text file$",
      ["--set group=32 --out "] = "^nibble: %-%-set plans jobs: it needs %-%-model and %-%-text$",
      ["--out "] = "holds no sweep; name recipes, models and texts to begin one there$",
      ["--merge --out "] = "holds no sweep",
    } do
      refused(arguments .. dir, pattern)
      assert.is_nil(checkpoint.exists(dir))
    end
  end)

  it("names what is named twice once", function()
    local dir = copy_of_done()
    local r = sweep(("%s %s %s --model %s/ --text %s --text %s --context 64 --windows 1 --out %s"):format(small, small,
      "--model " .. llama, llama, text, text, dir))
    assert.equal(0, r.status, r.err)
    assert.equal(3, #r.lines)
    for _, line in ipairs(r.lines) do assert.matches("is named twice: counted once$", line) end
    assert.equal(2, #assert(nb.sweep.read(dir)))
  end)
end)

describe("a folder", function()
  it("that is another's, a file, or can't be made is left alone", function()
    local dir = fresh()
    assert(checkpoint.mkdir(dir))
    files.write(dir .. "/notes.txt", "mine")
    refused(of(small, "--out " .. dir), "exists and holds other files %(notes%.txt%); choose another folder or empty it$")
    assert.same({ "notes.txt" }, checkpoint.list(dir))
    refused(of(small, "--out " .. small), "is a file; give a folder for the sweep$")
    refused(of(small, "--out /proc/sweep"), "^nibble: cannot make the folder /proc/sweep: ")
  end)

  it("inside the model's folder is refused", function()
    refused(of(small, "--out " .. llama .. "/sweep"), "lies inside the model's folder .*tiny%-llama, which is never written to")
    assert.is_nil(checkpoint.exists(llama .. "/sweep"))
  end)

  it("of another version of the format is left alone", function()
    local dir = copy_of_done()
    edit(dir .. "/sweep.json", '^{"sweep":1', '{"sweep":2')
    local before = files.read(dir .. "/sweep.json")
    for _, arguments in ipairs { "--out ", "--merge --out ", of(small, "--out ") } do
      refused(arguments .. dir, "sweep%.json is of version 2 of the sweep's format, this nibble %(.-%) knows version 1; use")
    end
    assert.equal(before, files.read(dir .. "/sweep.json"))
  end)

  it("with a damaged sweep.json keeps its results", function()
    local dir = copy_of_done()
    local whole = files.read(dir .. "/sweep.json")
    files.write(dir .. "/sweep.json", whole:sub(1, 200))
    refused("--out " .. dir, "sweep%.json: .*; move it away and name the recipes, models and texts again: results stay$")
    os.remove(dir .. "/sweep.json")
    assert.equal(0, sweep(of(small, "--out " .. dir)).status)
    assert.equal(1, result(dir, "small").attempts)
    assert.equal(whole, files.read(dir .. "/sweep.json"))
  end)

  it("planned by another version of nibble keeps its results and isn't run", function()
    local dir = copy_of_done()
    edit(dir .. "/sweep.json", '"version":"[^"]*"', '"version":"0.0.1"')
    os.remove(folder.path(dir, job(dir, "small"), "result.json"))
    local r = sweep("--out " .. dir)
    assert.equal(0, r.status)
    assert.matches("^nibble: 2 jobs of nibble 0%.0%.1: results stay, the rest isn't run by nibble", r.lines[1])
    assert.equal(1, #assert(nb.sweep.read(dir)))
  end)

  it("may get more recipes; what is no longer named stays", function()
    local dir, more = copy_of_done(), root .. "/more.lua"
    files.write(more, 'return { name = "more", scheme = "W8A16", group = 64 }')
    local r = sweep(of(more, "--out " .. dir))
    assert.equal(0, r.status, r.err)
    assert.is_nil(r.out:find "small")
    assert.equal(3, #assert(nb.sweep.read(dir)))
    assert.equal(1, result(dir, "small").attempts)
  end)
end)

describe("a result", function()
  it("that is cut, empty or another job's is set aside, and its job runs again", function()
    local dir = copy_of_done()
    local path = folder.path(dir, job(dir, "small"), "result.json")
    local whole, before = files.read(path), results.encode(result(dir, "small")):gsub('"seconds":.*', "")
    for _, text_of in ipairs { "", (whole:gsub('"job":"%x%x%x%x', '"job":"0000')), (whole:gsub('"figures":%b{}', '"figures":7')),
      (whole:gsub('"ppl":[%d.]+', '"ppl":"7"')), (whole:gsub('"modules":%b[]', '"modules":[7]')), (whole:gsub('"model":"[^"]*",', "")),
      (whole:gsub('"text":"[^"]*"', '"text":{}')), (whole:gsub('"sqnr_db":', '"sqnr_db":{},"x":')),
      whole:sub(1, 100) } do
      files.write(path, text_of)
      assert.equal(1, #assert(nb.sweep.read(dir)))
      assert.matches("result%.json is damaged %(", select(2, results.read(dir, job(dir, "small"))))
    end
    local r = sweep("--out " .. dir)
    assert.equal(0, r.status, r.err)
    assert.matches("result%.json is damaged %(.*%): it is set aside, and the job runs again$", r.lines[2])
    assert.equal(whole:sub(1, 100), files.read(path .. ".damaged"))
    assert.equal(before, (results.encode(result(dir, "small")):gsub('"seconds":.*', "")))
    assert.equal(2, result(dir, "small").attempts)
  end)

  it("list that is half-written is made anew from the results", function()
    local dir = copy_of_done()
    local whole = files.read(dir .. "/results.jsonl")
    files.write(dir .. "/results.jsonl", whole:sub(1, 300))
    assert.equal(0, sweep("--merge --out " .. dir).status)
    assert.equal(whole, files.read(dir .. "/results.jsonl"))
    os.execute("rm -r " .. dir .. "/jobs")
    assert.equal(2, #assert(nb.sweep.read(dir)))
    files.write(dir .. "/results.jsonl", whole:sub(1, 300))
    local ok, msg = nb.sweep.read(dir)
    assert.is_nil(ok)
    assert.matches("results%.jsonl: line 1 is damaged", msg)
  end)
end)

describe("a job", function()
  it("whose model or text changed since it was planned fails with a sentence", function()
    local dir, moved, changed = fresh(), editor.copy(llama, fresh(), {}), root .. "/text.txt"
    files.write(changed, files.read(text))
    local arguments = ("%s --model %s --text %s --context 64 --windows 1 --out %s"):format(small, moved, changed, dir)
    assert.equal(0, sweep(arguments).status)
    os.execute(("rm %s/jobs/*/result.json"):format(dir))
    files.write(changed, files.read(text) .. "more")
    assert.equal(1, sweep("--out " .. dir).status)
    assert.matches("^the text .*/text%.txt has changed since the sweep was planned; name it again", result(dir, "small").message)
    os.execute(("rm -r %s"):format(moved))
    assert.equal(1, sweep("--retry-failed --out " .. dir).status)
    assert.matches("doesn't exist", result(dir, "small").message)
  end)

  it("that meets a full disk fails with a sentence and can be tried again", function()
    local dir = copy_of_done()
    os.remove(folder.path(dir, job(dir, "small"), "result.json"))
    assert.equal(1, sweep("--out " .. dir, { before = "ulimit -f 200; exec" }).status)
    assert.matches("File too large$", result(dir, "small").message)
    assert.is_nil(checkpoint.exists(folder.path(dir, job(dir, "small"), "checkpoint")))
    assert.equal(0, sweep("--retry-failed --out " .. dir).status)
    assert.equal("done", result(dir, "small").status)
  end)

  -- A sweep in the background; action(pid of the job's process) once the job runs.
  local function during(dir, recipe, action)
    os.execute(("%s sweep %s >%s.out 2>&1 & echo $! >%s.pid"):format(command.program,
      of(small, "--out " .. dir, 80), dir, dir))
    local deadline, pid = os.time() + 20
    repeat
      local there = checkpoint.exists(dir .. "/sweep.json") and job(dir, recipe)
      local claim = there and io.open(folder.path(dir, there, "claim"))
      pid = claim and claim:read "*a":match "process (%d+)"
      if claim then claim:close() end
      process.poll({}, 0.01)
    until pid or os.time() > deadline
    action(assert(pid), files.read(dir .. ".pid"):match "%d+")
  end

  local function wait_for(pid)
    local deadline = os.time() + 30
    while os.execute(("kill -0 %s 2>/dev/null"):format(pid)) == 0 and os.time() < deadline do process.poll({}, 0.05) end
  end

  it("that is killed fails, says so, and doesn't stop the others", function()
    local dir = fresh()
    during(dir, nil, function(pid, parent)
      os.execute("kill -9 " .. pid)
      wait_for(parent)
    end)
    local r = result(dir, nil)
    assert.equal("failed", r.status)
    assert.equal("killed by signal 9 (out of memory?)", r.message)
    assert.is_true(r.peak_bytes > 2 ^ 20)
    assert.equal("done", result(dir, "small").status)
  end)

  it("dies with the sweep that is killed, and the same command goes on", function()
    local dir = fresh()
    during(dir, "small", function(pid, parent)
      os.execute("kill -9 " .. parent)
      wait_for(pid)
    end)
    assert.is_nil(result(dir, "small"))
    local r = sweep("--out " .. dir)
    assert.equal(0, r.status, r.err)
    assert.same({ 1, 2 }, { result(dir, nil).attempts, result(dir, "small").attempts })
  end)

  it("stops at Ctrl-C with the sweep, and the same command goes on", function()
    local dir = fresh()
    during(dir, "small", function(pid, parent)
      os.execute("kill -INT " .. parent)
      wait_for(parent)
      assert.not_equal(0, os.execute(("kill -0 %s 2>/dev/null"):format(pid)))
    end)
    assert.matches("nibble: interrupted; the same command goes on where it stopped\n$", files.read(dir .. ".out"))
    assert.is_nil(result(dir, "small"))
    assert.matches("^nibble: interrupted", files.read(folder.path(dir, job(dir, "small"), "log")))
    assert.equal(0, sweep("--out " .. dir).status)
  end)

  it("that a signal asks to stop has no result, and runs when the command goes on", function()
    local dir = fresh()
    during(dir, nil, function(pid, parent)
      os.execute("kill -TERM " .. pid)
      wait_for(parent)
    end)
    assert.matches("the model itself · tiny%-llama · test%.txt: stopped by a signal\n", files.read(dir .. ".out"))
    assert.matches("nibble: 1 job without a result yet; nibble sweep %-%-out ", files.read(dir .. ".out"))
    assert.is_nil(result(dir, nil))
    assert.equal("done", result(dir, "small").status)
  end)
end)

describe("two sweeps at once", function()
  it("into one folder: the second says who is there", function()
    local dir = copy_of_done()
    local held = assert(folder.hold(dir, false))
    for _, arguments in ipairs { "--out ", "--shard 1/2 --out " } do
      refused(arguments .. dir, "is being swept already %(.-, process %d+, since %d+%-%d+%-%d+ [%d:]+%); wait for that one, or end it$")
    end
    held:release()
    held = assert(folder.hold(dir, true))
    refused("--out " .. dir, "is being swept already %(a shard on ")
    assert.equal(0, sweep("--shard 1/1 --out " .. dir).status)
    held:release()
    assert.equal(0, sweep("--out " .. dir).status)
  end)

  it("leave a claimed job to the one who has it", function()
    local dir = copy_of_done()
    local hash = job(dir, "small")
    os.remove(folder.path(dir, hash, "result.json"))
    local held = assert(require("nibble.sweep.worker").claim(dir, hash))
    local r = sweep("--shard 1/1 --out " .. dir)
    assert.equal(0, r.status, r.err)
    assert.matches("small · tiny%-llama · test%.txt: another process does it", r.err)
    assert.matches("1 job without a result yet", r.lines[#r.lines])
    assert.is_nil(result(dir, "small"))
    held:release()
  end)
end)
