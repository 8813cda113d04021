-- What the specs of bad input share: damaged checkpoints, and the shape that every refusal has.
local assert = require "luassert"
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local command = require "spec.support.command"
local editor = require "spec.support.editor"
local files = require "spec.support.files"

local M = { plain_model = "spec/models/parity/llama", language_model = "spec/models/tiny-llama" }

local bases, made

--- begin(), finish(): a spec's setup and teardown: a folder for everything, an ids file, a recipe.
function M.begin()
  M.root, bases, made = files.temporary(), {}, 0
  M.ids = M.file("ids.txt", ("1 2 3 4 5 6 7 8 9 10 "):rep(4))
  M.recipe = M.file("simple.lua", 'return { name = "simple", scheme = "W4A16", group = 32 }')
end

function M.finish() os.execute("rm -rf " .. M.root) end

--- fresh() -> a path where nothing is yet.
function M.fresh()
  made = made + 1
  return ("%s/%d"):format(M.root, made)
end

function M.file(name, text)
  local path = M.root .. "/" .. name
  files.write(path, text)
  return path
end

--- base(format) -> a checkpoint's folder, made once by nibble itself. Not to be changed.
function M.base(format)
  if not bases[format] then
    local recipe = assert(nb.recipe { name = "base", scheme = "W4A16_ASYM", group = 32, scale_dtype = "f16",
      output = { format = format } })
    local dir = ("%s/base-%s"):format(M.root, format)
    assert(assert(nb.plan(recipe, assert(nb.open(M.plain_model)))):run(dir))
    bases[format] = dir
  end
  return bases[format]
end

--- damaged(what, {weights=, config=}) -> the folder of a changed copy; what: "plain", a format, or a folder.
function M.damaged(what, change)
  local from = what == "plain" and M.plain_model or what:find "/" and what or M.base(what)
  return editor.copy(from, M.fresh(), change)
end

--- refused(arguments, pattern [, out [, status]]): one sentence on stderr that the pattern matches, status 2,
-- nothing on stdout, nothing at out. HOSTILE_SHOW=1 prints what every case says.
function M.refused(arguments, pattern, out, before)
  local r = command.run(arguments, { before = before })
  local shown = ("nibble %s\nstatus %s\nstdout: %s\nstderr: %s"):format(arguments, r.status, r.out:sub(1, 300), r.err)
  if os.getenv "HOSTILE_SHOW" then io.stderr:write("\n", shown) end
  assert.equal(2, r.status, shown)
  assert.equal("", r.out, shown)
  assert.equal(1, #r.lines, shown)
  assert.matches("^nibble: ", r.lines[1], shown)
  assert.is_nil(r.lines[1]:match "traceback" or r.lines[1]:match "a mistake in nibble", shown)
  assert.is_truthy(r.lines[1]:match(pattern), "expected " .. pattern .. "\n" .. shown)
  if out then assert.is_nil(checkpoint.exists(out), shown) end
end

--- run_of, convert_of, eval_of: a checkpoint is refused by the command.
function M.run_of(model, pattern)
  local out = M.fresh()
  M.refused(("run %s %s --out %s"):format(M.recipe, model, out), pattern, out)
end

function M.convert_of(model, format, pattern)
  local out = M.fresh()
  M.refused(("convert %s --to %s --out %s"):format(model, format, out), pattern, out)
end

function M.eval_of(model, pattern)
  M.refused(("eval %s --ids %s --context 8"):format(model, M.ids), pattern)
end

return M
