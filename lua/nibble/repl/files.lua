-- files: paths that a beginning may become.
local checkpoint = require "nibble.checkpoint"

local M = {}

--- complete(partial [, wanted]) -> array of paths; folders end in "/". wanted: pattern of the files' names.
-- "~/" is the home. Hidden names only when asked for by their dot.
function M.complete(partial, wanted)
  local dir, beginning = partial:match "^(.*/)([^/]*)$"
  dir, beginning = dir or "", beginning or partial
  local place = dir:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
  local out = {}
  for _, name in ipairs(checkpoint.list(place == "" and "." or place) or {}) do
    local hidden = name:sub(1, 1) == "." and beginning:sub(1, 1) ~= "."
    local fits = name:sub(-1) == "/" or not wanted or name:find(wanted)
    if name:sub(1, #beginning) == beginning and not hidden and fits then out[#out + 1] = dir .. name end
  end
  return out
end

return M
