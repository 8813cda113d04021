-- Writes what the documents take from the code: recipes/README.md, and in README.md the
-- parts between <!-- NAME: make docs --> and <!-- end -->. `make docs`.
--   nibble scripts/docs.lua [--check]       --check: writes nothing, exit status 1 when something is stale
local manual = require "nibble.cli.manual"
local checkpoint = require "nibble.checkpoint"

package.path = "scripts/gpu-check.d/?.lua;" .. package.path
local function gpu_figures() return require("readme_table").text("cuda/results", ".") end

local parts = { ["recipe keys"] = manual.recipe_keys, ["GPU figures"] = gpu_figures }

local function filled(text)
  return (text:gsub("(<!%-%- ([%w ]+): make docs %-%->\n).-(<!%-%- end %-%->)", function(from, name, to)
    assert(parts[name], "README.md: there is no part called " .. name)
    return from .. parts[name]() .. to
  end))
end

local stale = {}
local function settle(path, text)
  if checkpoint.read_file(path) == text then return end
  stale[#stale + 1] = path
  if arg[1] ~= "--check" then assert(checkpoint.write_file(path, text)) end
end

settle("recipes/README.md", manual.recipes_page())
settle("README.md", filled(assert(checkpoint.read_file "README.md")))
for _, path in ipairs(stale) do print(path .. (arg[1] == "--check" and " is stale: make docs" or " written")) end
if arg[1] == "--check" and #stale > 0 then os.exit(1) end
