-- Slurm without Slurm: the batch scripts' text and what they do when their task ends or a signal comes, submission by a
-- stand-in for sbatch, scancel, squeue and scontrol, and a sentence for whatever these refuse.
-- (spec/all/slurm_spec.lua runs them on a real one.)
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local files = require "spec.support.files"
local json = require "nibble.json"
local slurm = require "nibble.slurm"

local model = "spec/models/tiny-llama"
local root, made, recipe = nil, 0, nil

local function fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

local function executable(path, text)
  files.write(path, "#!/bin/sh\n" .. text .. "\n")
  os.execute("chmod +x '" .. path .. "'")
end

-- A folder to stand first in PATH whose programs note how they were called in `calls`.
local function stand_in(programs)
  local dir = fresh()
  assert(checkpoint.mkdir(dir))
  for name, text in pairs(programs) do executable(dir .. "/" .. name, ('echo "%s $*" >>%s/calls\n%s'):format(name, dir, text)) end
  return dir
end

local function calls(bin) return checkpoint.exists(bin .. "/calls") and files.read(bin .. "/calls") or "" end

-- Runs nibble with the stand-ins and nothing of a real Slurm.
local function run(arguments, bin, path)
  return command.run(arguments, { before = ("PATH=%s exec"):format(path or bin .. ":/usr/bin:/bin") })
end

local function refused(r, sentence)
  assert.equal(2, r.status, r.err)
  assert.same({ "nibble: " .. sentence }, r.lines)
end

-- sbatch that counts up ids, and the others as they are when nothing is known of a job.
local works = { sbatch = 'n=$(grep -c "^sbatch" "$(dirname "$0")/calls"); echo "$((40 + n))"', squeue = "", scancel = "" }
local function with(more) return setmetatable(more, { __index = works }) end
local function bin_of(more)
  local all = {}
  for _, name in ipairs { "sbatch", "squeue", "scancel" } do all[name] = with(more or {})[name] end
  return stand_in(all)
end

setup(function()
  root = files.temporary()
  recipe = root .. "/r.lua"
  files.write(recipe, 'return { name = "r", scheme = "W4A16", group = 32, output = { shard = "500KB" } }')
end)

teardown(function() os.execute("rm -rf " .. root) end)

describe("a batch script", function()
  local function texts(more)
    return slurm.scripts(setmetatable(more or {}, { __index = { dir = "d", name = "nibble-x", command = { "nibble", "x" }, shards = 9,
      tasks = { 1, 2, 3, 7, 9 } } }))
  end

  it("hands Slurm's options on, and names the tasks that have work", function()
    local array, merge = texts { partition = "gpu,cpu", time = "1-00:00:00", mem = "32G", account = "me", cpus = 4, array_limit = 2 }
    for _, line in ipairs { "--partition=gpu,cpu", "--time=1-00:00:00", "--mem=32G", "--account=me", "--cpus-per-task=4",
                            "--job-name=nibble-x", "--requeue" } do
      assert.matches("\n#SBATCH " .. line .. "\n", array, 1, true)
      assert.matches("\n#SBATCH " .. line .. "\n", merge, 1, true)
    end
    assert.matches("\n#SBATCH --array=1-3,7,9%2\n", array, 1, true)
    assert.matches("\n#SBATCH --signal=B:USR1@60\n", array, 1, true)
    assert.matches("'nibble' 'x' --shard \"$SLURM_ARRAY_TASK_ID/9\"", array, 1, true)
    assert.matches("'nibble' 'x' --merge", merge, 1, true)
    assert.is_nil(merge:match "array")
    assert.is_nil((texts()):match "%-%-partition")
  end)

  it("keeps words whole for the shell, and the log's path for sbatch", function()
    local array = texts { dir = 'a "b" 100%', command = { "nibble", "it's $HOME", "%d" } }
    assert.matches([['nibble' 'it'\''s $HOME' '%d' --shard]], array, 1, true)
    assert.matches([[#SBATCH --output="a \"b\" 100%%/%A_%a.log"]], array, 1, true)
    local dir = fresh()
    assert(checkpoint.mkdir(dir))
    executable(dir .. "/show", ('for w; do echo "$w"; done >%s/words'):format(dir))
    files.write(dir .. "/a.sh", (texts { command = { dir .. "/show", "it's", "two words", "$HOME `id` \\ \" *" } }))
    os.execute(("SLURM_ARRAY_TASK_ID=7 SLURM_CPUS_ON_NODE=3 sh %s/a.sh"):format(dir))
    assert.equal("it's\ntwo words\n$HOME `id` \\ \" *\n--shard\n7/9\n--threads\n3\n", files.read(dir .. "/words"))
  end)

  -- The array's script around a task that ends with status, or by the signals sent to the script -> its status, scontrol's calls.
  local function ended(task, o)
    local dir = stand_in { scontrol = o and o.state and ('echo " JobState=%s "'):format(o.state) or "" }
    executable(dir .. "/task", task)
    files.write(dir .. "/a.sh", (texts { command = { dir .. "/task" } }))
    local status = os.execute(("cd %s && PATH=%s:$PATH SLURM_ARRAY_JOB_ID=5 SLURM_ARRAY_TASK_ID=7 SLURM_RESTART_COUNT=%d "
      .. "sh -c 'sh a.sh >/dev/null & p=$!; %s wait $p'"):format(dir, dir, o and o.restarts or 0, o and o.signal and
      ("until [ -e begun ]; do sleep 0.01; done; kill -%s $p;"):format(o.signal) or ""))
    return math.floor(status / 256), calls(dir)
  end

  it("ends as its task does; work that failed and wrote down why has ended well", function()
    assert.same({ 0, "" }, { ended "exit 0" })
    assert.same({ 0, "" }, { ended "exit 1" })
    assert.same({ 2, "" }, { ended "exit 2" })
  end)

  it("passes signals on, and goes back into the queue but where it was cancelled or gets nowhere", function()
    local stops = "trap 'sleep 0.2; exit %d' %s; touch begun; for i in $(seq 200); do sleep 0.05; done; exit 9"
    local usr1, term = stops:format(138, "USR1"), stops:format(143, "TERM")
    assert.same({ 0, "scontrol requeue 5_7\n" }, { ended(usr1, { signal = "USR1" }) })
    assert.same({ 138, "" }, { ended(usr1, { signal = "USR1", restarts = 20 }) })
    assert.same({ 0, "scontrol -o show job 5_7\nscontrol requeue 5_7\n" }, { ended(term, { signal = "TERM", state = "RUNNING" }) })
    assert.same({ 143, "scontrol -o show job 5_7\n" }, { ended(term, { signal = "TERM", state = "CANCELLED" }) })
  end)
end)

describe("run --engine slurm", function()
  local function on_slurm(bin, more, dir) return run(("run %s %s --out %s --engine slurm %s"):format(recipe, model, dir, more or ""), bin) end

  it("submits an array and the merge after it, and says where to look", function()
    local bin, dir = bin_of(), fresh()
    local r = on_slurm(bin, "--partition p --set group=64", dir)
    assert.equal(0, r.status, r.err)
    assert.matches("^Slurm's job 41 %(%d tasks%), then 42 merges; squeue %-%-jobs=41,42 shows them, logs are in " .. dir .. "%.slurm;", r.out)
    assert.matches(("sbatch --parsable %s.slurm/array.sh\nsbatch --parsable --dependency=afterok:41 --kill-on-invalid-dep=yes %s.slurm/merge.sh")
      :format(dir, dir), calls(bin), 1, true)
    local script = files.read(dir .. ".slurm/array.sh")
    assert.matches(("'run' '%s' '%s' '--out' '%s' '--set' 'group=64' --shard"):format(recipe, model, dir), script, 1, true)
    assert.same({ "41", "42" }, { json.decode(files.read(dir .. ".slurm/jobs.json")).array, json.decode(files.read(dir .. ".slurm/jobs.json")).merge })
  end)

  it("doesn't submit twice what Slurm still has, nor what is complete", function()
    local bin, dir = bin_of { squeue = 'case "$*" in *41,42*) echo "41|1|RUNNING|None"; echo "42|N/A|PENDING|Dependency" ;; esac' }, fresh()
    assert.equal(0, on_slurm(bin, "", dir).status)
    refused(on_slurm(bin, "", dir), dir .. ".slurm: Slurm's jobs 41 and 42 are at work already; --wait waits for them, scancel 41 42 ends them")
    local whole = fresh()
    assert.equal(0, command.run(("run %s %s --out %s"):format(recipe, model, whole)).status)
    assert.matches("complete already", on_slurm(stand_in {}, "", whole).out)
  end)

  it("cancels the array where the merge cannot be submitted, and leaves nothing", function()
    local bin = bin_of { sbatch = 'case "$*" in *afterok*) '
      .. 'echo "sbatch: error: Batch job submission failed: Job dependency problem" >&2; exit 1 ;; esac; echo 77' }
    local dir = fresh()
    refused(on_slurm(bin, "", dir), "sbatch: Job dependency problem")
    assert.matches("scancel --quiet 77\n", calls(bin), 1, true)
    assert.is_nil(checkpoint.exists(dir))
    assert.is_nil(checkpoint.exists(dir .. ".slurm"))
  end)

  it("says in a sentence what is missing or refused", function()
    local dir = fresh()
    refused(run(("run %s %s --out %s --engine slurm"):format(recipe, model, dir), nil, fresh()),
      "sbatch was not found: --engine slurm needs Slurm's commands on PATH (Debian: slurm-client); "
      .. "--engine local and --shard i/n do without")
    refused(on_slurm(bin_of { sbatch = 'echo "sbatch: error: invalid partition specified: no" >&2; '
      .. 'echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2; exit 1' }, "--partition no", dir),
      "sbatch: invalid partition specified: no; Invalid partition name specified")
    refused(on_slurm(bin_of { sbatch = 'echo "sbatch: error: _establish_config_source: failed to fetch config" >&2; '
      .. 'echo "sbatch: fatal: Could not establish a configuration source" >&2; exit 1' }, "", dir),
      "sbatch knows no cluster: there is no slurm.conf here (SLURM_CONF names one); submit from a machine of the cluster, "
      .. "or do without: --engine local, --shard i/n")
    refused(on_slurm(bin_of { sbatch = "exit 124" }, "", dir), "sbatch had no answer within 60 s: slurmctld doesn't answer (scontrol ping)")
    refused(on_slurm(bin_of { sbatch = "echo what" }, "", dir), 'sbatch printed "what", expected a job\'s id')
    assert.is_nil(checkpoint.exists(dir))
  end)

  it("refuses options that don't go together or hold what no option of Slurm does", function()
    local dir = fresh()
    refused(run(("run %s %s --out %s --partition p"):format(recipe, model, dir), root), "--partition needs --engine slurm")
    refused(on_slurm(root, "--partition 'a b'", dir), '--partition expects what sbatch takes (letters, digits and _.,:+=@/-), found "a b"')
    refused(on_slurm(root, "--mem '$(id)'", dir), '--mem expects what sbatch takes (letters, digits and _.,:+=@/-), found "$(id)"')
    refused(on_slurm(root, "--shard 1/2", dir), "--engine slurm makes shards and merges them itself: without --shard and --merge")
    refused(run(("run %s %s --out %s --engine cloud"):format(recipe, model, dir), root), '--engine is local or slurm, found "cloud"')
  end)

  it("waits with --wait, and says which task ended badly", function()
    local bin, dir = bin_of { squeue = 'echo "41|1|COMPLETED|None"; echo "41|2|OUT_OF_MEMORY|OutOfMemory"; echo "42|N/A|CANCELLED|x"' }, fresh()
    refused(on_slurm(bin, "--wait", dir), ("task 2 of Slurm's job 41 ended as OUT_OF_MEMORY; its log: %s.slurm/41_2.log"):format(dir))
  end)
end)

describe("sweep --engine slurm", function()
  local function sweep(bin, dir, more)
    return run(("sweep any-w4a16 any-w8a16 --model %s --text spec/models/eval/test.txt --context 64 --windows 1 --out %s %s"):format(
      model, dir, more or ""), bin)
  end

  it("submits a task for every job that has no result", function()
    local bin, dir = bin_of(), fresh()
    local r = sweep(bin, dir, "--engine slurm --keep --cpus 2")
    assert.equal(0, r.status, r.err)
    assert.matches("^Slurm's job 41 %(3 tasks%), then 42 merges;", r.out)
    local script = files.read(dir .. "/slurm/array.sh")
    assert.matches(("'sweep' '--out' '%s' '--keep' --shard \"$SLURM_ARRAY_TASK_ID/3\""):format(dir), script, 1, true)
    assert.matches("#SBATCH --cpus-per-task=2\n", script, 1, true)
    assert.equal(0, command.run(("sweep --out %s --shard 2/3"):format(dir)).status)
    assert.matches("%(2 tasks%)", sweep(bin, dir, "--engine slurm").out)
    assert.matches("#SBATCH --array=1,3\n", files.read(dir .. "/slurm/array.sh"), 1, true)
    assert.equal(0, sweep(bin, dir).status)
    local before = calls(bin)
    assert.equal(0, sweep(bin, dir, "--engine slurm").status)
    assert.equal(before, calls(bin))
  end)

  it("is refused while somebody sweeps there alone", function()
    local bin, dir = bin_of(), fresh()
    assert.equal(0, sweep(bin, dir, "--engine slurm").status)
    local held = assert(require("nibble.sweep.folder").hold(dir))
    local r = sweep(bin, dir, "--engine slurm")
    held:release()
    assert.equal(2, r.status)
    assert.matches("is being swept already", r.err)
  end)
end)
