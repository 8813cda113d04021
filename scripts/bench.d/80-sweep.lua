-- What a sweep adds to its jobs, each in a process of its own, claimed, recorded and merged, beside the same work by
-- `nibble run` and `nibble eval`: wall time, and processor time, which other programs on the machine disturb less.
local nb = require "nibble"
local C = require("nibble.ffi").C
local process = require "nibble.process"

local model, text = "spec/models/tiny-llama", "spec/models/eval/test.txt"
local groups = { 32, 64, 128 }

-- Runs the executable; wall and processor seconds are added to spent.
local function run(spent, ...)
  local start = C.nb_now()
  local r = assert(process.run { process.program(), ... })
  if r.status ~= 0 then error(r.err, 0) end
  spent.wall, spent.cpu = spent.wall + C.nb_now() - start, spent.cpu + r.cpu_seconds
end

local function least(best, spent)
  best.wall, best.cpu = math.min(best.wall, spent.wall), math.min(best.cpu, spent.cpu)
end

local function none() return { wall = 0, cpu = 0 } end
local function most() return { wall = math.huge, cpu = math.huge } end

return {
  title = "a sweep's own cost (bar: 50 ms a job)",
  run = function()
    local root = os.tmpname()
    os.remove(root)
    assert(nb.checkpoint.mkdir(root))
    local sweep, again, commands = most(), most(), most()
    local what = { "--text", text, "--context", "64", "--windows", "1" }
    for turn = 1, 7 do
      local dir, spent = ("%s/%d"):format(root, turn), none()
      run(spent, "sweep", "any-w4a16", "--set", "group=32,64,128", "--model", model, "--out", dir, unpack(what))
      least(sweep, spent)
      spent = none()
      run(spent, "sweep", "--out", dir)
      least(again, spent)
      spent = none()
      run(spent, "eval", model, unpack(what))
      for _, group in ipairs(groups) do
        local out = ("%s-%d"):format(dir, group)
        run(spent, "run", "any-w4a16", model, "--set", "group=" .. group, "--out", out)
        run(spent, "eval", out, "--against", model, unpack(what))
      end
      least(commands, spent)
    end
    require("nibble.sweep.folder").remove_tree(root)
    local jobs = #groups + 1
    for _, clock in ipairs { "wall", "cpu" } do
      print(("  %-4s  %d jobs %4.0f ms, the same by `run` and `eval` %4.0f ms: %+.0f ms a job; a sweep with nothing to do %.0f ms"):format(
        clock, jobs, sweep[clock] * 1e3, commands[clock] * 1e3, (sweep[clock] - commands[clock]) / jobs * 1e3, again[clock] * 1e3))
    end
  end,
}
