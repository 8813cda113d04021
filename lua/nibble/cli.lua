-- cli: what `nibble ...` means: which command, script or session, and which exit
-- status. 0 done, 1 an accept bound or a check failed, 2 wrong use or input,
-- 130 interrupted (143 by SIGTERM, 138 by SIGUSR1: 128 and the signal's number).
-- Each command is a file in cli/ that returns its arguments and options as data
-- and run(values) -> status; it loads when it is used.
local nffi = require "nibble.ffi"

local M = {}

-- In the order of --help.
M.commands = {
  "inspect", "stats", "plan", "explain", "run", "convert", "check", "repair", "diff", "eval", "sweep", "report",
  "doctor", "bench", "completion",
}

--- say(fmt, ...): one line for the person, on stderr.
function M.say(fmt, ...)
  io.stdout:flush()
  io.stderr:write("nibble: ", select("#", ...) > 0 and fmt:format(...) or fmt, "\n")
end

--- fail(msg, status): says why, and gives the status (default 2).
function M.fail(msg, status)
  M.say((tostring(msg):gsub("%s*\n%s*", " ")))
  return status or 2
end

--- command(name) -> its table: name, summary, notes, args, options, run.
function M.command(name)
  local c = require("nibble.cli." .. name)
  c.name = name
  return c
end

local function is_command(name)
  for _, known in ipairs(M.commands) do
    if known == name then return true end
  end
end

-- What `nibble` may be followed by.
M.uses = {
  { "[MODEL]", "a session, MODEL opened as `model`" },
  { "COMMAND ... [--threads N]", "one of the commands below" },
  { "FILE.lua [ARGS]", "a script, with the module as `nibble`" },
  { "-e CODE", "a piece of Lua; an expression prints its value" },
  { "--version | --help", "" },
}

local function help()
  local out = {}
  for i, use in ipairs(M.uses) do
    out[i] = ("%s nibble %-26s %s"):format(i == 1 and "usage:" or "      ", use[1], use[2]):gsub("%s+$", "")
  end
  out[#out + 1] = ""
  for _, name in ipairs(M.commands) do
    out[#out + 1] = ("  %-10s %s"):format(name, M.command(name).summary)
  end
  out[#out + 1] = ""
  out[#out + 1] = "nibble COMMAND --help tells a command's options."
  return table.concat(out, "\n") .. "\n"
end

-- ---- errors ------------------------------------------------------------------

-- One line for an error that reached the top. Positions inside nibble say nothing
-- to the person who typed a command; those in a script (keep_position) do.
local function sentence(err, keep_position)
  local text = tostring(err)
  if text:match "^%S+%.lua:%d+: attempt to " or text:match "^%S+%.lua:%d+: bad argument #" then
    return keep_position and text or text .. " (a mistake in nibble; NIBBLE_DEBUG=1 shows where)"
  end
  return keep_position and text or (text:gsub("^[^%s:]+%.lua:%d+: ", ""))
end

-- Runs f(...); an error becomes its sentence and a status. what.position: whether
-- the error's position is kept; what.resumes: the same command goes on, else again: from its start.
local function guarded(what, f, ...)
  local args, n = { ... }, select("#", ...)
  local ok, result = xpcall(function() return f(unpack(args, 1, n)) end, function(err)
    if os.getenv "NIBBLE_DEBUG" and not tostring(err):match "interrupted$" then
      io.stderr:write(debug.traceback(tostring(err), 2), "\n")
    end
    return err
  end)
  if ok then return result end
  if tostring(result):match "interrupted$" then
    local signal = nffi.C.nb_stop_signal()
    return M.fail("interrupted" .. (what.resumes and "; the same command goes on where it stopped"
      or what.again and "; the same command starts again" or ""), 128 + (signal > 0 and signal or 2))
  end
  return M.fail(sentence(result, what.position))
end

-- ---- scripts -----------------------------------------------------------------

local function with_module()
  rawset(_G, "nibble", require "nibble")
end

-- A chunk runs as it is; what is only an expression prints its value.
local function run_code(code, ...)
  with_module()
  local chunk, msg = loadstring(code, "=-e")
  local expression = not chunk and loadstring("return " .. code, "=-e")
  if not chunk and not expression then return M.fail(msg) end
  local env = require("nibble.repl.globals").new()
  nffi.C.nb_stop_install_batch()
  return guarded({ position = true }, function(...)
    local values = { setfenv(chunk or expression, env)(...) }
    if expression then
      for i = 1, #values do values[i] = tostring(values[i]) end
      print(table.concat(values, "\t"))
    end
    return 0
  end, ...)
end

local function run_file(argv, at)
  with_module()
  local script = { [0] = argv[at] }
  for i = at + 1, #argv do script[i - at] = argv[i] end
  rawset(_G, "arg", script)
  local chunk, msg = loadfile(argv[at])
  if not chunk then return M.fail(msg) end
  nffi.C.nb_stop_install_batch()
  return guarded({ position = true }, function()
    chunk(unpack(script))
    return 0
  end)
end

-- ---- main --------------------------------------------------------------------

local function run_command(name, argv, at)
  local options = require "nibble.cli.options"
  local c = M.command(name)
  local values, msg = options.parse(c, argv, at)
  if not values then return M.fail(msg) end
  if values.help then
    io.write(options.help(c))
    return 0
  end
  if values.threads then nffi.C.nb_threads_set(values.threads) end
  nffi.C.nb_stop_install_batch() -- a session ends by them, as other programs do
  local status = guarded(c, c.run, values)
  M.ends_at_once = c.only_reads
  return status
end

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

-- A word that is no command, script or option: a model to open, or a mistake.
local function run_word(word)
  if exists(word) then return guarded({}, require("nibble.repl.repl").start, word) end
  if word:match "[/.]" then return M.fail(("no such model, script or command: %s"):format(word)) end
  local hint = require("nibble.text").hint(word, M.commands)
  return M.fail(("unknown command %q%s"):format(word, hint ~= "" and hint or "; nibble --help lists them"))
end

-- Options before anything else; returns the index of what follows.
local function leading_options(argv)
  local at = 1
  while argv[at] == "--threads" or (argv[at] or ""):match "^%-%-threads=" do
    local text = argv[at]:match "=(.*)" or argv[at + 1]
    local n = tonumber(text)
    if not n or n < 1 or n % 1 ~= 0 then
      return nil, ("--threads expects a whole number of at least 1, found %q"):format(text or "")
    end
    nffi.C.nb_threads_set(n)
    at = at + (argv[at]:match "=" and 1 or 2)
  end
  return at
end

local function dispatch(argv)
  local at, msg = leading_options(argv)
  if not at then return M.fail(msg) end
  local word = argv[at]
  if not word then return guarded({}, require("nibble.repl.repl").start) end
  if word == "--version" then
    print("nibble " .. nffi.version)
    return 0
  end
  if word == "--help" or word == "-h" or word == "help" then
    local about = argv[at + 1]
    if about and is_command(about) then return run_command(about, { "--help" }, 1) end
    io.write(help())
    return 0
  end
  if word == "-e" then
    if not argv[at + 1] then return M.fail "-e needs a piece of Lua: nibble -e CODE" end
    return run_code(argv[at + 1], unpack(argv, at + 2))
  end
  if is_command(word) then return run_command(word, argv, at + 1) end
  if word:match "%.lua$" then return run_file(argv, at) end
  if word:match "^%-" then
    local known = { "--help", "--version", "--threads", "-e" }
    return M.fail(("unknown option %s%s"):format(word, require("nibble.text").hint(word, known)))
  end
  return run_word(word)
end

--- main(argv) -> exit status. argv[0] is the program, as in C.
function M.main(argv)
  local status = dispatch(argv)
  local written, why = io.stdout:flush()
  if not written and status == 0 then return M.fail("cannot write the output: " .. tostring(why)) end
  -- Nothing is open for writing: the system takes the memory back at once, Lua would value by value.
  if M.ends_at_once then os.exit(status) end
  return status
end

return M
