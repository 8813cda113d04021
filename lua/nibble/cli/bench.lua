-- bench: the kernels' speeds here, as a share of this machine's own limits. The
-- benchmarks lie in the source tree, beside the build they measure.
local M = {
  summary = "the kernels' speeds, as a share of this machine's limits (in a source tree)",
  args = { { "PATTERN", optional = true } },
  notes = "PATTERN: only what has it in its name: a section of the processor's, a case of the device's.",
  options = {
    { "--device", "NAME", values = { "cpu", "cuda" }, doc = "cpu (default), or cuda: the first GPU (CUDA_VISIBLE_DEVICES picks)" },
  },
}

local function quoted(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

function M.run(values)
  local f = io.open("scripts/bench", "r")
  if not f then
    error("the benchmarks are part of nibble's source tree; run `nibble bench` or `make bench` there", 0)
  end
  f:close()
  local device = quoted((os.getenv "NIBBLE_BUILD" or "build") .. "/nibble") .. " scripts/bench-device.lua"
  local rc = os.execute(("%s build %s"):format(values.device == "cuda" and device or "scripts/bench", quoted(values.pattern or "")))
  return rc == 0 and 0 or rc == true and 0 or 1
end

return M
