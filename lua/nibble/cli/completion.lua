-- completion: what a shell needs to complete nibble's commands, options and their values.
local hint = require("nibble.text").hint

local M = {
  summary = "completion of nibble's commands for a shell",
  notes = "bash:  source <(nibble completion bash)\nzsh:   nibble completion zsh > a folder of $fpath, as _nibble",
  args = { { "SHELL", words = function() return { "bash", "zsh" } end } },
}

local function sorted(set)
  local out = {}
  for name in pairs(set) do out[#out + 1] = name end
  table.sort(out)
  return out
end

-- What stands for one of a set of words wherever it is asked for.
local sets = {
  RECIPE = function() return sorted(rawget(_G, "NIBBLE_RECIPES") or {}) end,
  FORMAT = function() return require("nibble.formats").names() end,
}

-- The words that an argument or an option's value may be, and what else: "files", "dirs", "lua" or nil.
local function takes(what)
  local placeholder = what[1]:match "^%-%-" and what[2] or what[1]
  local words = what.values or what.words and what.words() or sets[placeholder] and sets[placeholder]() or {}
  local else_files = { DIR = "dirs", MODEL = "files", FILE = "files", RECIPE = "lua", A = "files", B = "files" }
  return words, else_files[placeholder]
end

-- Commands, each with its arguments and all of its options.
local function commands()
  local cli, options, out = require "nibble.cli", require "nibble.cli.options", {}
  for i, name in ipairs(cli.commands) do
    local c = cli.command(name)
    out[i] = { name = name, summary = c.summary, args = c.args or {}, options = {} }
    for _, list in ipairs { c.options or {}, options.common } do
      for _, option in ipairs(list) do
        if not option.internal then table.insert(out[i].options, option) end
      end
    end
  end
  return out
end

-- ---- bash ---------------------------------------------------------------------------

local function bash_reply(words, else_files)
  local out = {}
  if #words > 0 then out[1] = ("COMPREPLY=($(compgen -W '%s' -- \"$cur\"))"):format(table.concat(words, " ")) end
  local files = { files = "-f", dirs = "-d", lua = "-f -X '!*.lua'" }
  if else_files then
    out[#out + 1] = ("COMPREPLY+=($(compgen %s -- \"$cur\"))"):format(files[else_files])
    out[#out + 1] = "compopt -o filenames"
    if else_files == "lua" then out[#out + 1] = 'COMPREPLY+=($(compgen -d -- "$cur"))' end
  end
  return #out > 0 and table.concat(out, "; ") or ":"
end

local function bash_command(c)
  local out, names = { ("    %s)"):format(c.name), "      case $prev in" }, {}
  for i, option in ipairs(c.options) do
    names[i] = option[1]
    if option[2] then out[#out + 1] = ("        %s) %s; return ;;"):format(option[1], bash_reply(takes(option))) end
  end
  out[#out + 1] = "      esac"
  out[#out + 1] = ("      case $cur in -*) COMPREPLY=($(compgen -W '%s' -- \"$cur\")); return ;; esac"):format(table.concat(names, " "))
  out[#out + 1] = "      case $at in"
  for i, arg in ipairs(c.args) do
    out[#out + 1] = ("        %s) %s ;;"):format(arg.many and "*" or i, bash_reply(takes(arg)))
  end
  out[#out + 1] = "      esac ;;"
  return table.concat(out, "\n")
end

local function with_value(list)
  local set = {}
  for _, c in ipairs(list) do
    for _, option in ipairs(c.options) do if option[2] then set[option[1]] = true end end
  end
  return table.concat(sorted(set), "|")
end

--- bash() -> a script that bash sources.
function M.bash()
  local list = commands()
  local names, cases = {}, {}
  for i, c in ipairs(list) do names[i], cases[i] = c.name, bash_command(c) end
  return ([[
# bash completion of nibble, written by `nibble completion bash`.
_nibble() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= at=1 i
  COMPREPLY=()
  # the command, and which of its arguments this word is
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      %s) ((i++)) ;;
      -*) ;;
      *) if [ -z "$command" ]; then command=${COMP_WORDS[i]}; else ((at++)); fi ;;
    esac
  done
  case $command in
    "")
      case $cur in
        -*) COMPREPLY=($(compgen -W '--help --version --threads -e' -- "$cur")) ;;
        *) COMPREPLY=($(compgen -W '%s' -- "$cur") $(compgen -f -- "$cur")); compopt -o filenames ;;
      esac ;;
%s
  esac
}
complete -F _nibble nibble
]]):format(with_value(list), table.concat(names, " "), table.concat(cases, "\n"))
end

-- ---- zsh ------------------------------------------------------------------------------

-- Text inside '…:…[…]' of _arguments.
local function zsh_text(text) return (text:gsub("'", "'\\''"):gsub("([%[%]:])", "\\%1"):gsub("\n", " ")) end

local function zsh_action(what)
  local words, else_files = takes(what)
  local files = { files = "_files", dirs = "_files -/", lua = '_files -g "*.lua(-.)"' }
  local list = #words > 0 and "(" .. table.concat(words, " ") .. ")" or nil
  if list and else_files then return ('{_alternative "words::(%s)" "files::%s"}'):format(table.concat(words, " "),
    (files[else_files]:gsub('"', '\\"'))) end
  return list or else_files and files[else_files] or " "
end

local function zsh_command(c)
  local out = { ("        %s)"):format(c.name), "          _arguments \\" }
  for _, option in ipairs(c.options) do
    out[#out + 1] = ("            '%s%s[%s]%s' \\"):format(option.many and "*" or "", option[1], zsh_text(option.doc),
      option[2] and (":%s:%s"):format(option[2], zsh_action(option)) or "")
  end
  for i, arg in ipairs(c.args) do
    out[#out + 1] = ("            '%s:%s:%s' \\"):format(arg.many and "*" or (arg.optional and i .. ":" or i), arg[1], zsh_action(arg))
  end
  out[#out] = out[#out]:gsub(" \\$", " ;;")
  return table.concat(out, "\n")
end

--- zsh() -> a function for a folder of $fpath.
function M.zsh()
  local names, cases = {}, {}
  for i, c in ipairs(commands()) do
    names[i], cases[i] = ("      '%s:%s'"):format(c.name, zsh_text(c.summary)), zsh_command(c)
  end
  return ([[
#compdef nibble
# zsh completion of nibble, written by `nibble completion zsh`.
_nibble() {
  local context state state_descr line commands
  typeset -A opt_args
  _arguments -C '--help[what there is]' '--version[which nibble this is]' '--threads[threads to use]:N: ' \
    '-e[a piece of Lua]:CODE: ' '1: :->command' '*:: :->rest'
  case $state in
    command)
      commands=(
%s
      )
      _describe command commands
      _files ;;
    rest)
      case $line[1] in
%s
        *) _files ;;
      esac ;;
  esac
}
if [ "$funcstack[1]" = _nibble ]; then _nibble "$@"; else compdef _nibble nibble; fi
]]):format(table.concat(names, "\n"), table.concat(cases, "\n"))
end

function M.run(values)
  local shell = values.shell
  if shell ~= "bash" and shell ~= "zsh" then
    error(("completion knows bash and zsh, found %q%s"):format(shell, hint(shell, { "bash", "zsh" })), 0)
  end
  io.write(M[shell]())
  return 0
end

return M
