-- options: a command's arguments and options as data; parsing and help read the
-- same tables, so that they can't disagree.
--
-- A command is {name=, args={{"MODEL"}, {"PATTERN", optional=true}, {"RECIPE", many=true}},
-- summary=, notes=, options={{"--json", doc=}, {"--out", "DIR", doc=, required=true},
-- {"--set", "k=v", many=true, doc=}, {"--context", "N", number=true, doc=},
-- {"--which", "WHICH", values={"this", "that"}, doc=}, {"--consumer", "NAME", words=function() -> array, doc=}}}.
-- values are all that there are; words are what a shell offers. internal=true: nibble's own, shown nowhere.
local hint = require("nibble.text").hint

local M = {}

-- Options that every command takes.
M.common = {
  { "--threads", "N", number = true, most = 4096, doc = "threads to use (default: all)" },
  { "--help", doc = "this text" },
}

local function find(command, name)
  for _, list in ipairs { command.options or {}, M.common } do
    for _, option in ipairs(list) do
      if option[1] == name then return option end
    end
  end
end

local function names(command)
  local out = {}
  for _, list in ipairs { command.options or {}, M.common } do
    for _, option in ipairs(list) do out[#out + 1] = not option.internal and option[1] or nil end
  end
  return out
end

local function key(name) return (name:gsub("^%-%-", ""):gsub("-", "_"):lower()) end

-- The value of one option as the command gets it, or nil, msg.
local function convert(option, text)
  if option.values then
    for _, value in ipairs(option.values) do if value == text then return text end end
    return nil, ("%s is %s, found %q%s"):format(option[1], table.concat(option.values, " or "), text,
      hint(text, option.values))
  end
  if not option.number then return text end
  local n = tonumber(text)
  local least, most = option.least or 1, option.most or 2 ^ 31 - 1
  if not n or not (n >= least and n <= most) or n % 1 ~= 0 then
    return nil, ("%s expects a whole number of at least %d and at most %d, found %q"):format(option[1], least, most, text)
  end
  return n
end

local function take_option(command, word, argv, i, out)
  local name, value = word:match "^(%-%-[^=]+)=(.*)$"
  name = name or word
  local option = find(command, name)
  if not option then
    return nil, ("%s has no option %s%s"):format(command.name, name, hint(name, names(command)))
  end
  if not option[2] then
    if value then return nil, ("%s takes no value"):format(name) end
    out[key(name)] = true
    return i
  end
  if not value then
    i = i + 1
    value = argv[i]
    if not value or value == "" then return nil, ("%s needs a value: %s %s"):format(name, name, option[2]) end
  end
  local converted, msg = convert(option, value)
  if converted == nil then return nil, msg end
  if option.many then
    out[key(name)] = out[key(name)] or {}
    table.insert(out[key(name)], converted)
  else
    out[key(name)] = converted
  end
  return i
end

local function place_arguments(command, words, out)
  local at = 1
  for _, arg in ipairs(command.args or {}) do
    if arg.many then
      out[key(arg[1])] = { unpack(words, at) }
      at = #words + 1
    else
      if not words[at] and not arg.optional then
        return nil, ("%s needs %s; usage: %s"):format(command.name, arg[1], M.usage(command))
      end
      out[key(arg[1])] = words[at]
      at = at + 1
    end
  end
  if words[at] then
    return nil, ("%s doesn't take %q; usage: %s"):format(command.name, words[at], M.usage(command))
  end
  return out
end

--- parse(command, argv, first) -> values | nil, msg
-- values: arguments and options by lower-case name ("model", "json", "set").
function M.parse(command, argv, first)
  local out, words, literal = {}, {}, false
  local i = first
  while argv[i] do
    local word = argv[i]
    if not literal and word == "--" then
      literal = true
    elseif not literal and word == "-h" then
      out.help = true
    elseif not literal and word:match "^%-." and not tonumber(word) then
      local at, msg = take_option(command, word, argv, i, out)
      if not at then return nil, msg end
      i = at
    else
      words[#words + 1] = word
    end
    i = i + 1
  end
  if out.help then return out end
  for _, option in ipairs(command.options or {}) do
    if option.required and out[key(option[1])] == nil then
      return nil, ("%s needs %s %s; usage: %s"):format(command.name, option[1], option[2], M.usage(command))
    end
  end
  return place_arguments(command, words, out)
end

--- usage(command) -> "nibble inspect MODEL [PATTERN] [--json]"
function M.usage(command)
  local parts = { "nibble", command.name }
  for _, arg in ipairs(command.args or {}) do
    parts[#parts + 1] = (arg.optional and "[%s]" or "%s"):format(arg[1] .. (arg.many and "..." or ""))
  end
  for _, option in ipairs(command.options or {}) do
    local text = option[1] .. (option[2] and " " .. option[2] or "")
    if not option.internal then parts[#parts + 1] = option.required and text or ("[%s]"):format(text) end
  end
  return table.concat(parts, " ")
end

--- help(command) -> the text of `nibble COMMAND --help`.
function M.help(command)
  local out = { "usage: " .. M.usage(command), "", command.summary, "" }
  if command.notes then
    out[#out + 1] = command.notes
    out[#out + 1] = ""
  end
  for _, list in ipairs { command.options or {}, M.common } do
    for _, option in ipairs(list) do
      local text = option[1] .. (option[2] and " " .. option[2] or "")
      if not option.internal then out[#out + 1] = ("  %-20s %s"):format(text, option.doc) end
    end
  end
  return table.concat(out, "\n") .. "\n"
end

return M
