-- nibble on a real Slurm of one node (scripts/slurm-here).
local slurm = require "spec.support.slurm"
describe("x", function()
  it("starts and ends", function()
    local s = slurm.start()
    assert.matches("Submitted batch job %d+", slurm.tell "sbatch --output=/dev/null --wrap 'sleep 60'")
    slurm.wait("runs", function() return slurm.tell("squeue --noheader --format %t") == "R" end)
    s:stop()
  end)
end)
