-- history: what was typed, on the disk: one file in libedit's form, which sessions append to, each piece before it
-- runs, so that nothing that follows can lose it.
local M = {}

local HEADER = "_HiStOrY_V2_"

--- path() -> of the history file | nil where there is no home.
function M.path()
  local home = os.getenv "HOME"
  local state = os.getenv "XDG_STATE_HOME"
  if not state or state == "" then state = home and home .. "/.local/state" end
  return state and state .. "/nibble/history"
end

--- encode(text) -> one line of the file: what isn't a visible ASCII character in octal.
function M.encode(text)
  return (text:gsub("[^%w!\"#$%%&'()*+,./:;<=>?@%[%]^_`{|}~%-]", function(c) return ("\\%03o"):format(c:byte()) end))
end

local function lines_in(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local _, count = f:read("*a"):gsub("\n", "")
  f:close()
  return count
end

--- open(edit, limit) -> append(text): reads the file into libedit's history of at most so many pieces.
-- append puts one more on the disk; nothing happens where the file can't be written.
function M.open(edit, limit)
  local path = M.path()
  if not path then return function() end end
  local count = lines_in(path)
  if count then
    local read = edit.read_history(path) == 0
    if read and count > 2 * limit then edit.write_history(path) end
  end
  return function(text)
    local f = io.open(path, "ab")
    if not f and require("nibble.checkpoint").mkdir(path:match "^(.*)/") then f = io.open(path, "ab") end
    if not f then return end
    if f:seek "end" == 0 then f:write(HEADER, "\n") end
    f:write(M.encode(text), "\n")
    f:close()
  end
end

return M
