-- A run in parts: shards in any order, at once, twice or killed, then merged, give the bytes of a run in one piece;
-- every module is proven also where its tensors lie in two files, calibration is done once, and a folder that holds
-- something else is refused in a sentence. Also: how SIGTERM and SIGUSR1 end a command.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local files = require "spec.support.files"

local model = "spec/models/tiny-llama"
local root, made = nil, 0

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function recipe_of(text)
  local path = fresh() .. ".lua"
  files.write(path, "return " .. text)
  return path
end

local W4 = '{ name = "parts", scheme = "W4A16", group = 32, output = { shard = "%s" } }'
local function parts_of(dir)
  local parts = dir .. "/.nibble-parts/"
  return assert(checkpoint.list(parts .. assert(checkpoint.list(parts))[1]))
end
local function has(dir, name) return checkpoint.exists(dir .. "/" .. name) ~= nil end

-- run(recipe, dir, "--shard 1/3") -> the result; its status must be 0 but where one is given.
local function run(recipe, dir, more, status)
  local r = command.run(("run %s %s --out %s %s"):format(recipe, model, dir, more or ""))
  assert.equal(status or 0, r.status, r.err)
  return r
end

setup(function() root = files.temporary() end)
teardown(function() os.execute("rm -rf " .. root) end)

describe("shards and a merge give the bytes of one run", function()
  -- what: a plan; each of n shards runs with a plan of its own, as processes would have it.
  local function same(plan, n)
    local alone, dir = fresh(), fresh()
    assert(plan():run(alone))
    for i = n, 1, -1 do
      local r = assert(plan():run(dir, { shard = { i, n } }))
      assert.equal(0, r.held + r.before)
    end
    local r = assert(plan():run(dir, { merge = true }))
    assert.equal(r.modules, r.resumed) -- nothing was made again
    assert.equal(files.digest(alone), files.digest(dir))
    return alone
  end
  local function by(recipe)
    return function() return assert(nb.plan(assert(nb.recipe(recipe)), assert(nb.open(model)))) end
  end

  it("of a quantization, with the bound that it must meet", function()
    same(by { name = "x", scheme = "W4A16", group = 32, output = { shard = "500KB" }, accept = { sqnr_db = 10 } }, 3)
  end)

  it("where every tensor has a file of its own, and each module several", function()
    local plan = by { name = "x", scheme = "W4A16_ASYM", group = 64, output = { shard = 1 } }
    local alone = same(plan, 4)
    assert.is_true(#assert(nb.open(alone)).files > 2 * #plan().jobs)
  end)

  it("of a conversion that moves words whole", function()
    local awq = fresh()
    assert(by { name = "awq", scheme = "W4A16_ASYM", group = 64, output = { format = "awq" } }():run(awq))
    for _, shard in ipairs { "300KB", "50KB" } do
      same(function()
        return assert(require("nibble.plan").conversion(assert(nb.open(awq)), "compressed-tensors", { shard = shard }))
      end, 2)
    end
  end)

  it("of calibrated scales and activation order, read from one calibration", function()
    for _, o in ipairs { { "NVFP4", 16 }, { "W4A16", 32, "group" } } do
      same(by { name = "x", scheme = o[1], group = o[2], actorder = o[3], output = { shard = "500KB" },
                calibrate = { text = "spec/models/eval/test.txt", samples = 4, length = 64 } }, 2)
    end
  end)

  it("when one calibrates while another waits", function()
    local recipe = recipe_of [[{ name = "x", scheme = "W4A16", group = 32, actorder = "group", output = { shard = "500KB" },
      calibrate = { text = "spec/models/eval/test.txt", samples = 8, length = 64 } }]]
    local alone, dir = fresh(), fresh()
    run(recipe, alone)
    os.execute(("for i in 1 2 3; do %s run %s %s --out %s --shard $i/3 & done >/dev/null 2>&1; wait"):format(command.program,
      recipe, model, dir))
    run(recipe, dir, "--merge")
    assert.equal(files.digest(alone), files.digest(dir))
  end)
end)

describe("a run in parts", function()
  local recipe, expected

  setup(function()
    recipe = recipe_of(W4:format "500KB")
    local alone = fresh()
    run(recipe, alone)
    expected = files.digest(alone)
  end)

  it("says what a shard did, finds done parts done, and nothing for shards beyond the files", function()
    local dir = fresh()
    assert.matches("shard 2 of 5, of 6 files: 1 written and proven %(%d+ modules, .*%-%-merge ends the run",
      run(recipe, dir, "--shard 2/5").out)
    assert.matches("of 6 files: 1 done before;", run(recipe, dir, "--shard=2/5").out)
    assert.matches("of 6 files: none falls to this shard;", run(recipe, dir, "--shard 7/9").out)
    local doc = nb.json.decode(run(recipe, dir, "--shard 1/5 --json").out)
    assert.same({ 6, 2, 0, 0 }, { doc.files, doc.written, doc.before, doc.held })
    assert.is_false(has(dir, "config.json"))
    assert.is_nil((nb.open(dir)))
  end)

  it("writes each file once when shards overlap and run at the same time", function()
    local dir = fresh()
    os.execute(("for i in 1/1 1/1 1/2 2/2; do %s run %s %s --out %s --shard $i --json & done >%s.json 2>/dev/null; wait")
      :format(command.program, recipe, model, dir, dir))
    local written = 0
    for n in files.read(dir .. ".json"):gmatch '"written": (%d+)' do written = written + n end
    assert.equal(6, written)
    run(recipe, dir, "--merge")
    assert.equal(expected, files.digest(dir))
  end)

  it("goes on after kill -9 at random moments", function()
    local slow = recipe_of '{ name = "slow", scheme = "W4A16", group = 32, method = "mse", output = { shard = "500KB" } }'
    local alone, dir = fresh(), fresh()
    run(slow, alone)
    math.randomseed(11)
    for i = 1, 12 do
      os.execute(("%s run %s %s --out %s --shard %d/2 >/dev/null 2>&1 & p=$!; sleep %.3f; kill -9 $p 2>/dev/null; wait $p 2>/dev/null")
        :format(command.program, slow, model, dir, i % 2 + 1, math.random() * 0.15))
    end
    run(slow, dir, "--shard 1/2")
    run(slow, dir, "--shard 2/2")
    for _ = 1, 4 do -- the merge, too
      os.execute(("%s run %s %s --out %s --merge >/dev/null 2>&1 & p=$!; sleep %.3f; kill -9 $p 2>/dev/null; wait $p 2>/dev/null")
        :format(command.program, slow, model, dir, math.random() * 0.05))
    end
    run(slow, dir, "--merge")
    assert.equal(files.digest(alone), files.digest(dir))
  end)

  it("is merged only when all is done, and a run without --shard does what is left", function()
    local dir = fresh()
    run(recipe, dir, "--shard 1/2")
    local r = run(recipe, dir, "--merge", 2)
    assert.same({ ("nibble: %s: 3 of 6 files are not done yet, the first is model-00002-of-00006.safetensors: run --shard 2/6, "):format(dir)
      .. "or run without --shard to do the rest here" }, r.lines)
    assert.is_false(has(dir, ".nibble-journal"))
    assert.equal(6, #parts_of(dir))
    run(recipe, dir)
    assert.equal(expected, files.digest(dir))
    assert.matches("complete already", run(recipe, dir, "--shard 1/2").out)
    assert.matches("complete already", run(recipe, dir, "--merge").out)
    assert.equal(expected, files.digest(dir))
  end)

  it("merges what a merge left that ended before it could clear up", function()
    local dir, parts = fresh(), fresh()
    run(recipe, dir, "--shard 1/1")
    os.execute(("cp -r %s/.nibble-parts %s"):format(dir, parts))
    run(recipe, dir, "--merge")
    os.execute(("cp -r %s %s/.nibble-parts"):format(parts, dir)) -- before the parts went
    assert.matches("complete already", run(recipe, dir, "--merge").out)
    assert.equal(expected, files.digest(dir))
    os.execute(("cp -r %s %s/.nibble-parts && touch %s/.nibble-journal"):format(parts, dir, dir)) -- before the journal went
    assert.matches("39 modules, .*39 of them from before", run(recipe, dir, "--merge").out)
    assert.equal(expected, files.digest(dir))
  end)

  it("makes a module again whose part lost bytes after its proof", function()
    local dir = fresh()
    run(recipe, dir, "--shard 1/1")
    local path = dir .. "/model-00003-of-00006.safetensors.partial"
    local text = files.read(path)
    files.write(path, text:sub(1, -5000) .. ("\0"):rep(4999))
    run(recipe, dir, "--merge")
    assert.equal(expected, files.digest(dir))
  end)

  it("begins anew where the model has changed", function()
    local copy, dir = fresh(), fresh()
    os.execute(("cp -r %s %s"):format(model, copy))
    local function shard(more) return command.run(("run %s %s --out %s %s"):format(recipe, copy, dir, more)) end
    assert.equal(0, shard("--shard 1/1").status)
    os.execute(("touch -d '+1 hour' %s/*.safetensors"):format(copy))
    assert.matches("6 of 6 files are not done yet", shard("--merge").err)
    assert.matches("6 written and proven", shard("--shard 1/1").out)
    assert.equal(0, shard("--merge").status)
    assert.equal(expected, files.digest(dir))
  end)

  it("of one file is one part, and says how to get more", function()
    local one, dir = recipe_of '{ name = "one", scheme = "W4A16", group = 32 }', fresh()
    assert.matches("of 1 files: none falls to this shard; one file is one part: a smaller output.shard gives more;",
      run(one, dir, "--shard 2/2").out)
  end)
end)

describe("refused in a sentence:", function()
  local function refused(r, pattern)
    assert.equal(2, r.status)
    assert.equal(1, #r.lines, r.err)
    assert.matches(pattern, r.lines[1])
  end

  it("shards that are none", function()
    local recipe = recipe_of(W4:format "500KB")
    for _, text in ipairs { "0/3", "4/3", "3", "a/b", "1/3/4", "1.5/2", "-1/2" } do
      refused(run(recipe, fresh(), "--shard=" .. text, 2), "%-%-shard expects i/n with i from 1 to n, found")
    end
    refused(run(recipe, fresh(), "--shard 1/2 --merge", 2), "one of them at a time")
  end)

  it("a folder of another plan, of other files, of a run in one piece, of nothing to merge", function()
    local recipe, other = recipe_of(W4:format "500KB"), recipe_of(W4:format "400KB")
    local dir = fresh()
    run(recipe, dir, "--shard 1/3")
    local before = files.digest(dir)
    for _, more in ipairs { "--shard 1/3", "" } do
      refused(run(other, dir, more, 2), "holds an unfinished run of another plan")
    end
    assert.equal(before, files.digest(dir))
    local full = fresh()
    assert(checkpoint.mkdir(full))
    files.write(full .. "/notes.txt", "mine")
    refused(run(recipe, full, "--shard 1/3", 2), "exists and holds other files %(notes.txt%)")
    assert.same({ "notes.txt" }, checkpoint.list(full))
    local whole = fresh()
    local plan = assert(nb.plan(assert(nb.recipe(recipe)), assert(nb.open(model))))
    assert.is_false(pcall(plan.run, plan, whole, { ahead_bytes = 1, progress = function(t)
      if t.done == 9 then error("interrupted", 0) end
    end }))
    refused(run(recipe, whole, "--shard 1/3", 2), "holds an unfinished run in one piece: the same command without %-%-shard")
    local empty = fresh()
    refused(run(recipe, empty, "--merge", 2), "holds no parts to merge")
    assert.is_false(has(empty, "."))
  end)

  it("a part that cannot be made leaves nothing", function()
    local dir = fresh()
    local recipe = recipe_of [[{ name = "x", scheme = "NVFP4", output = { shard = "500KB" },
      calibrate = { text = "/nonexistent/text.txt" } }]]
    refused(run(recipe, dir, "--shard 1/3", 2), "/nonexistent/text.txt")
    assert.is_false(has(dir, "."))
  end)
end)

describe("signals of batch systems", function()
  local function signalled(name, arguments, seconds)
    return command.run(arguments, { before = ("exec timeout --preserve-status -s %s %.2f"):format(name, seconds) })
  end

  it("stop a command as Ctrl-C does, with a status of their own, and it goes on", function()
    local recipe = recipe_of '{ name = "slow", scheme = "W4A16", group = 32, method = "mse", output = { shard = "500KB" } }'
    local alone = fresh()
    run(recipe, alone)
    for name, status in pairs { TERM = 143, USR1 = 138 } do
      local dir, stops = fresh(), 0
      for i = 1, 12 do
        local r = signalled(name, ("run %s %s --out %s"):format(recipe, model, dir), 0.02 * 1.3 ^ i)
        if r.status == status and #r.lines > 0 then
          stops = stops + 1
          assert.same({ "nibble: interrupted; the same command goes on where it stopped" }, r.lines)
        elseif r.status == 0 then
          break
        end
      end
      assert.is_true(stops > 0)
      run(recipe, dir)
      assert.equal(files.digest(alone), files.digest(dir))
    end
  end)

  it("end Lua code that reads no flag, too, and leave a session's end to the system", function()
    local raise = 'local ffi = require "ffi" ffi.cdef "int raise(int);" ffi.C.raise(%d) jit.off() for i = 1, 1e8 do local x = i end'
    for signal, status in pairs { [15] = 143, [10] = 138 } do
      local r = command.run { "-e", raise:format(signal) }
      assert.same({ status, "nibble: interrupted\n" }, { r.status, r.err })
      r = command.run("", { stdin = raise:format(signal) .. "\n" })
      assert.equal("", r.err)
    end
  end)
end)
