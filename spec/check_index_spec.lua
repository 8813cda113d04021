-- check on files and index: what opening refuses is told, all of it at once, and what it passes over.
local nb = require "nibble"
local check = require "spec.support.check"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local found = check.found

setup(check.begin)
teardown(check.finish)

local SHARDED, PLAIN = "spec/models/parity/qwen3-moe-sharded", "spec/models/parity/llama"
local FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
local INDEX = "model.safetensors.index.json"

-- A copy of the sharded model whose index is changed.
local function reindexed(change)
  local dir = check.broken(SHARDED)
  local index = assert(nb.json.decode(files.read(dir .. "/" .. INDEX)))
  change(index, dir)
  files.write(dir .. "/" .. INDEX, nb.json.encode(index))
  return dir
end

-- A copy of the plain model whose header is changed as text.
local function reheaded(change)
  local dir = check.broken(PLAIN)
  local text = files.read(dir .. "/model.safetensors")
  local n = 0
  for i = 8, 1, -1 do n = n * 256 + text:byte(i) end
  local header = change(text:sub(9, 8 + n))
  files.write(dir .. "/model.safetensors", files.safetensors(header, text:sub(9 + n)))
  return dir
end

describe("check's index rules", function()
  it("find nothing in what is right", function()
    assert.same({}, (found(check.broken(SHARDED))))
    assert.same({}, (found(check.broken(PLAIN))))
  end)

  it("tell index entries that no header has, files' tensors that it lacks, wrong files and a wrong total, all at once", function()
    local dir = reindexed(function(index)
      local map = index.weight_map
      map["model.ghost.weight"] = FIRST
      map["model.norm.weight"] = nil
      map["model.embed_tokens.weight"] = map["model.embed_tokens.weight"] == FIRST and SECOND or FIRST
      index.metadata.total_size = 1
    end)
    assert.is_nil(nb.open(dir)) -- which says the first of them
    local lines, list = found(dir)
    assert.same({ "error index-wrong-file model.embed_tokens.weight", "error index-stale model.ghost.weight",
      "error index-unlisted model.norm.weight" }, lines)
    for _, f in ipairs(list) do
      assert.same({ kind = "index" }, f.repair)
      assert.equal("safetensors", f.source)
      assert.is_string(f.fix)
    end
    assert.same({ "warning index-total" .. " " .. INDEX }, (function()
      local l, f = found(reindexed(function(index) index.metadata.total_size = 1 end))
      return { l[1] .. (f[1].file and "" or " " .. INDEX) }
    end)())
  end)

  it("tell a shard that is missing, and not its tensors one by one", function()
    local dir = check.broken(SHARDED)
    os.remove(dir .. "/" .. SECOND)
    local lines, list = found(dir)
    assert.same({ "error missing-file " .. SECOND }, lines)
    assert.matches("puts %d+ tensors into", list[1].says)
    os.remove(dir .. "/" .. INDEX) -- without an index the numbers say it
    assert.same({ "error missing-file " .. SECOND }, (found(dir)))
  end)

  it("tell tensors that two shards hold, as one finding", function()
    local dir = check.broken(SHARDED)
    local a, b = editor.load(dir .. "/" .. FIRST), editor.load(dir .. "/" .. SECOND)
    for i = 1, 3 do table.insert(b, a[i]) end
    files.write(dir .. "/" .. SECOND, editor.bytes(b))
    local lines, list = found(dir)
    assert.same({ ("error duplicate-tensor %s ×3"):format(list[1].tensor) }, lines)
    assert.equal(3, #list[1].tensors)
  end)

  it("tell a damaged index", function()
    local dir = check.broken(SHARDED)
    files.write(dir .. "/" .. INDEX, "{")
    assert.same({ "error index-damaged " .. INDEX }, (found(dir)))
    files.write(dir .. "/" .. INDEX, '{"weight_map": []}')
    assert.same({ "error index-damaged " .. INDEX }, (found(dir)))
    local lines = found(reindexed(function(index) index.weight_map["model.norm.weight"] = "../x.safetensors" end))
    assert.equal("error index-damaged model.norm.weight", lines[1])
  end)

  it("tell files beside the index, and shards without one", function()
    local dir = check.broken(SHARDED)
    files.write(dir .. "/model.safetensors", files.read(PLAIN .. "/model.safetensors"))
    local lines, list = found(dir)
    assert.same({ "warning stray-file" }, lines)
    assert.matches("lies beside model.safetensors.index.json", list[1].says)
    os.remove(dir .. "/model.safetensors")
    files.write(dir .. "/consolidated.safetensors", files.read(PLAIN .. "/model.safetensors"))
    assert.same({ "note stray-file consolidated.safetensors" }, (found(dir)))
    os.remove(dir .. "/consolidated.safetensors")
    os.remove(dir .. "/" .. INDEX)
    assert.same({ "warning index-absent" }, (found(dir)))
  end)

  it("tell a gap in the shards' numbers", function()
    local dir = reindexed(function(index, dir)
      for _, name in ipairs(nb.json.keys(index.weight_map)) do
        index.weight_map[name] = index.weight_map[name]:gsub("of%-00002", "of-00003")
      end
      for i = 1, 2 do
        os.rename(("%s/model-%05d-of-00002.safetensors"):format(dir, i), ("%s/model-%05d-of-00003.safetensors"):format(dir, i))
      end
    end)
    assert.same({ "warning shard-numbers model-00003-of-00003.safetensors" }, (found(dir)))
  end)

  it("tell every overlap and gap of a header, and a file that was cut", function()
    local dir = reheaded(function(h) -- two tensors moved over their neighbours
      local count = 0
      return (h:gsub('"data_offsets":%[(%d+),(%d+)%]', function(a, b)
        count = count + 1
        if count == 2 or count == 4 then return ('"data_offsets":[%d,%d]'):format(a - 2, b - 2) end
      end))
    end)
    local lines, list = found(dir)
    local overlaps = 0
    for i, line in ipairs(lines) do
      assert.matches("^error header%-", line)
      if list[i].rule == "header-overlap" then overlaps = overlaps + list[i].count end
    end
    assert.is_true(overlaps >= 2, table.concat(lines, "\n"))
    dir = check.broken(PLAIN)
    files.write(dir .. "/model.safetensors", files.read(dir .. "/model.safetensors"):sub(1, -1001))
    lines, list = found(dir)
    assert.matches("^error truncated%-file ", lines[1])
    assert.matches("but the file holds", list[1].says)
    assert.equal(1, #lines)
  end)

  it("tell an unknown dtype, a size that is wrong, and a header that is none", function()
    assert.matches("^error header%-entry ", found(reheaded(function(h) return (h:gsub('"BF16"', '"BF17"', 1):gsub('"F32"', '"F33"', 1)) end))[1])
    local lines, list = found(reheaded(function(h) return (h:gsub('"shape":%[%d+,', '"shape":[3,', 1)) end))
    assert.matches("^error header%-entry ", lines[1])
    assert.matches("its data_offsets give", list[1].says)
    lines = found(reheaded(function(h) return h:sub(1, -3) end))
    assert.same({ "error damaged-file model.safetensors" }, lines)
  end)

  it("tell a head that is tied and stored", function()
    local dir = check.broken("spec/models/tiny-llama", { config = function(c) c.tie_word_embeddings = true end })
    assert.same({ "warning tied-head lm_head" }, (found(dir)))
  end)

  it("tell metadata that no loader knows", function()
    assert.same({ "warning metadata-format model.safetensors" }, (found(reheaded(function(h)
      return (h:gsub('^{"__metadata__":{[^}]*},', "{"):gsub("^{", '{"__metadata__":{"made_by":"me"},', 1))
    end))))
  end)

  it("leave a path that holds no checkpoint to the message of opening", function()
    local result, msg = nb.check.run(check.fresh())
    assert.is_nil(result)
    assert.matches("doesn't exist", msg)
    os.execute("mkdir " .. check.fresh())
    assert.is_nil((nb.check.run "spec/support"))
  end)
end)
