-- Sweeps: recipes x models x texts as jobs that run once each, go on after anything, and give the same figures
-- however they are shared out.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local files = require "spec.support.files"
local sweeps = require "spec.support.sweeps"
local folder = require "nibble.sweep.folder"
local json = require "nibble.json"
local nffi = require "nibble.ffi"

local llama, text = "spec/models/tiny-llama", "spec/models/eval/test.txt"
local root, made, small, other, wrong, done

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function sweep(arguments, o) return command.run("sweep " .. arguments, o) end
local function of(recipes, more) return ("%s --model %s --text %s --context 64 --windows 1 %s"):format(recipes, llama, text, more or "") end


local function copy_of(dir)
  local to = fresh()
  os.execute(("cp -r %s %s"):format(dir, to))
  return to
end

local function only(results, recipe)
  for _, r in ipairs(results) do if r.recipe == recipe then return r end end
end

setup(function()
  root, made = files.temporary(), 0
  small, other, wrong = root .. "/small.lua", root .. "/other.lua", root .. "/wrong.lua"
  files.write(small, 'return { name = "small", scheme = "W4A16", group = 64 }')
  files.write(other, 'local r = recipe "small"\nr.name, r.scheme = "other", "W8A16"\nreturn r')
  files.write(wrong, 'return { name = "wrong", model = { model_type = "qwen3" }, scheme = "W4A16" }')
  done = fresh()
  local r = sweep(of(small .. " " .. other .. " " .. wrong, "--out " .. done))
  assert.equal(1, r.status, r.err)
end)

teardown(function() os.execute("rm -rf " .. root) end)

describe("a sweep", function()
  it("has a result of each recipe and of the model itself, with the figures of run and eval", function()
    local results = assert(nb.sweep.read(done))
    assert.equal(4, #results)
    local ck = assert(nb.open(llama))
    local out = fresh()
    local ran = assert(assert(nb.plan(assert(nb.recipe(small)), ck)):run(out, { measure = true }))
    local e = assert(nb.eval.run { model = assert(nb.open(out)), against = ck, text = text, context = 64, windows = 1 })
    local r = only(results, "small")
    assert.equal("done", r.status)
    for _, k in ipairs { "ppl", "nll", "tokens", "kl", "ppl_against", "top1_agreement" } do assert.equal(e[k], r.figures[k], k) end
    assert.equal(ran.bytes_out, r.figures.bytes)
    assert.equal(ran.worst.sqnr_db, r.figures.worst_sqnr_db)
    assert.equal(ran.worst.name, r.figures.worst)
    assert.equal(ran.modules, #r.modules)
    assert.equal(e.ppl_against, only(results, nil).figures.ppl)
    assert.is_nil(only(results, nil).figures.kl)
    assert.is_true(r.peak_bytes > 2 ^ 20 and r.peak_bytes < 2 ^ 30)
    assert.same({ 1, nffi.version }, { r.attempts, r.version })
    assert.is_nil(checkpoint.exists(folder.path(done, r.job, "checkpoint")))
  end)

  it("writes a job as one line of JSON, keys in their order", function()
    local lines = {}
    for line in files.read(done .. "/results.jsonl"):gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.equal(4, #lines)
    assert.matches('^{"job":"%x+","status":"done","recipe":null,"recipe_hash":null,"recipe_text":null,"set":{},"model":"tiny%-llama"', lines[1])
    local inherited = json.decode(lines[2])
    assert.equal("other", inherited.recipe)
    assert.matches('it inherits from small:\nreturn { name = "small"', inherited.recipe_text)
  end)

  it("shows a failed job's message and does the others", function()
    local r = only(assert(nb.sweep.read(done)), "wrong")
    assert.equal("failed", r.status)
    assert.matches("^recipe wrong is for model_type = qwen3; tiny%-llama has llama", r.message)
    local again = sweep("--out " .. done)
    assert.equal(1, again.status)
    assert.matches("failed: wrong · tiny%-llama · test.txt: recipe wrong is for", again.out)
    assert.same({ "nibble: 1 job failed; --retry-failed runs them again" }, again.lines)
  end)

  it("runs nothing twice, and what failed when asked to", function()
    local dir = copy_of(done)
    local before = files.read(dir .. "/results.jsonl")
    assert.equal(1, sweep(of(small .. " " .. other .. " " .. wrong, "--out " .. dir)).status)
    assert.equal(before, files.read(dir .. "/results.jsonl"))
    assert.equal(1, sweep("--retry-failed --out " .. dir).status)
    local r = assert(nb.sweep.read(dir))
    assert.same({ 2, 1 }, { only(r, "wrong").attempts, only(r, "small").attempts })
  end)

  it("knows a model and a recipe by their contents, wherever they lie", function()
    local dir, moved = copy_of(done), fresh()
    os.execute(("cp -r %s %s && cp %s %s/elsewhere.lua"):format(llama, moved, small, root))
    local r = sweep(("%s/elsewhere.lua --model %s --text %s --context 64 --windows 1 --out %s"):format(root, moved, text, dir))
    assert.equal(0, r.status, r.err)
    assert.equal(4, #assert(nb.sweep.read(dir)))
  end)
end)

describe("a recipe", function()
  it("of the same name as another is told apart by its folder", function()
    local dir, one, two = fresh(), fresh(), fresh()
    for path, scheme in pairs { [one] = "W4A16", [two] = "W8A16" } do
      assert(checkpoint.mkdir(path))
      files.write(path .. "/x.lua", ('return { scheme = "%s", group = 64 }'):format(scheme))
    end
    assert.equal(0, sweep(of(("%s/x.lua %s/x.lua"):format(one, two), "--out " .. dir)).status)
    local results = assert(nb.sweep.read(dir))
    assert.same({ one:match "[^/]+$" .. "/x.lua", two:match "[^/]+$" .. "/x.lua" }, { results[2].recipe, results[3].recipe })
  end)

  it("is kept with what it inherits from and what it calibrates with: its files may go", function()
    local dir, from = fresh(), fresh()
    assert(checkpoint.mkdir(from))
    files.write(from .. "/base.lua", 'return { scheme = "FP8", calibrate = { samples = 2, length = 256 } }')
    files.write(from .. "/child.lua", 'local r = recipe "base"\nr.name = "child"\nreturn r')
    os.execute(("cp spec/models/eval/calib.safetensors %s/ids.safetensors"):format(from))
    local command_line = of(from .. "/child.lua", ("--set calibrate.ids=%s/ids.safetensors --out %s"):format(from, dir))
    assert.equal(0, sweep(command_line).status)
    local before = sweeps.figures(dir)
    os.execute(("rm %s/base.lua %s/child.lua %s/jobs/*/result.json"):format(from, from, dir))
    assert.equal(0, sweep("--out " .. dir).status)
    assert.same(before, sweeps.figures(dir))
    os.execute(("rm %s/jobs/*/result.json; cp %s %s/ids.safetensors"):format(dir, "spec/models/eval/test_tokens.safetensors", from))
    assert.equal(1, sweep("--out " .. dir).status)
    assert.matches("ids%.safetensors has changed since the sweep was planned", only(assert(nb.sweep.read(dir)), "child").message)
  end)
end)

describe("shards", function()
  it("give the same results as one process, also when they overlap and run twice", function()
    local dir = fresh()
    local arguments = of(small .. " " .. other .. " " .. wrong, "--out " .. dir)
    os.execute(("for i in 1 2 3 1 2; do %s sweep %s --shard $i/3 >/dev/null 2>&1 & done; wait"):format(command.program, arguments))
    assert.same(sweeps.figures(done), sweeps.figures(dir))
    for _, r in ipairs(assert(nb.sweep.read(dir))) do assert.equal(1, r.attempts) end
    assert.equal(1, sweep("--merge --out " .. dir).status)
    local ppl = function(d) return (files.read(d .. "/results.jsonl"):gsub('"seconds":.-"processor"', "")) end
    assert.equal(ppl(done), ppl(dir))
  end)

  it("as jobs side by side", function()
    local dir = fresh()
    assert.equal(1, sweep(of(small .. " " .. other .. " " .. wrong, "--jobs 3 --out " .. dir)).status)
    assert.same(sweeps.figures(done), sweeps.figures(dir))
  end)
end)

describe("a text", function()
  it("may be token ids, as a stream or as windows", function()
    local dir = fresh()
    local windows, stream = "spec/models/eval/calib.safetensors", root .. "/stream.safetensors"
    local ids = assert(assert(nb.open(windows)):tensor "input_ids")
    local bytes = require("ffi").string(ids.data, 4096 * 4)
    files.write(stream, files.safetensors('{"ids":{"dtype":"I32","shape":[4096],"data_offsets":[0,16384]}}', bytes))
    local r = sweep(("--model %s --text %s --text %s --context 64 --windows 1 --out %s"):format(llama, windows, stream, dir))
    assert.equal(0, r.status, r.err)
    local found = assert(nb.sweep.read(dir))
    assert.same({ "calib.safetensors", 256, 255 }, { found[1].text, found[1].context, found[1].figures.tokens })
    assert.same({ "stream.safetensors", 64, 63 }, { found[2].text, found[2].context, found[2].figures.tokens })
  end)
end)

describe("--set", function()
  it("runs every combination, and records it", function()
    local dir = fresh()
    assert.equal(0, sweep(of(small, "--set group=32,64 --set symmetric=true,false --out " .. dir)).status)
    local sets = {}
    for _, r in ipairs(assert(nb.sweep.read(dir))) do
      sets[#sets + 1] = ("%s %s %.2f"):format(tostring(r.set.group), tostring(r.set.symmetric), r.figures.bits_per_weight)
    end
    assert.equal(5, #sets)
    assert.matches("^nil nil 16", sets[1])
    assert.matches("^32 false", sets[2])
    assert.matches("^64 true", sets[5])
  end)
end)
