-- nibble on a real Slurm of one node (scripts/slurm-here): a sweep's job array with a job that fails and tasks that are
-- stopped in the middle and put back into the queue gives a local run's figures; a conversion's array gives its bytes;
-- what Slurm refuses is a sentence, and nothing half-submitted stays.
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local files = require "spec.support.files"
local sweeps = require "spec.support.sweeps"
local slurm = require "spec.support.slurm"

local llama, text = "spec/models/tiny-llama", "spec/models/eval/test.txt"
local root, made, cluster = nil, 0, nil
local recipes = { "any-w4a16", "any-w8a16", "any-nvfp4a16", "any-fp8-dynamic", "any-w4a16-g64", "recipes/qwen3-moe-w4a16.lua" }

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

-- A word out of `scontrol show job`.
local function field(job, name) return slurm.tell("scontrol --oneliner show job " .. job):match(name .. "=(%S+)") end

setup(function()
  root = files.temporary()
  cluster = slurm.start(4)
end)

teardown(function()
  if cluster then cluster:stop() end
  os.execute("rm -rf " .. root)
end)

describe("a sweep on Slurm", function()
  local function sweep(dir, more, windows)
    return command.run(("sweep %s --model %s --text %s --context 256 --windows %d --out %s %s"):format(table.concat(recipes, " "),
      llama, text, windows or 1, dir, more or ""))
  end

  it("gives a local run's figures, though a job fails and tasks are stopped and requeued", function()
    local alone, dir = fresh(), fresh()
    local here = sweep(alone, "", 30)
    assert.equal(1, here.status, here.err) -- one recipe is for another model
    local r = sweep(dir, "--engine slurm --partition here --time 30 --mem 200M --cpus 1 --json", 30)
    assert.equal(0, r.status, r.err)
    local jobs = nb.json.decode(r.out)
    assert.equal(7, jobs.tasks)
    local ids = {}
    for i, job in ipairs(assert(nb.sweep.open(dir)).jobs) do ids[i] = job.job end
    local stopped = {}
    local function another_running() -- one whose process has begun to print: it is in the middle of a job
      for task in slurm.tell("squeue --noheader --array --states=RUNNING --format=%K --jobs=" .. jobs.array):gmatch "%d+" do
        local fresh_one = not stopped[task] and checkpoint.exists(("%s/slurm/%s_%s.log"):format(dir, jobs.array, task))
        if fresh_one and checkpoint.exists(("%s/jobs/%s"):format(dir, ids[tonumber(task)])) then return task end
      end
    end
    -- scancel tries again for long where the job is on its way back into the queue already.
    for _, way in ipairs { "timeout 1 scancel --batch --signal=USR1 %s", "timeout 1 scancel --batch --signal=TERM %s",
                           "scontrol requeue %s" } do
      local task = slurm.wait("a running task", another_running)
      stopped[task] = way
      slurm.tell(way:format(jobs.array .. "_" .. task))
    end
    local w = command.run(("sweep --out %s --engine slurm --wait"):format(dir))
    assert.equal(1, w.status, w.err)
    assert.same({ here.lines[#here.lines] }, w.lines)
    for task, way in pairs(stopped) do
      assert.same({ way, "1" }, { way, field(jobs.array .. "_" .. task, "Restarts") })
    end
    for i = 1, 7 do assert.equal("COMPLETED", field(jobs.array .. "_" .. i, "JobState")) end
    assert.equal("COMPLETED", field(jobs.merge, "JobState"))
    assert.same(sweeps.figures(alone), sweeps.figures(dir))
    assert.equal("file", checkpoint.exists(dir .. "/report.html"))
    local failed = 0
    for _, result in ipairs(assert(nb.sweep.read(dir))) do failed = failed + (result.status == "failed" and 1 or 0) end
    assert.equal(1, failed)
    r = sweep(dir, "--engine slurm", 30)
    assert.equal(1, r.status) -- all is done: nothing is submitted
    assert.equal("", slurm.tell "squeue --noheader")
    assert.equal(jobs.array, nb.json.decode(files.read(dir .. "/slurm/jobs.json")).array)
  end)

  it("is refused in a sentence where Slurm refuses it, or works there already", function()
    local dir = fresh()
    local r = sweep(dir, "--engine slurm --partition nosuch")
    assert.same({ 2, { "nibble: sbatch: invalid partition specified: nosuch; Invalid partition name specified" } }, { r.status, r.lines })
    assert.is_nil(checkpoint.exists(dir .. "/slurm"))
    r = sweep(dir, "--engine slurm --time soon")
    assert.same({ 2, { "nibble: sbatch: Invalid --time specification" } }, { r.status, r.lines })
    slurm.tell "scontrol update PartitionName=here State=DOWN" -- tasks wait
    r = sweep(dir, "--engine slurm")
    assert.equal(0, r.status, r.err)
    local array, merge = r.out:match "^Slurm's job (%d+) %(7 tasks%), then (%d+) merges; squeue"
    assert.equal("afterok:" .. array .. "_*(unfulfilled)", field(merge, "Dependency"))
    r = sweep(dir, "--engine slurm")
    assert.same({ 2, { ("nibble: %s/slurm: Slurm's jobs %s and %s are at work already; --wait waits for them, scancel %s %s ends them")
      :format(dir, array, merge, array, merge) } }, { r.status, r.lines })
    slurm.tell(("scancel %s %s"):format(array, merge))
    slurm.tell "scontrol update PartitionName=here State=UP"
    slurm.wait("cancelled", cluster.idle)
  end)

  it("says which task ended badly, and merges what there is", function()
    local dir = fresh()
    slurm.tell "scontrol update PartitionName=here State=DOWN"
    local r = sweep(dir, "--engine slurm --json")
    local jobs = nb.json.decode(r.out)
    slurm.tell(("scancel %s_2"):format(jobs.array))
    slurm.tell "scontrol update PartitionName=here State=UP"
    r = sweep(dir, "--engine slurm --wait")
    assert.equal(1, r.status, r.err)
    assert.matches(("not all tasks of Slurm's job %s ended well, so %s doesn't merge; logs are in %s/slurm"):format(jobs.array, jobs.merge,
      dir), r.err, 1, true)
    assert.matches("1 job without a result yet", r.err)
    r = sweep(dir, "--engine slurm --wait") -- the same command does the one that is left
    assert.matches("1/1 Slurm", r.err)
    assert.equal(7, #assert(nb.sweep.read(dir)))
    slurm.wait("all over", cluster.idle)
  end)
end)

describe("a conversion on Slurm", function()
  local recipe

  setup(function()
    recipe = root .. "/parts.lua"
    files.write(recipe, [[return { name = "parts", scheme = "W4A16", group = 32, actorder = "group", output = { shard = "500KB" },
      calibrate = { text = "spec/models/eval/test.txt", samples = 8, length = 64 } }]])
  end)

  local function run(out, more) return command.run(("run %s %s --out %s %s"):format(recipe, llama, out, more or "")) end

  it("has the bytes of a local run, and judges as it does", function()
    local alone, dir = fresh(), fresh()
    assert.equal(0, run(alone).status)
    local r = run(dir, "--engine slurm --array-limit 3 --wait --set accept.sqnr_db=90")
    assert.equal(1, r.status, r.err)
    assert.matches("of signal to quantization noise, the recipe accepts 90", r.err)
    os.execute("rm -rf " .. dir .. "*")
    r = run(dir, "--engine slurm --array-limit 3 --wait")
    assert.equal(0, r.status, r.err)
    assert.matches("complete already", r.out)
    assert.equal(files.digest(alone), files.digest(dir))
    assert.equal("file", checkpoint.exists(dir .. ".slurm/array.sh"))
  end)

  it("goes on where a part was stopped", function()
    local alone, dir = fresh(), fresh()
    assert.equal(0, run(alone).status)
    local jobs = nb.json.decode(run(dir, "--engine slurm --json").out)
    slurm.wait("a task", function() return slurm.tell("squeue --noheader --states=RUNNING --jobs=" .. jobs.array) ~= "" end)
    slurm.tell("scontrol requeue " .. jobs.array)
    local r = run(dir, "--engine slurm --wait")
    assert.equal(0, r.status, r.err)
    assert.equal(files.digest(alone), files.digest(dir))
  end)

  it("leaves nothing where Slurm refuses it", function()
    local dir = fresh()
    local r = run(dir, "--engine slurm --partition nosuch")
    assert.same({ 2, { "nibble: sbatch: invalid partition specified: nosuch; Invalid partition name specified" } }, { r.status, r.lines })
    assert.is_nil(checkpoint.exists(dir))
    assert.is_nil(checkpoint.exists(dir .. ".slurm"))
  end)
end)
