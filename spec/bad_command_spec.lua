-- Command lines and output folders that are no good:
-- one sentence on stderr, exit status 2, nothing on stdout, no output folder left behind.
local checkpoint = require "nibble.checkpoint"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local hostile = require "spec.support.hostile"
local damaged, fresh, file, base = hostile.damaged, hostile.fresh, hostile.file, hostile.base
local refused, plain_model = hostile.refused, hostile.plain_model
local module = "model.layers.0.mlp.up_proj"

setup(hostile.begin)
teardown(hostile.finish)

-- ---- the command line ---------------------------------------------------------------------

describe("the command line", function()
  local cases = {
    { "inspekt x", 'unknown command "inspekt"; did you mean "inspect"%?' },
    { "--hlep", 'did you mean "%-%-help"%?' },
    { "inspect", "needs MODEL" }, { "run", "run needs" }, { "run a", "run needs" }, { "run a b", "needs %-%-out" },
    { "convert " .. plain_model, "needs %-%-" }, { "eval", "eval needs" }, { "plan x", "plan needs" },
    { "eval " .. plain_model, "%-%-text FILE or %-%-ids FILE" },
    { "eval " .. plain_model .. " --txt x", 'did you mean "%-%-text"%?' },
    { "eval " .. plain_model .. " --text", "needs a value" },
    { "eval " .. plain_model .. " --text a --ids b", "either" },
    { "eval " .. plain_model .. " --ids a --context 1", "at least 2" },
    { "eval " .. plain_model .. " --ids a --context 1e99", "%-%-context expects" },
    { "eval " .. plain_model .. " --ids a --context nan", "context" },
    { "eval " .. plain_model .. " --ids a --context 0x", "context" },
    { "inspect " .. plain_model .. " --json=yes", "takes no value" },
    { "inspect " .. plain_model .. " a b", "doesn't take" },
    { "inspect " .. plain_model .. " --threads 0", "at least 1" },
    { "inspect " .. plain_model .. " --threads 99999999999", "threads" },
    { "--threads x inspect", "threads" }, { "no/such/thing", "no such" }, { "missing.lua", "missing.lua" },
    { "-e", "needs a piece of Lua" }, { "-e 'return ('", "%-e" }, { "-e 'error \"no\"'", "no" },
    { "convert " .. plain_model .. " --to awqq --out /tmp/never", 'did you mean "awq"%?' },
    { "convert " .. plain_model .. " --to awq --out /tmp/never", "no quantized module" },
  }
  for _, case in ipairs(cases) do
    it(case[1], function() refused(case[1], case[2]) end)
  end
end)

-- ---- the output folder --------------------------------------------------------------------

describe("the output", function()
  local function run_to(model, out, pattern)
    refused(("run %s %s --out %s"):format(hostile.recipe, model, out), pattern)
  end

  it("that can't be written", function()
    run_to(plain_model, "/proc/nibble/out", "/proc")
    run_to(plain_model, file("a-file", "mine"), "is a file")
    run_to(plain_model, file("a-file", "mine") .. "/below", "a%-file")
    run_to(plain_model, "''", "%-%-out needs a value")
    assert.equal("mine", files.read(hostile.root .. "/a-file"))
  end)

  it("that is the model, lies inside it or holds it", function()
    local dir = damaged("plain", {})
    os.execute(("ln -s %s %s-link"):format(dir, dir))
    for _, out in ipairs { dir, dir .. "/", dir .. "/.", dir .. "/new", dir .. "/new/../new/x", dir .. "-link", dir .. "-link/new" } do
      run_to(dir, out, "the model's folder")
    end
    run_to(dir, hostile.root, "holds the model's folder")
    refused(("convert %s --to gptq --out %s"):format(base "awq", base "awq" .. "/sub"), "lies inside the model's folder")
    assert.same({ "config.json", "model.safetensors", "reference.safetensors" }, checkpoint.list(dir))
  end)

  it("that holds something else stays as it is", function()
    local out = fresh()
    assert(checkpoint.mkdir(out))
    files.write(out .. "/notes.txt", "mine")
    run_to(plain_model, out, "holds other files")
    assert.same({ "notes.txt" }, checkpoint.list(out))
    local other = base "awq"
    local before = files.read(other .. "/model.safetensors")
    run_to(plain_model, other, "finished output of another plan")
    assert.equal(before, files.read(other .. "/model.safetensors"))
  end)

  it("is not left behind half-written, nor folders that were made for it", function()
    local dir = damaged("plain", { weights = function(list) editor.poke(list[module .. ".weight"], 4 * 5, "\0\0\192\127") end })
    local top = fresh()
    local out = top .. "/deep/er"
    refused(("run %s %s --out %s"):format(hostile.recipe, dir, out), "up_proj", out)
    assert.is_nil(checkpoint.exists(top))
  end)
end)
