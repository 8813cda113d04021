-- edit: pieces, functions and files in the person's editor; what was written runs.
local shell = require "nibble.repl.shell"

local M = {}

local function read(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a"
  if f then f:close() end
  return text
end

local function editor()
  for _, name in ipairs { "VISUAL", "EDITOR" } do
    local command = os.getenv(name)
    if command and command:find "%S" then return command end
  end
  for _, command in ipairs { "nano", "vi" } do
    if shell.has(command) then return command end
  end
end

-- The piece that a function of the session came from, as text.
local function text_of(session, f)
  local info = type(f) == "function" and debug.getinfo(f, "S")
  return info and session.pieces[tonumber(info.source:match "^=session%[(%d+)%]$")]
end

-- What to edit: text, and the path of the file that holds it, if one does.
local function target(session, what)
  if what == "" then return session.last_text or "" end
  local keys = require("nibble.repl.complete").chain(what)
  local value = keys and require("nibble.repl.complete").value_of(keys, session.env)
  local text = text_of(session, value)
  if text then return text end
  local path = what:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
  if read(path) or path:find "[/.]" then return read(path) or "", path end
  if type(value) == "function" then return nil, what .. " was not typed in this session; name its file: :edit FILE" end
  return nil, ("nothing typed here is called %s, and no file; a new file's name has a dot: :edit %s.lua"):format(what, what)
end

local function write_and_run(session, path, before)
  local command = editor()
  if not command then return session:complain "no editor here; set EDITOR" end
  local status = shell.run(command .. " " .. shell.quote(path))
  if status ~= 0 then return session:complain(("the editor ended with status %d; nothing was run"):format(status)) end
  local text = read(path)
  if not text or not text:find "%S" or text == before then return session:say "unchanged, nothing was run" end
  text = text:gsub("%s+$", "")
  session.remember(text)
  return session:run(text)
end

--- run(session, what) -> as session:run: what: "" (the last piece), a function's name, or a file's.
function M.run(session, what)
  local text, path = target(session, what)
  if not text then return session:complain(path) end
  if path then return write_and_run(session, path, text) end
  return shell.with_file(text ~= "" and text .. "\n" or "", ".lua", function(temporary)
    return write_and_run(session, temporary, text .. "\n")
  end)
end

return M
