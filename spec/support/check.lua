-- What the specs of check share: broken checkpoints, and what was found as short lines.
local nb = require "nibble"
local editor = require "spec.support.editor"
local files = require "spec.support.files"

local M = {}

local root, made

function M.begin() root, made = files.temporary(), 0 end
function M.finish() os.execute("rm -rf " .. root) end

--- fresh() -> a path where nothing is yet.
function M.fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

--- broken(from, change) -> the folder of a changed copy (see editor.copy); without the reference beside it.
function M.broken(from, change)
  local dir = editor.copy(from, M.fresh(), change or {})
  os.remove(dir .. "/reference.safetensors")
  return dir
end

--- lines(result) -> array of "severity rule module" (" ×n" for n alike), in order.
function M.lines(result)
  local out = {}
  for i, f in ipairs(result.findings) do
    local where = f.module or f.tensor or f.file
    out[i] = f.severity .. " " .. f.rule .. (where and " " .. where or "") .. (f.count > 1 and " ×" .. f.count or "")
  end
  return out
end

--- found(path, options) -> the lines, the findings. Headers only and one rank, unless options say otherwise; tp = false: the
-- sizes that are looked at where nobody names them.
function M.found(path, options)
  local o = { values = false, tp = { 1 } }
  for k, v in pairs(options or {}) do o[k] = v or nil end
  if options and options.tp == false then o.tp = nil end
  local result = assert(nb.check.run(path, o))
  return M.lines(result), result.findings
end
require("nibble.ffi").interpreted(M.found)

return M
