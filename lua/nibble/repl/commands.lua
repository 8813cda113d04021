-- commands: the lines of a session that are no Lua: :word, ?name, !command, exit.
local C = require("nibble.ffi").C
local shell = require "nibble.repl.shell"
local text = require "nibble.text"
local units = require "nibble.units"

local M = {}

-- ---- what they do; each is f(session, rest of the line) -> "exit", "failed" or nil ----------------

local function help(session)
  local rows = {}
  for _, c in ipairs(M.list) do rows[#rows + 1] = { c.usage, c.about } end
  for _, row in ipairs {
    { "?NAME  NAME?", "what NAME is: a function, a method, a part of nibble, a recipe, an option of recipes" },
    { "??WORD", "every description that has WORD in it" },
    { "!COMMAND", "a line for the shell" },
    { "_ __ ___", "the last three values" },
    { "Tab", "completes; after ( or { it shows what goes there" },
    { "Ctrl-R", "searches the history" },
    { "Ctrl-C", "stops what runs, drops what was typed; exit or Ctrl-D leaves" },
  } do rows[#rows + 1] = row end
  session:say(require("nibble.show").columns(rows, "ll", require("nibble.terminal").width(1)))
end

local function trace(session) session:say(session.trace or "no error so far") end

-- Runs an expression or statement once: seconds, what it allocated, and the rate of what it gave.
local function time(session, code)
  if code == "" then return session:complain ":time needs something to run: :time w:quantize{scheme = \"W4A16\"}" end
  local chunk, msg, assigns = session:chunk(code)
  if not chunk then return session:complain(msg) end
  collectgarbage()
  local heap, tensors, start = collectgarbage "count" * 1024, tonumber(C.nb_live_bytes()), C.nb_now()
  local values = session:protected(chunk)
  local memory = require "nibble.repl.memory"
  local done, why = memory.wait() -- kernels may still run
  local seconds = C.nb_now() - start
  heap, tensors = collectgarbage "count" * 1024 - heap, tonumber(C.nb_live_bytes()) - tensors
  if not values then return "failed" end
  if not done then return session:complain(why) end
  local parts = { seconds < 0.1 and ("%.3f ms"):format(seconds * 1e3) or ("%.3f s"):format(seconds),
    "Lua " .. units.bytes(math.max(0, heap)), "tensors " .. units.bytes(math.max(0, tensors)) }
  local bytes = memory.bytes_of(values[1])
  if bytes and bytes > 0 then parts[#parts + 1] = units.rate(bytes, seconds) .. " of what it gave" end
  if not assigns or values[1] == nil then session:show(values) end
  session:say(table.concat(parts, "  "))
end

local function run_file(session, rest)
  local path = rest:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
  if path == "" then return session:complain ":run needs a file: :run FILE.lua" end
  local chunk, msg = loadfile(path)
  if not chunk then return session:complain(msg) end
  local values = session:protected(setfenv(chunk, session.env))
  if not values then return "failed" end
  session:show(values)
end

local function who(session)
  session:say(require("nibble.repl.memory").variables(session.env) or "no variables so far")
end

local function mem(session) session:say(require("nibble.repl.memory").summary()) end

local function log(session, rest)
  local transcript = require "nibble.repl.transcript"
  if rest == "off" then return transcript.stop(session) end
  if rest == "" then
    return session:say(session.log_path and "the session is written to " .. session.log_path or "no log; :log FILE begins one")
  end
  local ok, msg = transcript.start(session, rest)
  if not ok then return session:complain(msg) end
end

local function edit(session, rest) return require("nibble.repl.edit").run(session, rest) end

local function leave() return "exit" end

-- In the order of :help.
M.list = {
  { name = "time", usage = ":time EXPR", about = "runs it once: seconds, memory, rate", run = time },
  { name = "run", usage = ":run FILE", about = "runs a file with the session's names", run = run_file },
  { name = "edit", usage = ":edit [NAME|FILE]",
    about = "the last piece, a function typed here, or a file in $VISUAL or $EDITOR; runs what was written", run = edit },
  { name = "who", usage = ":who", about = "your variables: type, shape, bytes", run = who },
  { name = "mem", usage = ":mem", about = "memory: tensors, mapped files, Lua, the process", run = mem },
  { name = "log", usage = ":log FILE|off", about = "writes the session to a file as a transcript", run = log },
  { name = "trace", usage = ":trace", about = "where the last error came from", run = trace },
  { name = "help", usage = ":help", about = "this list", run = help },
  { name = "quit", usage = ":quit", about = "leaves; so do exit and Ctrl-D", run = leave },
}

--- names() -> of the commands, in their order.
function M.names()
  local out = {}
  for i, c in ipairs(M.list) do out[i] = c.name end
  return out
end

--- find(name) -> {name, usage, about, run} | nil
function M.find(name)
  for _, c in ipairs(M.list) do
    if c.name == name then return c end
  end
end

-- Asks what runs in it whether it went well: the shell's status, where it isn't 0.
local function shell_line(session, line)
  if not line:find "%S" then return session:complain "! needs a command of the shell: !ls" end
  local status = shell.run(line)
  if status ~= 0 then session:complain(("exit status %d"):format(status)) end
end

--- run(session, line) -> "exit", "failed" or nil: a line that is no Lua.
function M.run(session, line)
  line = line:match "^%s*(.-)%s*$"
  if line:sub(1, 1) == "!" then return shell_line(session, line:sub(2)) end
  local word = line:match "^%?%?(.*)$"
  local help_m = require "nibble.repl.help"
  if word then return session:say(require("nibble.repl.search").find(word)) end
  local about = line:match "^%?(.*)$" or line:match "^(.-)%?$"
  if about then return session:say(help_m.about(about, session.env)) end
  if line == "exit" or line == "quit" then return "exit" end
  local name, rest = line:match "^:(%a+)%s*(.*)$"
  if name == "exit" or name == "q" then name = "quit" end
  local command = M.find(name)
  if not command then
    return session:complain((":%s is no command%s"):format(name, text.did_you_mean(name, M.names())))
  end
  return command.run(session, rest)
end

return M
