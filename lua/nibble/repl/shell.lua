-- shell: other programs in the session: !command, the pager, the editor. Ctrl-C reaches them, not the session
-- (system(3) ignores it here meanwhile).
local M = {}

--- quote(text) -> text as one word of the shell.
function M.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

--- run(command) -> exit status (128 + signal when killed): a line for /bin/sh, on the session's terminal.
function M.run(command)
  io.stdout:flush()
  local status = os.execute(command)
  if status % 256 ~= 0 then return 128 + status % 128 end
  return math.floor(status / 256)
end

--- has(program) -> whether the shell finds it.
function M.has(program) return os.execute("command -v " .. M.quote(program) .. " >/dev/null 2>&1") == 0 end

--- with_file(text, suffix, use) -> use(path)'s results: a file that holds text, gone afterwards.
function M.with_file(text, suffix, use)
  local base = os.tmpname()
  local path = base .. suffix
  local f = io.open(path, "wb")
  if f then
    f:write(text)
    f:close()
  end
  local results = { pcall(use, path) }
  os.remove(path)
  if path ~= base then os.remove(base) end
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2)
end

return M
