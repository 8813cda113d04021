-- repl: the session: reads, runs, shows. Names mean what globals.lua says;
-- `model` is the checkpoint that the session was started with, `_` the last value.
local nffi = require "nibble.ffi"
local C = nffi.C
local progress = require "nibble.repl.progress"

local M = {}

local PROMPT, MORE = "nibble> ", "      > "

-- A chunk of text as a function: an expression gives its values. nil, msg, and
-- whether more lines could make it whole.
local function compile(text)
  local chunk, msg = loadstring("return " .. text, "=session")
  if chunk then return chunk end
  local statement, why = loadstring(text, "=session")
  if statement then return statement end
  local unfinished = "near '<eof>'"
  local as_expression = msg:find(unfinished, 1, true) ~= nil
  local open = (as_expression or why:find(unfinished, 1, true) ~= nil) and text:find "%S" ~= nil
  return nil, as_expression and msg or why, open
end

local function complain(session, text)
  local red, back = "", ""
  if progress.colour(2) then red, back = "\27[31m", "\27[0m" end
  io.stdout:flush()
  io.stderr:write(red, (text:gsub("%s*\n%s*", " ")), back, "\n")
  session.errors = session.errors + 1
end

local function show(session, values)
  if values.n == 0 or (values.n == 1 and values[1] == nil) then return end
  local printer, out = require("nibble.repl.show").value, {}
  for i = 1, values.n do out[i] = printer(values[i]) end
  -- nil, msg: the world's failure, told as such
  if values[1] == nil and type(values[2]) == "string" then return complain(session, values[2]) end
  session.env._ = values[1]
  io.write(table.concat(out, "\t"), "\n")
end

local function pack(...) return { n = select("#", ...), ... } end

local function sentence(err)
  return (tostring(err):gsub("^session:%d+: ", ""):gsub("^[^%s:]*nibble/[^%s:]+%.lua:%d+: ", ""))
end

-- On a terminal a run draws its line without being asked; returns what ends it.
local function show_progress(session)
  if not session.terminal then return function() end end
  local report, finish = progress.new(io.stdout)
  require("nibble.convert").progress = report
  return finish
end

local function execute(session, chunk)
  setfenv(chunk, session.env)
  local finish = show_progress(session)
  local result = pack(xpcall(chunk, function(err)
    session.trace = debug.traceback(tostring(err), 2)
    return err
  end))
  finish()
  local interrupted = C.nb_stop_requested() ~= 0
  C.nb_stop_clear()
  debug.sethook()
  if result[1] then return show(session, { n = result.n - 1, unpack(result, 2, result.n) }) end
  if interrupted or tostring(result[2]):match "interrupted$" then
    return complain(session, "interrupted; the same call goes on where it can")
  end
  complain(session, sentence(result[2]))
end

-- Lines that are no Lua; true when text was one, "exit" to leave.
local function command(session, text)
  local about = text:match "^%s*%?(.*)$" or text:match "^%s*(.-)%?%s*$"
  if about and not about:find "[\"'(]" then
    io.write(require("nibble.repl.help").about(about, session.env), "\n")
    return true
  end
  local word = text:match "^%s*(:?%a+)%s*$"
  if word == "exit" or word == "quit" then return "exit" end
  if word == ":trace" then
    io.write(session.trace or "no error so far", "\n")
    return true
  end
end

-- Ctrl-C at the prompt drops what was typed; twice within 2 s with nothing typed leaves.
local function interrupted_twice(session, typed)
  C.nb_stop_clear()
  debug.sethook()
  local now, empty = C.nb_now(), session.lines == 0 and not typed
  local again = empty and session.stopped and now - session.stopped < 2
  session.stopped = empty and now or nil
  io.write "\n"
  if not again and empty then io.write "(Ctrl-C once more, Ctrl-D or exit leaves)\n" end
  return again
end

-- One complete piece of input; nil when the session is to end.
local function read_piece(session)
  local text
  session.lines = 0
  while true do
    local line, why, typed = session.read(text and MORE or PROMPT)
    if why == "interrupted" then
      if interrupted_twice(session, typed) or not session.terminal then return nil, 130 end
      text, session.lines = nil, 0
    elseif not line then
      return text, 0 -- what is there may still tell what it lacks
    else
      session.remember(line)
      session.stopped = nil
      session.lines = session.lines + 1
      text = text and text .. "\n" .. line or line
      local _, _, open = compile(text)
      if not open or (session.lines == 1 and (text:match "^%s*%?" or text:match "^%s*:%a+")) then return text end
    end
  end
end

local function completion(session)
  return function(line, word)
    local call = word == "" and line:match "^(.-)%($"
    local complete = require "nibble.repl.complete"
    if call then
      local keys = complete.chain(call)
      local f = keys and complete.value_of(keys, session.env)
      local signature = f and require("nibble.repl.help").signature(f)
      if signature then return { hint = signature } end
    end
    return complete.candidates(line, word, session.env)
  end
end

local function greet(session, model)
  if session.terminal then
    io.write(("nibble %s   ?NAME tells what NAME is, Tab completes, Ctrl-D leaves\n"):format(nffi.version))
  end
  if model then io.write(tostring(session.env.model), "\n") end
end

--- start([model]) -> exit status: a session on stdin and stdout; model: a
-- checkpoint's path, opened as `model`.
function M.start(model)
  local env = require("nibble.repl.globals").new()
  if model then env.model = assert(require("nibble").open(model)) end
  local session = { env = env, errors = 0, terminal = progress.terminal(0) and progress.terminal(1) }
  session.read, session.remember = require("nibble.repl.line").reader(completion(session))
  greet(session, model)
  while true do
    local text, status = read_piece(session)
    if text then
      local done = command(session, text)
      if done == "exit" then return 0 end
      if not done then
        local chunk, msg = compile(text)
        if chunk then execute(session, chunk) else complain(session, sentence(msg)) end
      end
    end
    if status then
      if session.terminal and status == 0 then io.write "\n" end
      return status
    end
  end
end

return M
