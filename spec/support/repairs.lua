-- For specs of repairs: broken checkpoints in a folder of the spec's own, what mending them gives, what is refused.
local assert = require "luassert"
local nb = require "nibble"
local checkpoint = require "nibble.checkpoint"
local editor = require "spec.support.editor"
local files = require "spec.support.files"

local M = {}
local root, made, sharded

-- At the begin and the end of a spec file.
function M.setup() root, made, sharded = files.temporary(), 0, nil end
function M.teardown() files.remove(root) end

function M.fresh()
  made = made + 1
  return ("%s/%d"):format(root, made)
end

function M.broken(from, change) return editor.copy("spec/" .. from, M.fresh(), change) end

function M.without_config(c) c.quantization_config = nil end

-- A checkpoint's folder of these tensors (name -> tensor) in shards: file -> names, with config.json.
function M.folder(tensors, config)
  local dir = M.fresh()
  assert(checkpoint.mkdir(dir))
  local list = {}
  for name, t in pairs(tensors) do list[#list + 1] = { name = name, dtype = t:type(), shape = t:size() } end
  table.sort(list, function(a, b) return a.name < b.name end)
  local w = assert(checkpoint.writer { dir = dir, tensors = list })
  for name, t in pairs(tensors) do assert(w:put(name, t)) end
  assert(w:finish())
  if config then files.write(dir .. "/config.json", nb.json.encode(config, { indent = 2 })) end
  return dir
end

-- tiny-llama in shards with an index.
function M.shards()
  if not sharded then
    sharded = M.fresh()
    local ck = assert(nb.open "spec/models/tiny-llama")
    assert(checkpoint.mkdir(sharded))
    local w = assert(checkpoint.writer { dir = sharded, tensors = ck.tensors, shard_bytes = 3e6 })
    for _, t in ipairs(ck.tensors) do assert(w:put(t.name, assert(ck:tensor(t.name)))) end
    assert(w:finish())
    assert(checkpoint.copy_file("spec/models/tiny-llama/config.json", sharded .. "/config.json"))
  end
  local dir = M.fresh()
  os.execute(("cp -r %s %s"):format(sharded, dir))
  return dir
end

function M.edit_index(dir, fn)
  local path = dir .. "/model.safetensors.index.json"
  local index = checkpoint.exists(path) and assert(nb.json.decode(files.read(path))) or { metadata = {}, weight_map = {} }
  fn(index, index.weight_map)
  files.write(path, nb.json.encode(index))
end

function M.mended(dir, options, expected)
  local plan = assert(nb.repair.plan(dir, options))
  assert.same({}, plan.cannot)
  local out = M.fresh()
  local result = assert(plan:run(out))
  for _, pattern in ipairs(type(expected) == "table" and expected or { expected }) do assert.matches(pattern, tostring(plan)) end
  local again = assert(nb.repair.plan(out, options))
  assert.same({ out:match "[^/]*$" .. ": nothing to repair" }, again:lines())
  return assert(nb.open(out)), result, plan
end

function M.same_tensors(a, b, but)
  assert.equal(a.count, b.count)
  for _, info in ipairs(a.tensors) do
    if not (but and info.name:find(but)) then
      assert.is_true(assert(a:tensor(info.name)):equal(assert(b:tensor(info.name))), info.name)
    end
  end
end

-- Whether the check finds nothing that a repair is offered for.
function M.nothing_to_mend(dir)
  for _, f in ipairs(assert(nb.check.run(dir)).findings) do
    assert.is_true(f.repair == nil or f.repair.kind == "padding", f.says)
  end
end

-- Whether the check offers this kind of repair.
function M.offered(dir, kind)
  for _, f in ipairs(assert(nb.check.run(dir)).findings) do
    if f.repair and f.repair.kind == kind then return true end
  end
  return false
end

function M.refused(dir, options, pattern)
  local plan, msg = nb.repair.plan(dir, options)
  if not plan then return assert.matches(pattern, msg) end
  assert.equal(0, #plan.changes, tostring(plan))
  assert.matches(pattern, tostring(plan))
  local none, why, code = plan:run(M.fresh())
  assert.is_nil(none)
  assert.equal("einval", code)
  assert.matches("nothing to repair, so nothing was written", why)
end

return M
