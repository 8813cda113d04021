-- bench: the kernels' speeds here, as a share of this machine's own limits. The
-- benchmarks lie in the source tree, beside the build they measure.
local M = {
  summary = "the kernels' speeds, as a share of this machine's limits (in a source tree)",
}

function M.run()
  local f = io.open("scripts/bench", "r")
  if not f then
    error("the benchmarks are part of nibble's source tree; run `nibble bench` or `make bench` there", 0)
  end
  f:close()
  local rc = os.execute "scripts/bench build"
  return rc == 0 and 0 or rc == true and 0 or 1
end

return M
