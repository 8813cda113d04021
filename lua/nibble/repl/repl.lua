-- repl: the session: reads pieces, runs them, shows what they give. Names mean what globals.lua says; `model` is the
-- checkpoint that the session was started with, `_`, `__`, `___` the last values.
--
-- A session is a table: env (its names), read and remember (line.lua), pieces (what ran, by number), trace (of the
-- last error), errors (how many), last_text (what ran last, right or wrong), person (whether someone types), log (transcript.lua).
local nffi = require "nibble.ffi"
local C = nffi.C
local pieces = require "nibble.repl.pieces"
local progress = require "nibble.repl.progress"
local terminal = require "nibble.terminal"

local M = {}

local session_mt = {}
session_mt.__index = session_mt

-- ---- what the session says --------------------------------------------------------------

--- session:say(text): a text of its own, through the pager where it is long.
function session_mt.say(session, text)
  require("nibble.repl.pager").show(text)
  if session.log then session.log(text .. "\n") end
end

--- session:complain(text): one red line on stderr.
function session_mt.complain(session, text)
  local red, back = "", ""
  if progress.colour(2) then red, back = "\27[31m", "\27[0m" end
  text = text:gsub("%s*\n%s*", " ")
  io.stdout:flush()
  io.stderr:write(red, text, back, "\n")
  session.errors = session.errors + 1
  if session.log then session.log(text .. "\n") end
end

-- Shows values and keeps the first as `_`.
local function show_values(session, values)
  if values.n == 0 or (values.n == 1 and values[1] == nil) then return end
  -- nil, msg: the world's failure, told as such
  if values[1] == nil and type(values[2]) == "string" then return session:complain(values[2]) end
  local printer, out, env = require("nibble.repl.show").value, {}, session.env
  for i = 1, values.n do
    local v = values[i]
    local signature = type(v) == "function" and require("nibble.repl.help").signature(v)
    out[i] = signature and "function: " .. signature or printer(v)
  end
  env.___, env.__, env._ = env.__, env._, values[1]
  session:say(table.concat(out, "\t"))
end

local function pack(...) return { n = select("#", ...), ... } end

-- An error for the person: no places inside of nibble, nor of a piece of one line. text: the piece.
local function sentence(session, err, text)
  local number, line, said = tostring(err):match "^session%[?(%d*)%]?:(%d+): (.*)$"
  if not said then return (tostring(err):gsub("^[^%s:]*lua/[5.1/]*nibble/[^%s:]+%.lua:%d+: ", "")) end
  local piece = text or session.pieces[tonumber(number)] or ""
  return piece:find "\n" and ("line %s: %s"):format(line, said) or said
end

-- ---- running ----------------------------------------------------------------------------

-- On a terminal a run draws its line without being asked; returns what ends it.
local function show_progress(session)
  if not session.person then return function() end end
  local report, finish = progress.new(io.stdout)
  nffi.progress = report
  return finish
end

--- session:protected(f, ...) -> {n =, values…} | nil: f runs; an error or Ctrl-C is told and the session goes on.
function session_mt.protected(session, f, ...)
  local finish, args, n = show_progress(session), { ... }, select("#", ...)
  local result = pack(xpcall(function() return f(unpack(args, 1, n)) end, function(err)
    -- What lies below is the session's own.
    session.trace = debug.traceback(tostring(err), 2):gsub("\n[^\n]*'xpcall'\n[^\n]*repl/repl%.lua:.*$", "")
    return err
  end))
  local interrupted = C.nb_stop_requested() ~= 0
  C.nb_stop_clear()
  debug.sethook()
  finish()
  if result[1] then return { n = result.n - 1, unpack(result, 2, result.n) } end
  if interrupted or tostring(result[2]):match "interrupted$" then
    session:complain "interrupted; the same call goes on where it can"
  else
    session:complain(sentence(session, result[2]))
  end
end

--- session:show(values): what a piece gave, {n =, values…}; an error in a value's own text is told too.
function session_mt.show(session, values) session:protected(show_values, session, values) end

--- session:chunk(text) -> function, nil, whether it assigns | nil, msg: a piece of Lua with the session's names.
-- One that assigns gives the value and, as nil, msg, why there is none.
function session_mt.chunk(session, text)
  local number = #session.pieces + 1
  session.pieces[number] = text
  local name = ("=session[%d]"):format(number)
  local assigns = pieces.assignment(text, name)
  local chunk, msg = assigns, nil
  if not chunk then chunk, msg = pieces.compile(text, name) end
  if not chunk then return nil, sentence(session, msg) end
  return setfenv(chunk, session.env), nil, assigns ~= nil
end

local function run_piece(session, text)
  if pieces.special(text) and not text:find "\n" then
    local done = session:protected(require("nibble.repl.commands").run, session, text)
    return done and done[1]
  end
  local chunk, msg, assigns = session:chunk(text)
  if not chunk then return session:complain(msg) end
  local values = session:protected(chunk)
  if not values then return "failed" end
  if assigns then
    if values[1] ~= nil or type(values[2]) ~= "string" then return end
    session:complain(values[2])
    return "failed"
  end
  session:show(values)
  local name = session.person and not session.told_local and text:match "^%s*local%s+([%a_][%w_]*)%s*=[^\n]*$"
  if name then
    session.told_local = true
    session:say(("(%s is gone with its line; without `local` it stays)"):format(name))
  end
end

--- session:run(text) -> "exit" | nil: all pieces of text, to the first that fails.
function session_mt.run(session, text)
  local list, msg = pieces.split(text)
  if not pieces.special(text) then session.last_text = text end
  if not list then
    if not msg then msg = select(2, pieces.compile(text, "=session")) end
    return session:complain(sentence(session, msg, text))
  end
  for _, piece in ipairs(list) do
    if #list > 1 and session.person then io.write(pieces.PROMPT, (piece:gsub("\n", "\n" .. pieces.MORE)), "\n") end
    if session.log then session.log(pieces.PROMPT .. piece:gsub("\n", "\n" .. pieces.MORE) .. "\n") end
    local done = run_piece(session, piece)
    if done == "exit" then return "exit" elseif done then return end
  end
end

-- ---- reading -----------------------------------------------------------------------------

-- Ctrl-C at the prompt drops what was typed; twice within 2 s with nothing typed leaves.
local function interrupted_twice(session, typed)
  C.nb_stop_clear()
  debug.sethook()
  local now, empty = C.nb_now(), session.before == "" and not typed
  local again = empty and session.stopped and now - session.stopped < 2
  session.stopped = empty and now or nil
  io.write "\n"
  if not again and empty then io.write "(Ctrl-C once more, Ctrl-D or exit leaves)\n" end
  return again
end

-- What is to run next; nil, status when the session is to end.
local function read_text(session)
  session.before = ""
  local text, typed_so_far
  while true do
    local line, why, typed = session.read(text and pieces.MORE or pieces.PROMPT)
    if why == "interrupted" then
      if interrupted_twice(session, typed) or not session.person then return nil, 130 end
      text, typed_so_far, session.before = nil, nil, ""
    elseif not line then
      return text, 0 -- what is there may still tell what it lacks
    else
      session.stopped = nil
      typed_so_far = typed_so_far and typed_so_far .. "\n" .. line or line
      text = pieces.clean(typed_so_far)
      local list, msg = pieces.split(text)
      if list or msg then
        session.remember(text)
        return text
      end
      session.before = text .. "\n"
    end
  end
end

local function completion(session)
  return function(line, word)
    return require("nibble.repl.complete").offer(session.before .. line, word, session.env)
  end
end

-- ---- starting ------------------------------------------------------------------------------

local function greet(session, model)
  if session.person then
    local hints = "   ?NAME tells what NAME is, Tab completes, :help, Ctrl-D leaves"
    local version = "nibble " .. nffi.version
    io.write(version, #version + #hints <= terminal.width(1) and hints or "", "\n")
  end
  if model then io.write(tostring(session.env.model), "\n") end
end

-- The person's own init.lua, run before the first prompt.
local function run_startup(session)
  local home, config = os.getenv "HOME", os.getenv "XDG_CONFIG_HOME"
  if not config or config == "" then config = home and home .. "/.config" end
  local path = config and config .. "/nibble/init.lua"
  local file = path and io.open(path, "r")
  if not file then return end
  file:close()
  local chunk, msg = loadfile(path)
  if not chunk then return session:complain(msg) end
  session:protected(setfenv(chunk, session.env))
end

--- start([model]) -> exit status: a session on stdin and stdout; model: a
-- checkpoint's path, opened as `model`.
function M.start(model)
  local env = require("nibble.repl.globals").new()
  if model then env.model = assert(require("nibble").open(model)) end
  local session = setmetatable({ env = env, errors = 0, pieces = require("nibble.repl.sources").pieces, before = "",
    person = terminal.size(0) ~= nil and terminal.size(1) ~= nil }, session_mt)
  session.read, session.remember = require("nibble.repl.line").reader(completion(session))
  greet(session, model)
  if session.person then run_startup(session) end
  while true do
    local text, status = read_text(session)
    if text and session:run(text) == "exit" then return 0 end
    if status then
      if session.person and status == 0 then io.write "\n" end
      return status
    end
  end
end

return M
