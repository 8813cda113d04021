-- Stopping and going on (DESIGN 1.4): kill -9 and Ctrl-C at any moment, between any two renames, and after a
-- power loss that left the journal ahead of the disk: the same command ends with the same bytes.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local editor = require "spec.support.editor"
local files = require "spec.support.files"

local model = "spec/models/tiny-llama"
local root, recipe, awq, made, whole

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function has(dir, name) return checkpoint.exists(dir .. "/" .. name) ~= nil end
local function finished(dir) return has(dir, "nibble.json") and not has(dir, ".nibble-journal") end

local function must_run(arguments)
  local r = command.run(arguments)
  assert.equal(0, r.status, r.err)
end

setup(function()
  root, made = files.temporary(), 0
  recipe = root .. "/stop.lua"
  files.write(recipe, 'return { name = "stop", scheme = "W4A16", group = 32, method = "mse", output = { shard = "500KB" } }')
  awq = root .. "/awq"
  local r = assert(nb.recipe { name = "awq", scheme = "W4A16_ASYM", group = 64, output = { format = "awq" } })
  assert(assert(nb.plan(r, assert(nb.open(model)))):run(awq))
end)

teardown(function() os.execute("rm -rf " .. root) end)

-- The command again and again, killed at random moments; every finished output, and the one that is let finish,
-- must be like that of a run left alone.
local function killed(arguments, times, longest)
  local alone, dir = fresh(), fresh()
  must_run(arguments .. alone)
  local expected = files.digest(alone)
  math.randomseed(times)
  for _ = 1, times do
    os.execute(("%s %s%s >/dev/null 2>&1 & p=$!; sleep %.3f; kill -9 $p 2>/dev/null; wait $p 2>/dev/null"):format(
      command.program, arguments, dir, math.random() * longest))
    if finished(dir) then
      assert.equal(expected, files.digest(dir))
      os.execute("rm -rf " .. dir)
    end
  end
  must_run(arguments .. dir)
  assert.equal(expected, files.digest(dir))
end

describe("kill -9", function()
  it("of run with several shards", function() killed(("run %s %s --out "):format(recipe, model), 12, 0.3) end)
  it("of convert", function() killed(("convert %s --to compressed-tensors --out "):format(awq), 12, 0.08) end)
end)

describe("a run that stopped", function()
  local expected, names, stopped

  local function plan()
    return assert(nb.plan(assert(nb.recipe(recipe)), assert(nb.open(model))))
  end

  setup(function()
    whole = fresh()
    assert(plan():run(whole))
    expected, names = files.digest(whole), assert(nb.open(whole)).files
    -- Stopped after the last module was proven, before the first rename.
    stopped = fresh()
    local p = plan()
    local ok, why = pcall(p.run, p, stopped, { ahead_bytes = 1, progress = function(t)
      if t.done == t.total then error("interrupted", 0) end
    end })
    assert.is_false(ok)
    assert.equal("interrupted", why)
  end)

  local function goes_on(change)
    local dir = fresh()
    os.execute(("cp -r %s %s"):format(stopped, dir))
    change(dir)
    local result = assert(plan():run(dir))
    assert.equal(expected, files.digest(dir))
    return result
  end

  it("has several shards, all partial, and a journal", function()
    assert.is_true(#names >= 4)
    for _, name in ipairs(names) do assert.is_true(has(stopped, name .. ".partial")) end
    assert.is_true(has(stopped, ".nibble-journal"))
    local result = goes_on(function() end)
    assert.is_true(result.resumed >= result.modules - 1)
  end)

  it("between any two renames", function()
    for renamed = 1, #names do
      goes_on(function(dir)
        for i = 1, renamed do assert(os.rename(dir .. "/" .. names[i] .. ".partial", dir .. "/" .. names[i])) end
      end)
    end
  end)

  it("between the renames, the index, the config and the certificate", function()
    for _, lost in ipairs { { "nibble.json" }, { "nibble.json", "config.json" },
                            { "nibble.json", "config.json", "model.safetensors.index.json" }, {} } do
      goes_on(function(dir)
        for _, name in ipairs(names) do assert(os.rename(dir .. "/" .. name .. ".partial", dir .. "/" .. name)) end
        for _, name in ipairs { "model.safetensors.index.json", "config.json", "nibble.json" } do
          files.write(dir .. "/" .. name, files.read(whole .. "/" .. name))
        end
        for _, name in ipairs(lost) do os.remove(dir .. "/" .. name) end
      end)
    end
  end)

  it("with a shard that is gone, cut, or whose blocks never reached the disk", function()
    goes_on(function(dir) os.remove(dir .. "/" .. names[2] .. ".partial") end)
    goes_on(function(dir)
      local path = dir .. "/" .. names[2] .. ".partial"
      files.write(path, files.read(path):sub(1, 1000))
    end)
    goes_on(function(dir)
      local path = dir .. "/" .. names[3] .. ".partial"
      local text = files.read(path)
      files.write(path, text:sub(1, #text - 5000) .. ("\0"):rep(5000))
    end)
    goes_on(function(dir)
      local path = dir .. "/" .. names[3] .. ".partial"
      files.write(path, ("\0"):rep(#files.read(path)))
    end)
  end)

  it("with a journal that is torn or damaged, and leftovers of copies", function()
    goes_on(function(dir)
      local path = dir .. "/.nibble-journal"
      local text = files.read(path)
      files.write(path, text:sub(1, #text - 7))
      files.write(dir .. "/tokenizer.json.partial", "half")
      files.write(dir .. "/config.json.partial", "half")
    end)
    goes_on(function(dir)
      local path = dir .. "/.nibble-journal"
      local text = files.read(path)
      local middle = math.floor(#text / 2)
      files.write(path, text:sub(1, middle) .. "X" .. text:sub(middle + 2))
    end)
    goes_on(function(dir) files.write(dir .. "/.nibble-journal", "") end)
  end)

  it("and then meets a full disk keeps what was proven", function()
    local result = goes_on(function(dir)
      local r = command.run(("run %s %s --out %s"):format(recipe, model, dir), { before = "ulimit -f 100; exec" })
      assert.equal(2, r.status)
      assert.equal(1, #r.lines, r.err)
      assert.matches("File too large; what was proven stays, and the same command goes on$", r.lines[1])
    end)
    assert.is_true(result.resumed >= result.modules - 1)
  end)

  it("of another plan or model is left alone", function()
    local before = files.digest(stopped)
    local other = assert(nb.plan(assert(nb.recipe { name = "other", scheme = "W8A16", group = 32 }), assert(nb.open(model))))
    local ok, msg = other:run(stopped)
    assert.is_nil(ok)
    assert.matches("holds an unfinished run of another plan", msg)
    assert.equal(before, files.digest(stopped))
  end)

  it("whose model's weights changed meanwhile does everything anew", function()
    local changed = editor.copy(model, fresh(), { weights = function(list)
      editor.poke(list["model.layers.0.mlp.up_proj.weight"], 0, "\0\64\0\64")
    end })
    local function of_changed() return assert(nb.plan(assert(nb.recipe(recipe)), assert(nb.open(changed)))) end
    local dir, alone = fresh(), fresh()
    os.execute(("cp -r %s %s"):format(stopped, dir))
    assert.equal(0, assert(of_changed():run(dir)).resumed)
    assert(of_changed():run(alone))
    assert.equal(files.digest(alone), files.digest(dir))
    assert.not_equal(expected, files.digest(dir))
  end)
end)

describe("Ctrl-C", function()
  -- timeout sends SIGINT and gives the program's own status.
  local function interrupted(arguments, seconds)
    return command.run(arguments, { before = ("exec timeout --preserve-status -s INT %.2f"):format(seconds) })
  end

  it("stops a run with status 130 and a word, and the same command goes on", function()
    local arguments = ("run %s %s --out "):format(recipe, model)
    local alone, dir, stops = fresh(), fresh(), 0
    must_run(arguments .. alone)
    for i = 1, 10 do
      local r = interrupted(arguments .. dir, 0.03 * 1.3 ^ i)
      if r.status == 130 and #r.lines == 0 then -- before the program's first step
        assert.is_nil(r.err:match "interrupted")
      elseif r.status == 130 then
        stops = stops + 1
        assert.same({ "nibble: interrupted; the same command goes on where it stopped" }, r.lines)
        assert.equal("", r.out)
      else
        assert.equal(0, r.status, r.err)
        if i < 10 then os.execute("rm -rf " .. dir) end
      end
    end
    assert.is_true(stops > 0)
    must_run(arguments .. dir)
    assert.equal(files.digest(alone), files.digest(dir))
  end)

  it("stops an evaluation with status 130", function()
    local r
    for _, seconds in ipairs { 0.3, 1, 3 } do -- a busy machine may take long to start
      r = interrupted(("eval %s --text spec/models/eval/test.txt --context 256"):format(model), seconds)
      if #r.lines > 0 then break end
    end
    assert.equal(130, r.status, r.err)
    assert.same({ "nibble: interrupted; the same command starts again" }, r.lines)
    assert.equal("", r.out)
  end)
end)
