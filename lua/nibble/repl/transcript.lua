-- transcript: the session as a text file: what was typed behind its prompts, and what came back. Pasted into a
-- session it runs again.
local M = {}

-- print and io.write of the session's own, which write to the file too.
local function capture(session)
  local env, log = session.env, session.log
  rawset(env, "print", function(...)
    local out = {}
    for i = 1, select("#", ...) do out[i] = tostring((select(i, ...))) end
    local line = table.concat(out, "\t") .. "\n"
    io.stdout:write(line)
    log(line)
  end)
  rawset(env, "io", setmetatable({ write = function(...)
    local out = {}
    for i = 1, select("#", ...) do out[i] = tostring((select(i, ...))) end
    log(table.concat(out))
    return io.write(...)
  end }, { __index = io }))
end

--- stop(session): ends the transcript.
function M.stop(session)
  if not session.log_file then return end
  session.log_file:close()
  session.log, session.log_file, session.log_path = nil, nil, nil
  rawset(session.env, "print", nil)
  rawset(session.env, "io", nil)
end

--- start(session, path) -> true | nil, msg: what follows is appended to the file.
function M.start(session, path)
  path = path:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
  local file, msg = io.open(path, "a")
  if not file then return nil, "cannot write " .. msg end
  M.stop(session)
  session.log_file, session.log_path = file, path
  session.log = function(text)
    file:write(text)
    file:flush()
  end
  capture(session)
  return true
end

return M
