-- manual: the man page and the recipe reference, written from the tables that the
-- program itself reads: commands and their options, a recipe's keys, methods, schemes.
local M = {}

-- ---- Markdown ---------------------------------------------------------------------

local function cell(text) return (tostring(text):gsub("|", "\\|"):gsub("\n", " ")) end

local function markdown_table(head, rows)
  local out = { "| " .. table.concat(head, " | ") .. " |", "|" .. ("---|"):rep(#head) }
  for _, row in ipairs(rows) do
    local cells = {}
    for i = 1, #head do cells[i] = cell(row[i] or "") end
    out[#out + 1] = "| " .. table.concat(cells, " | ") .. " |"
  end
  return table.concat(out, "\n") .. "\n"
end

local function ticked(names)
  local out = {}
  for i, name in ipairs(names) do out[i] = "`" .. tostring(name) .. "`" end
  return table.concat(out, ", ")
end

--- recipe_keys() -> Markdown: a recipe's keys with their types and meaning, from recipe.reference().
function M.recipe_keys()
  local rows = {}
  for _, row in ipairs(require("nibble.recipe").reference()) do
    rows[#rows + 1] = { "`" .. row.key .. "`", table.concat(row.types, ", "), row.in_rules and "yes" or "", row.doc }
  end
  return markdown_table({ "key", "type", "in rules too", "meaning" }, rows)
end

-- What an option of a method takes: its words, or its range and default.
local function takes(option)
  if option.values then return ticked(option.values) .. " (" .. tostring(option.default) .. ")" end
  if option.min then return ("%g to %g (%s)"):format(option.min, option.max, tostring(option.default)) end
  return ("%s (%s)"):format(option.type, tostring(option.default))
end

local function methods()
  local quant, names, rows = require "nibble.quant", {}, {}
  for name in pairs(quant.methods) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local method = quant.methods[name]
    rows[#rows + 1] = { "`" .. name .. "`", "", "", method.title }
    for _, o in ipairs(method.options or {}) do rows[#rows + 1] = { "", "`" .. o.name .. "`", takes(o), o.doc } end
  end
  return markdown_table({ "method", "option", "takes (default)", "meaning" }, rows)
end

local function schemes()
  local presets, scheme, rows = require "nibble.scheme_presets", require "nibble.scheme", {}
  for _, preset in ipairs(presets.list) do
    local s = scheme.parse(preset.name)
    rows[#rows + 1] = { "`" .. preset.name .. "`", s.type, s.bits, s.symmetric and "yes" or "no",
      s.strategy .. (s.group and s.group > 0 and " " .. s.group or "") .. (s.block and " " .. table.concat(s.block, "×") or ""),
      s.activations and ("%s %d %s"):format(s.activations.type, s.activations.bits, s.activations.strategy) or "as they are" }
  end
  return markdown_table({ "scheme", "weights", "bits", "symmetric", "a scale per", "inputs" }, rows)
end

-- The first comment of a recipe's text, as one line.
local function about(text)
  local out = {}
  for line in text:gmatch "([^\n]*)\n" do
    local said = line:match "^%-%- ?(.*)$"
    if not said or said == "" then break end
    out[#out + 1] = said
  end
  return table.concat(out, " ")
end

local function shipped()
  local recipes, names, rows = rawget(_G, "NIBBLE_RECIPES") or {}, {}, {}
  for name in pairs(recipes) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local r = assert(require("nibble.recipe").load(name))
    rows[#rows + 1] = { ("[`%s`](%s.lua)"):format(name, name), r.scheme or "", (r.output or {}).format or "compressed-tensors",
      about(recipes[name]) }
  end
  return markdown_table({ "recipe", "scheme", "format", "what it is for" }, rows)
end

--- recipes_page() -> Markdown of recipes/README.md. Needs the executable, which carries the recipes.
function M.recipes_page()
  return [[
# Recipes

A recipe is a Lua file that returns a table: which modules are quantized, how, and what is written. It sees `math`, `string`
and `recipe` (to inherit: `local r = recipe "any-w4a16"; r.group = 64; return r`), nothing else. The recipes here ship with
nibble and go by name: `nibble run any-w4a16 MODEL --out DIR`; `nibble plan` shows what one would do. Copy one to begin your own,
or change it in passing: `--set group=64 --set output.format=awq`.

This page is written by `make docs` from the tables that nibble itself reads.

## What ships

]] .. shipped() .. [[

## The keys

An unknown key is refused with a suggestion; so is a linear layer that nothing names. Patterns are globs over whole module
names (`*` also matches dots), or `re:` and a Lua pattern, which is searched. In `rules` the first that matches wins; one that
names another scheme keeps only the recipe's `group` of its other parts.

]] .. M.recipe_keys() .. [[

## Methods

]] .. methods() .. [[

A function is a method too: `method = function(w, scheme, options, out) … end` with `w` f32 [n,k] and `out` holding `codes`,
`scales`, `zeros`, `n`, `k`, `groups`, `group` and `round`; see [`llama-w4a16-lua-method`](llama-w4a16-lua-method.lua).

## Schemes

]] .. schemes()
end

-- ---- the man page -------------------------------------------------------------------

-- Text as roff: backslashes and hyphens as such, no line that looks like a request.
local function roff(text)
  text = tostring(text):gsub("\\", "\\e"):gsub("%-", "\\-")
  return (text:gsub("^([.'])", "\\&%1"):gsub("\n([.'])", "\n\\&%1"))
end

local function item(out, term, text)
  out[#out + 1] = ".TP\n.B " .. roff(term) .. "\n" .. roff(text)
end

-- PIECES that the user fills in, set apart.
local function synopsis(usage)
  return (roff(usage):gsub("%f[%w]%u[%u]+%f[%W]", "\\fI%0\\fR"))
end

local function command_section(out, command, options)
  out[#out + 1] = ".SS " .. roff(command.name) .. "\n" .. synopsis(options.usage(command))
  out[#out + 1] = ".PP\n" .. roff(command.summary:gsub("^%l", string.upper) .. ".")
  if command.notes then out[#out + 1] = ".PP\n" .. roff(command.notes) end
  for _, option in ipairs(command.options or {}) do
    if not option.internal then item(out, option[1] .. (option[2] and " " .. option[2] or ""), option.doc) end
  end
end

M.environment = {
  { "NB_CPU", "portable, avx2 or avx512: the instruction sets that may be used" },
  { "OMP_NUM_THREADS", "threads to use, as --threads" },
  { "NO_COLOR", "when set: no colours" },
  { "PAGER", "what shows long output in a session" },
  { "VISUAL, EDITOR", "what :edit opens" },
  { "NIBBLE_DEBUG", "when set: the stack of an error" },
  { "NIBBLE_JIT", "off: Lua is interpreted, not compiled" },
  { "NIBBLE_LUA", "a folder to take the Lua modules from instead of those in the executable" },
}

M.status = {
  { "0", "done" },
  { "1", "a bound of the recipe's accept was missed, or a check or a job failed" },
  { "2", "wrong use or wrong input" },
  { "130", "interrupted; run and sweep go on with the same command" },
}

--- man() -> nibble(1) as roff, from the commands' own tables.
function M.man()
  local cli, options = require "nibble.cli", require "nibble.cli.options"
  local out = { (".TH NIBBLE 1 \"\" \"nibble %s\" \"User Commands\""):format(require("nibble.ffi").version) }
  out[#out + 1] = ".SH NAME\nnibble \\- a workbench for quantizing language\\-model checkpoints"
  out[#out + 1] = ".SH SYNOPSIS"
  for i, line in ipairs(cli.uses) do
    out[#out + 1] = (i > 1 and ".br\n" or "") .. synopsis("nibble " .. line[1])
  end
  out[#out + 1] = ".SH DESCRIPTION\n" .. roff("nibble opens a checkpoint, shows what is in it, plans and runs a quantization or a "
    .. "conversion from a Lua recipe, proves the result bit for bit or measures its error, says which kernel each layer would get "
    .. "on which device and why, evaluates models, and does all of that in batches. Without a command it is a session in which "
    .. "its parts are Lua values; ?NAME tells about each.")
  out[#out + 1] = ".SH COMMANDS"
  for _, name in ipairs(cli.commands) do command_section(out, cli.command(name), options) end
  out[#out + 1] = ".SS Every command"
  for _, option in ipairs(options.common) do item(out, option[1] .. (option[2] and " " .. option[2] or ""), option.doc) end
  out[#out + 1] = ".SH RECIPES\n" .. roff("A recipe is a Lua file that returns a table with these keys; (r): rules may say it too.")
  for _, row in ipairs(require("nibble.recipe").reference()) do
    item(out, row.key .. (row.in_rules and " (r)" or ""), table.concat(row.types, " or ") .. ": " .. row.doc)
  end
  for _, section in ipairs { { "EXIT STATUS", M.status }, { "ENVIRONMENT", M.environment } } do
    out[#out + 1] = ".SH " .. section[1]
    for _, row in ipairs(section[2]) do item(out, row[1], row[2]) end
  end
  out[#out + 1] = ".SH FILES"
  item(out, "$XDG_STATE_HOME/nibble/history", "what was typed in sessions (~/.local/state/nibble/history)")
  item(out, "DIR/nibble.json", "the certificate in a folder that nibble wrote: a hash of every module, the recipe's bounds")
  return table.concat(out, "\n") .. "\n"
end

return M
