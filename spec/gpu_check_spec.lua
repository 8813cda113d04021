-- scripts/gpu-check on the emulator: what its document holds, that failures of all kinds are told and cost one case, that a
-- run which is killed leaves a whole file; and the README's table, of made-up results.
local files = require "spec.support.files"
local json = require "nibble.json"

package.path = "scripts/gpu-check.d/?.lua;" .. package.path
local results = require "results"
local bars = require "bars"
local readme_table = require "readme_table"
local children = require "children"

-- Runs it: what it printed, its exit status.
local function check(arguments, environment)
  local log = os.tmpname()
  local status = os.execute(("%s scripts/gpu-check %s >%s 2>&1"):format(environment or "", arguments, log))
  local text = files.read(log)
  os.remove(log)
  return text, status >= 256 and math.floor(status / 256) or status
end

local function decoded(path) return assert(json.decode(files.read(path))) end

describe("gpu-check --emu", function()
  local dir = files.temporary()
  local path = dir .. "/found.json"
  teardown(function() files.remove(dir) end)

  local function run(stages, environment)
    local text, status = check(("--emu --stages %s --out %s"):format(stages, path), environment)
    return text, status, decoded(path)
  end

  it("finds nothing wrong, and writes down what was checked of which sources on what", function()
    local text, status, d = run "provenance,correctness,sanitizer,benchmarks,table"
    assert.equal(0, status, text)
    assert.same({ results.SCHEMA, "passed", true, true }, { d.schema, d.status, d.complete, d.emulated })
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT", d.began)
    assert.is_true(d.seed > 0 and d.seconds > 0)
    assert.matches("emulator", d.device.model)
    assert.same({}, results.changed(d, "."))
    for _, source in ipairs { "cuda/kernels/repack.cu", "cuda/ptx.cuh", "core/layout/marlin.c" } do
      assert.matches("^%x+$", d.sources[source])
    end
    local names = {}
    for i, stage in ipairs(d.stages) do
      names[i] = stage.name
      assert.equal(stage.name == "sanitizer" and "skipped" or "passed", stage.status)
      for _, row in ipairs(stage.rows) do
        assert.is_true(#row.name > 0)
        assert.equal("passed", row.status, row.why)
      end
    end
    assert.same({ "provenance", "correctness", "sanitizer", "benchmarks", "table" }, names)
    assert.is_true(#results.stage(d, "correctness").rows >= 12)
    for _, row in ipairs(results.stage(d, "benchmarks").rows) do
      assert.is_true(row.seconds_each > 0 and row.emulated and row.bars == nil)
    end
  end)

  it("names a result that is wrong in a sentence, and goes on", function()
    local text, status, d = run("correctness", "NB_GPU_CHECK_WRONG='gptq 8 bits, 96x192'")
    assert.equal(1, status)
    assert.matches("FAILED  repack gptq 8 bits, 96x192: in run 1 1 of 4608 elements of i32 %[6×768%] differ, the first is " ..
      "number 4608: 0x%x+, expected 0x%x+\n", text)
    assert.equal("failed", d.status)
    local failed = {}
    for _, row in ipairs(d.stages[1].rows) do
      if row.status == "failed" then failed[#failed + 1] = row.name end
    end
    assert.same({ "repack gptq 8 bits, 96x192" }, failed)
  end)

  it("goes on in a new process where the device is lost", function()
    local whole = #select(3, run "correctness").stages[1].rows
    local text, status, d = run("correctness", "NB_EMU_FAIL=cuLaunchKernel:5:719")
    assert.equal(1, status)
    assert.matches("FAILED  [^\n]*: cuda:0 is lost: launching kernel nb_%w+", text)
    local rows, passed, last = d.stages[1].rows, 0, nil
    for _, row in ipairs(rows) do
      passed = passed + (row.status == "passed" and 1 or 0)
      last = row.status
    end
    assert.equal(whole, #rows)
    assert.is_true(passed > 2 and last ~= nil)
  end)

  it("goes on with an earlier document of the same sources", function()
    local _, _, before = run "provenance"
    local text, status = check("--emu --stages table,models --only loss --continue " .. path)
    assert.equal(2, status)
    assert.matches("was another kind of check %(only%)", text)
    text, status = check("--emu --stages table --continue " .. path)
    assert.equal(0, status, text)
    local d = decoded(path)
    assert.same({ "provenance", "table" }, { d.stages[1].name, d.stages[2].name })
    assert.same({ before.seed, before.began }, { d.seed, d.began })
    assert.is_true(d.seconds > before.seconds)
    d.sources["cuda/ptx.cuh"] = ("0"):rep(32)
    files.write(path, json.encode(d))
    text, status = check("--emu --stages table --continue " .. path)
    assert.equal(2, status)
    assert.matches("cuda/ptx.cuh was changed since " .. path:gsub("%p", "%%%0") .. " was written", text)
  end)

  it("ends in ten minutes, whatever hangs: the times of its stages", function()
    local sum = 0
    for name in io.popen("ls scripts/gpu-check.d"):lines() do
      if name:match "^%d%d%-" then sum = sum + dofile("scripts/gpu-check.d/" .. name).seconds end
    end
    assert.is_true(sum <= 590, sum)
  end)

  it("runs a whole model, kept and streamed, and takes its folder away", function()
    local _, status, d = run "models"
    assert.equal(0, status)
    local names = {}
    for i, row in ipairs(d.stages[1].rows) do
      names[i] = row.name
      assert.equal("passed", row.status, row.why)
      assert.is_true(row.nll > 6 and row.nll < 7 and (row.nll_off or 0) < 1e-3)
    end
    assert.same({ "llama, small, W4A16: loss against the CPU's", "eval of llama, small, W4A16", "eval of llama, small, W4A16, streamed" }, names)
    assert.equal("marlin_cuda 14 linear", d.stages[1].rows[2].through)
    assert.is_falsy(require("nibble.checkpoint").exists((os.getenv "NIBBLE_BUILD" or "build") .. "/gpu-check-model"))
  end)

  it("leaves a whole file when it is killed, which is no result", function()
    files.write(dir .. "/nvidia-smi", "#!/bin/sh\nexec sleep 20\n")
    os.execute(("chmod +x %s/nvidia-smi"):format(dir))
    os.remove(path)
    os.execute(([[
      PATH=%s:$PATH scripts/gpu-check --emu --stages provenance --out %s >/dev/null 2>&1 & pid=$!
      for _ in $(seq 200); do [ -s %s ] && break; sleep 0.05; done
      kill -9 $pid; wait $pid 2>/dev/null]]):format(dir, path, path))
    local d = decoded(path)
    assert.same({ "running", false }, { d.status, d.complete })
    d.emulated, d.small, d.device.emulated = false, false, false
    assert.equal("it was cut off", results.unfit(d))
  end)

  it("refuses what it doesn't know, and a machine without a GPU", function()
    local text, status = check "--emu --stages provenance,nonsense"
    assert.equal(2, status)
    assert.matches("there is no stage nonsense; there are provenance, ", text)
    text, status = check "--emu --stages ''"
    assert.equal(2, status)
    assert.matches("names none; there are provenance, ", text)
    text, status = check "--what"
    assert.equal(2, status)
    assert.matches("unknown option %-%-what", text)
    text, status = check("", "NB_CUDA_DRIVER=/nowhere.so")
    assert.equal(2, status)
    assert.matches("gpu%-check: .*%-%-emu runs the same on the emulator", text)
    text, status = check("", ("NB_CUDA_DRIVER=%s/libcuemu.so"):format(os.getenv "NIBBLE_BUILD" or "build"))
    assert.equal(2, status)
    assert.matches("names the emulator", text)
  end)
end)

-- The emulator passes for a GPU; other programs are scripts.
describe("gpu-check where there is a GPU", function()
  local dir
  setup(function()
    dir = files.temporary()
    local function program(name, text)
      files.write(dir .. "/" .. name, "#!/bin/bash\n" .. text)
      os.execute(("chmod +x %s/%s"):format(dir, name))
    end
    program("nvidia-smi", "echo 'NVIDIA Made-Up, 580.1, 96.0, P0, 1980 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700 W, 40, Enabled, Disabled'")
    program("python3", [[
      echo '{"cases": 1}'; echo '{"begin": 1, "name": "torch bf16 64x128 m=1"}'
      echo '{"row": {"name": "torch bf16 64x128 m=1", "baseline": "torch bf16", "seconds_each": 0.5, "seconds": 1}}']])
    -- Runs what it is given; racecheck finds something.
    program("compute-sanitizer", [[
      tool=$2 log=$6; shift 6; "$@"; status=$?
      echo "========= COMPUTE-SANITIZER" >$log
      [ $tool = racecheck ] && { echo "========= Error: Race reported" >>$log; echo "=========     between a and b" >>$log
        echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)" >>$log; exit 9; }
      echo "========= ERROR SUMMARY: 0 errors" >>$log; exit $status]])
    program("ncu", [[
      echo '==PROF== Connected'
      echo '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
      echo '"0","nb_repack_gptq","smsp__inst_executed.sum","inst","1,234,567"'
      echo '"0","nb_repack_gptq","dram__bytes_read.sum","Mbyte","58.7"']])
  end)
  teardown(function() files.remove(dir) end)

  it("also measures others' kernels, and starts NVIDIA's tools", function()
    local path = dir .. "/found.json"
    local text, status = check("--small --only 'repack gptq 4 bits, ' --stages provenance,sanitizer,benchmarks,profile --out " .. path,
      ("NB_GPU_CHECK_PRETEND=1 NB_CUDA_DRIVER=%s/libcuemu.so PATH=%s:$PATH"):format(os.getenv "NIBBLE_BUILD" or "build", dir))
    local d = decoded(path)
    assert.equal(1, status, text)
    assert.matches("FAILED  racecheck: 1 errors, the first: Error: Race reported; between a and b", text)
    assert.equal("it comes from the emulator", results.unfit(d))
    d.device.emulated = false
    assert.equal("its shapes are small", results.unfit(d))
    local by_name = {}
    for _, stage in ipairs(d.stages) do
      for _, row in ipairs(stage.rows) do by_name[row.name] = row end
    end
    assert.equal("1980 MHz", by_name.machine.nvidia_smi["clocks.sm"])
    assert.same({ "passed", "passed", "passed" }, { by_name.memcheck.status, by_name.synccheck.status, by_name.initcheck.status })
    assert.equal(2, by_name.memcheck.cases)
    assert.equal("torch bf16", by_name["torch bf16 64x128 m=1"].baseline)
    local repack = by_name["repack gptq 4 bits, 64x128"]
    assert.same({ 2, "copy" }, { #repack.passes, repack.bars[1].of })
    local kernel = by_name["repack gptq 4 bits, 8192x28672"].kernels[1]
    assert.same({ 1234567, 58.7, "Mbyte" }, { kernel.instructions, kernel.dram_read, kernel.units.dram_read })
  end)
end)

describe("gpu-check's children", function()
  -- Rows by name of a shell script that is given the number of the first case as $1.
  local function rows_of(script, limits)
    local rows = {}
    local cut = children.run { command = { "sh", "-c", script, "sh" }, seconds = limits.seconds or 20,
      case_seconds = limits.case_seconds, add = function(row) rows[#rows + 1] = row end }
    return rows, cut
  end
  local EACH = [[
    echo '{"cases": 3}'
    for i in 1 2 3; do
      [ $i -lt $1 ] && continue
      echo "{\"begin\": $i, \"name\": \"case $i\"}"
      [ $i -eq 2 ] && %s
      echo "{\"row\": {\"name\": \"case $i\", \"status\": \"passed\"}}"
    done]]

  it("that crash or say nothing cost one case", function()
    for script, why in pairs { ["kill -SEGV $$"] = "^its process was killed by signal 11", ["exit 7"] = "^its process ended with status 7" } do
      local rows = rows_of(EACH:format(script), {})
      assert.same({ "passed", "failed", "passed" }, { rows[1].status, rows[2].status, rows[3].status })
      assert.equal("case 2", rows[2].name)
      assert.matches(why, rows[2].why)
    end
  end)

  it("that hang are ended, by the case's time and by the stage's", function()
    local rows = rows_of(EACH:format "sleep 60", { case_seconds = 0.3 })
    assert.same({ "passed", "failed", "passed" }, { rows[1].status, rows[2].status, rows[3].status })
    assert.matches("^it took longer than", rows[2].why)
    local some, cut = rows_of(EACH:format "sleep 60", { seconds = 0.5 })
    assert.equal(1, #some)
    assert.matches("was over after 1 of 3 cases", cut)
  end)

  it("that say how long a case may take are given that", function()
    local rows = rows_of([[
      echo '{"cases": 2}'
      [ $1 -gt 1 ] || { echo '{"begin": 1, "name": "long", "seconds": 20}'; sleep 1; echo '{"row": {"name": "long", "status": "passed"}}'; }
      echo '{"begin": 2, "name": "short"}'; sleep 20]], { case_seconds = 0.3 })
    assert.same({ "passed", "failed" }, { rows[1].status, rows[2].status })
  end)

  it("that do not begin are one failure", function()
    local rows = rows_of("echo nonsense; echo missing library >&2; exit 1", {})
    assert.same({ 1, "failed" }, { #rows, rows[1].status })
    assert.matches("status 1: missing library", rows[1].why)
  end)
end)

describe("a benchmark's bars", function()
  local function product(m, seconds)
    return { name = "p", status = "passed", piece = "product", k = 8192, n = 28672, m = m, bytes = 121e6, flops = 2 * m * 8192 * 28672,
             seconds_each = seconds }
  end

  it("are judged by the copy rate and the others of the same run", function()
    local other = { name = "t", status = "passed", baseline = "torch bf16", k = 8192, n = 28672, m = 64, seconds_each = 90e-6 }
    local rows = { product(1, 33e-6), product(16, 40e-6), product(64, 70e-6), product(4096, 3e-3), other }
    bars.judge(rows, 4.3e12)
    local function met(row)
      local out = {}
      for _, bar in ipairs(row.bars) do out[#out + 1] = bar.of .. " " .. tostring(bar.met or bar.why) end
      return table.concat(out, ", ")
    end
    assert.equal("copy must, marlin marlin was not measured here", met(rows[1]))
    assert.equal("copy no, marlin marlin was not measured here", met(rows[2]))
    assert.equal("torch bf16 must, marlin marlin was not measured here", met(rows[3]))
    assert.equal("torch bf16 torch bf16 was not measured here, TFLOP/s ambitious", met(rows[4]))
    assert.is_true(math.abs(rows[1].floor_seconds - 28.1e-6) < 1e-7)
    assert.is_nil(other.bars)
  end)

  it("do not judge what the emulator took", function()
    local row = product(1, 1)
    row.emulated = true
    bars.judge({ row }, 1)
    assert.is_nil(row.bars)
  end)
end)

describe("the README's GPU figures", function()
  local dir
  before_each(function() dir = files.temporary() end)
  after_each(function() files.remove(dir) end)

  local function document(changes)
    local rows = { { name = "copy", status = "passed", rate = 4.2e12, seconds_each = 1e-3, spread = 0.012 },
      { name = "repack x", status = "passed", piece = "repack", bytes = 234e6, seconds_each = 70e-6, spread = 0.02 },
      { name = "repack y", status = "failed", why = "a reason" } }
    bars.judge(rows, 4.2e12)
    local d = { schema = results.SCHEMA, status = "passed", complete = true, emulated = false, revision = "0123456789ab", dirty = false,
      began = "2030-01-02T03:04:05Z", seed = 1, device = { model = "NVIDIA Made-Up", driver = "13.0" }, sources = results.sources ".",
      stages = { { name = "correctness", status = "passed", rows = json.array {} }, { name = "benchmarks", status = "passed", rows = rows } } }
    for key, value in pairs(changes or {}) do d[key] = value end
    return d
  end
  local function write(name, d) assert(results.write(dir .. "/" .. name, d)) end
  local function text() return readme_table.text(dir, ".") end

  it("say so where nothing was measured", function()
    assert.equal("Nothing was measured on a GPU yet: `cuda/results` holds no results of `scripts/gpu-check`.\n", text())
    assert.equal(text(), readme_table.text(dir .. "/none", "."))
  end)

  it("are those of the newest results, whatever the files' names", function()
    write("z.json", document { began = "2029-01-01T00:00:00Z", device = { model = "Older", driver = "1" } })
    write("a.json", document())
    local found = text()
    assert.matches("on one NVIDIA Made%-Up %(driver for CUDA 13.0%), 2030%-01%-02, revision 0123456789ab: `cuda/results/a.json`", found)
    assert.matches("at most 2.0 %% apart; copy: 4.20 TB/s", found)
    assert.is_truthy(found:find("| repack x | 70.0 µs | 80 % of copy | 75 % of copy: reached |", 1, true), found)
    assert.is_truthy(found:find("| repack y |  |  | **failed**: a reason |", 1, true), found)
    assert.is_nil(found:find "Stale")
    assert.is_nil(found:find "Older")
    assert.equal(found, (check("--table --results " .. dir)))
    local d = document { began = "2031-01-01T00:00:00Z" }
    local models = { { name = "eval", status = "passed", piece = "models", bytes = 0, seconds_each = 2, rate = 23456 } }
    bars.judge(models)
    table.insert(d.stages, { name = "models", status = "passed", rows = models })
    write("b.json", d)
    assert.is_truthy(text():find("| eval | 2000.0 ms | 23456 tokens/s | 20000 tokens/s: reached |", 1, true), text())
  end)

  it("are marked where sources changed since", function()
    local d = document()
    d.sources["cuda/ptx.cuh"] = ("0"):rep(32)
    d.sources["cuda/gone.cu"] = ("0"):rep(32)
    write("a.json", d)
    assert.matches("^%*%*Stale%*%*: since then these changed: cuda/gone.cu, cuda/ptx.cuh%. ", text())
  end)

  it("are never of the emulator, of a run that was cut off or found a wrong result, or of another file", function()
    write("a.json", document { emulated = true })
    write("b.json", document { complete = false })
    write("c.json", document { stages = { { name = "correctness", status = "failed", rows = {} } } })
    write("d.json", document { schema = 99 })
    files.write(dir .. "/e.json", "{ not json")
    files.write(dir .. "/f.json", "[1]")
    assert.matches("^Nothing was measured", text())
    local _, _, notes = results.newest(dir)
    assert.equal(6, #notes)
    assert.matches("it comes from the emulator", notes[1])
    assert.matches("its correctness stage failed", notes[3])
  end)
end)
