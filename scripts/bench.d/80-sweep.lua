-- What a sweep adds to its jobs: each in a process of its own, claimed, recorded and merged, beside the same work by
-- `nibble run` and `nibble eval`, and beside the same work in this process.
local nb = require "nibble"
local C = require("nibble.ffi").C
local process = require "nibble.process"

local model, text = "spec/models/tiny-llama", "spec/models/eval/test.txt"
local groups = { 32, 64, 128 }

local function timed(f)
  local start = C.nb_now()
  f()
  return C.nb_now() - start
end

local function must(arguments)
  local r = assert(process.run { process.program(), unpack(arguments) })
  if r.status ~= 0 then error(r.err, 0) end
end

local function direct(dir, group)
  must { "run", "any-w4a16", model, "--set", "group=" .. group, "--out", dir }
  must { "eval", dir, "--against", model, "--text", text, "--context", "64", "--windows", "1" }
end

return {
  title = "a sweep's own cost (bar: 50 ms a job)",
  run = function()
    local root = os.tmpname()
    os.remove(root)
    assert(nb.checkpoint.mkdir(root))
    local sweep, commands, inside, again = math.huge, math.huge, 0, math.huge
    for turn = 1, 5 do
      local dir = ("%s/%d"):format(root, turn)
      local seconds = timed(function()
        must { "sweep", "any-w4a16", "--set", "group=32,64,128", "--model", model, "--text", text, "--context", "64",
          "--windows", "1", "--out", dir }
      end)
      if seconds < sweep then
        sweep, inside = seconds, 0
        for _, r in ipairs(assert(nb.sweep.read(dir))) do inside = inside + r.seconds end
      end
      again = math.min(again, timed(function() must { "sweep", "--out", dir } end))
      commands = math.min(commands, timed(function()
        for _, group in ipairs(groups) do direct(("%s/%d-%d"):format(root, turn, group), group) end
        must { "eval", model, "--text", text, "--context", "64", "--windows", "1" }
      end))
    end
    require("nibble.sweep.folder").remove_tree(root)
    local jobs = #groups + 1
    print(("  %d jobs: sweep %.0f ms, the same commands one by one %.0f ms (ratio %.2f)"):format(jobs, sweep * 1e3, commands * 1e3,
      sweep / commands))
    print(("  own cost %.0f ms a job: beside the work inside the jobs; with nothing to do %.0f ms in all"):format(
      (sweep - inside) / jobs * 1e3, again * 1e3))
  end,
}
