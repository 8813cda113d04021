-- tools: other programs that the check starts, and the command that runs a stage's cases in another process.
local process = require "nibble.process"

local M = {}

--- find(name) -> the path of a program of the CUDA toolkit, in PATH or where the toolkit is put | nil
function M.find(name)
  local p = io.popen(("command -v %s || ls /usr/local/cuda/bin/%s /usr/local/cuda/*/%s 2>/dev/null | head -1"):format(name, name, name))
  local path = p:read "*l"
  p:close()
  return path
end

--- child(ctx, stage, …) -> {program, argument, …} that runs the stage's cases from a number on, which comes last
function M.child(ctx, stage, ...)
  -- A path, for those who start it in our place: "/proc/self/exe" would be they themselves.
  local program = process.program()
  if program == "/proc/self/exe" then program = ctx.build .. "/nibble" end
  local command = { program, ctx.root .. "/scripts/gpu-check.lua", "--stages", stage, "--child", stage, "--seed", tostring(ctx.seed) }
  local function add(...)
    for _, word in ipairs { ... } do command[#command + 1] = word end
  end
  if ctx.emulated then add "--emu" elseif ctx.small then add "--small" end
  if ctx.only then add("--only", ctx.only) end
  add(...)
  return command
end

return M
