-- What names a sweep's job: everything that its result hangs on, and nothing else.
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local identity = require "nibble.sweep.identity"
local jobs = require "nibble.sweep.jobs"

local root, recipe, text

local function plan(o)
  local all = { recipes = { recipe }, models = { "spec/models/tiny-llama" }, texts = { text }, context = 64, cache = {} }
  for k, v in pairs(o or {}) do all[k] = v end
  return assert(jobs.expand(all))
end

local function hashes(o)
  local list = plan(o).jobs
  assert.equal(2, #list)
  return list[1].job, list[2].job
end

setup(function()
  root = files.temporary()
  recipe, text = root .. "/recipe.lua", root .. "/text.txt"
  files.write(recipe, 'local r = recipe "base"\nreturn r')
  files.write(root .. "/base.lua", 'return { scheme = "W4A16", group = 64 }')
  files.write(text, "once upon a time")
end)

teardown(function() os.execute("rm -rf " .. root) end)

describe("a job's hash", function()
  it("is the same for the same contents elsewhere", function()
    local reference, job = hashes()
    os.execute(("mkdir %s/b && cp -r spec/models/tiny-llama %s/b/model && cp %s/*.* %s/b"):format(root, root, root, root))
    local b = root .. "/b"
    local again, job_again = hashes { recipes = { b .. "/recipe.lua" }, models = { b .. "/model" }, texts = { b .. "/text.txt" } }
    assert.same({ reference, job }, { again, job_again })
  end)

  it("changes with the text, context, windows and activations, of both; with the recipe and its settings, of one", function()
    local reference, job = hashes()
    files.write(root .. "/other.txt", "once upon a tame")
    for _, o in ipairs { { texts = { root .. "/other.txt" } }, { context = 65 }, { windows = 1 }, { activations = "none" } } do
      local r, j = hashes(o)
      assert.not_equal(reference, r)
      assert.not_equal(job, j)
    end
    local r, j = hashes { set = { "group=32" } }
    assert.equal(reference, r)
    assert.not_equal(job, j)
    files.write(root .. "/base.lua", 'return { scheme = "W8A16", group = 64 }')
    r, j = hashes()
    assert.equal(reference, r)
    assert.not_equal(job, j)
    files.write(root .. "/base.lua", 'return { scheme = "W4A16", group = 64 }')
    r, j = hashes()
    assert.same({ reference, job }, { r, j })
  end)

  it("changes with one bit of the weights, a name, the config and the tokenizer", function()
    local reference = hashes()
    local seen = { [reference] = true }
    for i, change in ipairs {
      { weights = function(list) editor.poke(list["model.layers.0.mlp.up_proj.weight"], 0, "\1") end },
      { config = function(c) c.rms_norm_eps = 2e-5 end },
    } do
      local r = hashes { models = { editor.copy("spec/models/tiny-llama", ("%s/changed-%d"):format(root, i), change) } }
      assert.is_nil(seen[r])
      seen[r] = true
    end
    local moved = editor.copy("spec/models/tiny-llama", root .. "/tokens", {})
    files.write(moved .. "/tokenizer.json", files.read(moved .. "/tokenizer.json") .. " ")
    assert.is_nil(seen[hashes { models = { moved } }])
  end)

  it("changes with the text that the recipe calibrates with", function()
    local path = root .. "/calibrate.txt"
    local function hash(contents)
      files.write(path, contents)
      return assert(identity.recipe(recipe, { ["calibrate.text"] = path })).hash
    end
    assert.equal(hash "a", hash "a")
    assert.not_equal(hash "a", hash "b")
  end)
end)

describe("weights", function()
  it("are read once for a path and time of change", function()
    local cache = {}
    plan { cache = cache }
    local key = next(cache) == "changed" and next(cache, "changed") or next(cache)
    assert.matches("/spec/models/tiny%-llama; model%.safetensors ", key)
    cache[key], cache.changed = "as the cache says", nil
    local said = plan { cache = cache }.jobs[1].model_hash
    assert.is_nil(cache.changed)
    assert.not_equal(plan().jobs[1].model_hash, said)
  end)
end)

describe("settings", function()
  it("are every combination, typed, the first the slowest", function()
    assert.same({ { group = 32, symmetric = true }, { group = 32, symmetric = false }, { group = 64, symmetric = true },
      { group = 64, symmetric = false } }, jobs.grid { "group=32,64", "symmetric=true,false" })
    assert.same({ { group = 32 }, { group = 64 } }, jobs.grid { "group=32", "group=64" })
    assert.same({ { ["calibrate.text"] = "a,b" }, { ["calibrate.text"] = "c" } }, jobs.grid { "calibrate.text=a\\,b,c" })
    assert.same({ {} }, jobs.grid {})
  end)

  it("that come to the same are one job, said", function()
    local p = plan { set = { "group=64,64" } }
    assert.equal(2, #p.jobs)
    assert.same({ ("recipe %s is named twice: counted once"):format(recipe) }, p.notes)
  end)
end)
