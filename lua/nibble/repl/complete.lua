-- complete: what Tab offers: names, fields and methods after . and :, modules and tensors inside m["…, options inside
-- of a call's table, their values, paths, recipes, commands.
local context_m = require "nibble.repl.context"
local reflect = require "nibble.repl.reflect"

local M = { chain = context_m.chain, value_of = reflect.value_of, keys_of = reflect.keys_of }

local NAME = "[%a_][%w_]*"

local keywords = {
  "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
  "repeat", "return", "then", "true", "until", "while",
}

-- ---- candidates ----------------------------------------------------------------------------------------
-- Each kind returns {from = where in the text the token begins, words = what it may become, …} or nil.

local function beginning(names, partial, prefix)
  local out, seen = {}, {}
  for _, name in ipairs(names) do
    if name:sub(1, #partial) == partial and not seen[name] then
      seen[name], out[#out + 1] = true, (prefix or "") .. name
    end
  end
  table.sort(out)
  return out
end

local function listed(set, methods_only)
  local out = {}
  for name, is_method in pairs(set) do
    if not methods_only or is_method then out[#out + 1] = name end
  end
  return out
end

local function all_names(env)
  local names = listed(M.keys_of(env))
  for _, name in ipairs(listed(M.keys_of(_G))) do names[#names + 1] = name end
  return names
end

-- The names that value["…"] takes.
local function named(value, partial)
  local mt = value ~= nil and reflect.metatable_of(value)
  if mt and rawget(mt, "__names") and rawget(value, "handle") then
    return require("nibble.repl.names").complete(value, partial)
  end
  local names = mt and rawget(mt, "__names") and mt.__names(value)
  if not names and type(value) == "table" then names = listed(M.keys_of(value)) end
  return beginning(names or {}, partial), true
end

local function file_words(partial, wanted)
  return require("nibble.repl.files").complete(partial, wanted)
end

local function recipe_words(partial)
  local words = beginning(require("nibble.recipe").names(), partial)
  for _, path in ipairs(file_words(partial, "%.lua$")) do words[#words + 1] = path end
  return words
end

local names_of_checkpoint = { tensor = true, info = true, weight = true, module = true, quantized = true, input = true,
                              grep = true, select = true }

-- Words for a string that is argument `call.argument` of a call, by what is called; default: files.
local function argument_words(text, call, partial, env)
  local name, keys = call.keys[#call.keys], { unpack(call.keys, 1, #call.keys - 1) }
  local options = require "nibble.repl.options"
  local first = call.argument == 1
  if call.method and names_of_checkpoint[name] then return named(M.value_of(keys, env), partial) end
  if name == "explain" and call.argument == 2 then
    local object = M.chain(text:match "([^(]*),[^,]*$" or "")
    return named(object and M.value_of(object, env), partial)
  end
  if first and (name == "cast" or name == "as" or (name == "tensor" and not call.method)) then
    return beginning((options.values "dtype"), partial), true
  end
  if first and (name == "to" and call.method or keys[#keys] == "cuda") then return beginning({ "cpu", "cuda" }, partial), true end
  if name == "to" and call.argument == 2 then return beginning((options.values "to"), partial), true end
  if first and (name == "plan" or name == "recipe") then return recipe_words(partial), true end
  if name == "open" then return file_words(partial, "%.safetensors"), true end
  if name == "require" then return beginning(listed(package.preload), partial), true end
  return file_words(partial), true
end

local function string_words(text, context, env)
  local from = context.string.from
  local partial, before = text:sub(from), text:sub(1, from - 1 - #context.string.quote)
  local indexed = before:match "^(.*)%[%s*$"
  if indexed then
    local keys = M.chain(indexed)
    local words, begins = named(keys and M.value_of(keys, env), partial)
    return { from = from, words = words, contains = not begins }
  end
  local call = context_m.call(text, context)
  local option = before:match("(" .. NAME .. ")%s*=%s*$")
  if option and call and call.table then
    local options = require "nibble.repl.options"
    local known = options.values(option)
    if known and not options.names_file(option) then return { from = from, words = beginning(known, partial) } end
    return { from = from, words = file_words(partial) }
  end
  local bare = M.chain((before:gsub("%s+$", "")))
  local last = bare and bare[#bare]
  if bare and last ~= "return" and last ~= "and" and last ~= "or" and last ~= "in" then
    call = { keys = bare, argument = 1, method = before:match("([.:])%s*" .. NAME .. "%s*$") == ":" }
  elseif call and call.table then
    call = nil
  end
  if not call then return { from = from, words = file_words(partial) } end
  local words, begins = argument_words(before, call, partial, env)
  return { from = from, words = words, contains = not begins }
end

-- Options of the call's table, or their values after "=".
local function option_words(text, context, call, env)
  local frame = context.stack[#context.stack]
  if not frame or frame.open ~= "{" then return nil end
  local entry = text:sub(frame.entry)
  local options = require "nibble.repl.options"
  local option = entry:match("^%s*(" .. NAME .. ")%s*=%s*$")
  if option then
    local strings, others = options.values(option)
    local words = others or {}
    for _, s in ipairs(strings or {}) do words[#words + 1] = ('"%s"'):format(s) end
    return words[1] and { from = #text + 1, words = words } or nil
  end
  local partial = entry:match("^%s*(" .. NAME .. ")$") or entry:match "^%s*$" and ""
  local f = partial and M.value_of(call.keys, env)
  if not f then return nil end
  local names, docs = options.of(f, call.path)
  local given, words, about = text:sub(frame.at), {}, {}
  for _, name in ipairs(names) do
    if name:sub(1, #partial) == partial and not given:find("[{,;]%s*" .. name .. "%s*=[^=]") then
      local w = name .. " = "
      words[#words + 1], about[w] = w, docs[name]
    end
  end
  if not words[1] then return nil end
  return { from = #text - #partial + 1, words = words, about = about }
end

-- The value of the expression at the end of text; of a call what its function says that it gives.
local function value_at(text, env)
  local keys = M.chain(text)
  if keys then return M.value_of(keys, env) end
  local callee = text:match "^(.*[%w_\"%]])%s*%b()$" or text:match "^(.*[%w_\"%]])%s*%b{}$"
  keys = callee and M.chain(callee)
  local f = keys and M.value_of(keys, env)
  return f and reflect.result_of(f)
end

local function code_words(text, context, env)
  local base, separator, partial = text:match("^(.*)([.:])(" .. NAME .. ")$")
  if not base then base, separator, partial = text:match "^(.*)([.:])()$" end
  if base and not base:find "%.$" then
    if type(partial) == "number" then partial = "" end
    local value = value_at(base, env)
    if value == nil then return { from = #text + 1, words = {} } end
    return { from = #text - #partial + 1, words = beginning(listed(M.keys_of(value), separator == ":"), partial) }
  end
  local call = context_m.call(text, context)
  local options = call and call.table and option_words(text, context, call, env)
  partial = text:match("(" .. NAME .. ")$") or ""
  local hint
  if call and partial == "" and not (options and not options.about) then
    local f = M.value_of(call.keys, env)
    hint = f and require("nibble.repl.help").signature(f, call.keys[#call.keys])
  end
  if options then
    options.hint = hint
    return options
  end
  if hint then return { from = #text + 1, words = {}, hint = hint } end
  if partial == "" and text:find "\n[ \t]*$" then return { from = #text + 1, words = { "  " } } end
  if partial == "" and not text:find "^%s*$" and not text:find "[%s=(,{+*/-]$" then return nil end
  local names = partial == "" and listed(M.keys_of(env)) or all_names(env)
  if partial ~= "" then
    for _, k in ipairs(keywords) do names[#names + 1] = k end
  end
  return { from = #text - #partial + 1, words = beginning(names, partial) }
end

-- ---- lines that are no Lua --------------------------------------------------------------------------------

local function special_words(text, env)
  local commands = require "nibble.repl.commands"
  local name = text:match "^%s*:(%a*)$"
  if name then return { from = #text - #name + 1, words = beginning(commands.names(), name) } end
  local command, rest = text:match "^%s*:(%a+)%s+(.*)$"
  if command == "time" then return nil, (" "):rep(#text - #rest) .. rest end
  if command == "run" or command == "log" or command == "edit" then
    return { from = #text - #rest + 1, words = file_words(rest, command == "run" and "%.lua$" or nil) }
  end
  if command then return {} end
  local line = text:match "^%s*!(.*)$"
  if line then
    local last = line:match "[^%s]*$"
    return { from = #text - #last + 1, words = file_words(last) }
  end
  local asked = text:match "^%s*%?%s*(.*)$"
  if not asked then return nil, text end
  if asked:match "^[%a_][%w_-]*$" or asked == "" then
    local names = all_names(env)
    for _, list in ipairs { require("nibble.recipe").names(), require("nibble.scheme_presets").names() } do
      for _, n in ipairs(list) do names[#names + 1] = n end
    end
    return { from = #text - #asked + 1, words = beginning(names, asked) }
  end
  if asked:sub(1, 1) == ":" then return { from = #text - #asked + 2, words = beginning(commands.names(), asked:sub(2)) } end
  return nil, (" "):rep(#text - #asked) .. asked
end

--- at(text, env) -> {from = where in text the token at its end begins, words = array of what it may become | nil,
-- hint = a signature | nil, about = {word -> what it is} | nil, contains = words need not begin with the token} | nil
function M.at(text, env)
  local found, rest
  if not text:find "\n" then found, rest = special_words(text, env) end
  if found then return found.words and found or nil end
  text = rest or text
  local context = context_m.at(text)
  if context.comment or (context.string and context.string.quote == "[[") then return nil end
  if context.string then return string_words(text, context, env) end
  return code_words(text, context, env)
end

-- ---- for the line editor -----------------------------------------------------------------------------------

local function common_prefix(words)
  local prefix = words[1]
  for _, w in ipairs(words) do
    while w:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

-- What takes the place of libedit's word so that the token becomes `to`; nil when that can't be.
local function instead_of(word, token, to)
  if #token <= #word then return word:sub(1, #word - #token) .. to end
  local before = token:sub(1, #token - #word)
  return to:sub(1, #before) == before and to:sub(#before + 1) or nil
end

--- offer(text, word, env) -> {insert = what takes word's place, show = text for below the line} | nil
-- word: the end of text that the line editor would replace. One candidate, or what all begin with, is inserted;
-- where that adds nothing they are listed.
function M.offer(text, word, env)
  local r = M.at(text, env)
  if not r then return nil end
  local token, show = text:sub(r.from), r.hint
  local words = r.words
  if #words == 0 then return show and { show = show } or nil end
  local prefix = common_prefix(words)
  local grows = #words == 1 and prefix ~= token or (#prefix > #token and prefix:sub(1, #token) == token)
  if grows and not show then
    local insert = instead_of(word, token, prefix)
    if insert then return { insert = insert } end
  end
  if #words > 1 or show then
    local menu = require("nibble.repl.menu").text(words, token, r.about)
    show = show and show .. "\n" .. menu or menu
  end
  return show and { show = show } or nil
end

return M
