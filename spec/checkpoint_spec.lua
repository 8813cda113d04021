-- Checkpoints as folders: which files, config, index against headers (FORMATS 1).
local nb = require "nibble"
local files = require "spec.support.files"

local dir
before_each(function() dir = files.temporary() end)
after_each(function() files.remove(dir) end)

-- A file with one u8 tensor of 4 bytes for each name.
local function shard(...)
  local header = {}
  for i, name in ipairs { ... } do
    header[i] = ('"%s":{"dtype":"U8","shape":[4],"data_offsets":[%d,%d]}'):format(name, 4 * i - 4, 4 * i)
  end
  return files.safetensors("{" .. table.concat(header, ",") .. "}", ("abcd"):rep(#header))
end

local function put(name, text) files.write(dir .. "/" .. name, text) end
local A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
local INDEX = "model.safetensors.index.json"

local function index(map, total)
  put(INDEX, nb.json.encode { metadata = { total_size = total or 12 }, weight_map = map })
end

local function refused(pattern, code)
  local ck, msg, c = nb.open(dir)
  assert.is_nil(ck)
  assert.matches(pattern, msg)
  assert.equal(code or "eformat", c)
end

describe("checkpoint", function()
  it("opens the small models", function()
    local ck = assert(nb.open "spec/models/tiny-llama")
    assert.equal("tiny-llama", ck.name)
    assert.equal(39, ck.count)
    assert.equal("LlamaForCausalLM", ck.config.architectures[1])
    assert.same({ "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json" }, ck.other_files)
    assert.is_nil(ck.quantization)
    assert.equal("bf16", ck:tensor("lm_head.weight"):type())
    ck = assert(nb.open "spec/models/parity/qwen3-moe-sharded")
    assert.equal(2, #ck.files)
    assert.same({}, ck.warnings)
    assert.equal(#ck.tensors, ck.count)
    for _, t in ipairs(ck.tensors) do assert.equal(t.bytes, ck:tensor(t.name):bytes()) end
  end)

  it("joins shards by their index", function()
    put(A, shard("a", "b"))
    put(B, shard "c")
    index { a = A, b = A, c = B }
    local ck = assert(nb.open(dir))
    assert.same({ A, B }, ck.files)
    assert.equal(B, ck:info("c").file)
    assert.same({}, ck.warnings)
    assert.same({ "a", "b", "c" }, { ck.tensors[1].name, ck.tensors[2].name, ck.tensors[3].name })
  end)

  it("refuses an index and files that disagree, in both directions", function()
    put(A, shard("a", "b"))
    put(B, shard "c")
    index { a = A, b = A, c = "model-00003-of-00002.safetensors" }
    refused("weight_map puts 1 tensors into .*/model%-00003%-of%-00002.safetensors, which doesn't exist; get that file too", "eio")
    index { a = A, b = A, c = B, d = B }
    refused("weight_map puts tensor d into model%-00002%-of%-00002.safetensors, whose header doesn't have it")
    index { a = A, c = B }
    refused("tensor b of model%-00001%-of%-00002.safetensors is not in the weight_map; the index is stale")
    index { a = A, b = B, c = B }
    refused("puts tensor b into model%-00002%-of%-00002.safetensors, but it lies in model%-00001")
    put(B, shard("c", "a"))
    index { a = A, b = A, c = B }
    refused("tensor a is in both .*model%-00001%-of%-00002.safetensors and .*model%-00002%-of%-00002.safetensors")
  end)

  it("keeps to the folder", function()
    for _, name in ipairs { "../x.safetensors", "/etc/x.safetensors", "a/../../x", "..", "", "a\\..\\x", "a\0b" } do
      index { a = name }
      refused("outside the checkpoint's folder; refused")
    end
    assert(nb.checkpoint.mkdir(dir .. "/layers"))
    put("layers/..a.safetensors", shard "a")
    index({ a = "layers/..a.safetensors" }, 4)
    assert.equal(1, assert(nb.open(dir)).count)
  end)

  it("refuses a damaged index with line and column", function()
    put(INDEX, '{"weight_map": {\n"a": 3}}')
    refused "weight_map: the file of tensor a must be a string"
    put(INDEX, '{"weight_map": {\n"a": "x" "b"}}')
    refused "index.json:2:10: expected ',' or '}', found '\"'"
    put(INDEX, '{"metadata": {}}')
    refused "has no weight_map"
    put(INDEX, '{"weight_map": []}')
    refused "weight_map must be an object"
    put(INDEX, '[]')
    refused "1:1: expected an object"
    put("model.safetensors", shard "a")
    put(INDEX, '{"weight_map": {"a": "model.safetensors", "a": "model.safetensors"}}')
    refused "weight_map has the key a twice"
  end)

  it("warns of a wrong total_size and of a stray model.safetensors", function()
    put(A, shard("a", "b"))
    put(B, shard "c")
    index({ a = A, b = A, c = B }, 13)
    assert.matches("total_size is 13, but the tensors have 12 bytes", assert(nb.open(dir)).warnings[1])
    put(INDEX, nb.json.encode { metadata = { total_size = "12" }, weight_map = { a = A, b = A, c = B } })
    assert.same({}, assert(nb.open(dir)).warnings)
    put("model.safetensors", shard "z")
    local ck = assert(nb.open(dir))
    assert.matches("model.safetensors lies beside model.safetensors.index.json", ck.warnings[1])
    assert.is_nil(ck:info "z")
  end)

  it("opens shards without an index if all are there", function()
    put(A, shard("a", "b"))
    refused("shard 2 of 2 is missing %(model%-00002%-of%-00002.safetensors%)", "eio")
    put(B, shard "c")
    local ck = assert(nb.open(dir))
    assert.equal(3, ck.count)
    assert.matches("2 numbered shards, but no model.safetensors.index.json", ck.warnings[1])
  end)

  it("says what a folder holds instead", function()
    refused "holds no checkpoint; expected model.safetensors"
    put("pytorch_model.bin", "x")
    refused("holds no .safetensors file, but pytorch_model.bin", "eunsupported")
    put("one.safetensors", shard "a")
    assert.equal(1, assert(nb.open(dir)).count)
    put("two.safetensors", shard "a")
    refused "holds 2 .safetensors files and neither model.safetensors nor an index"
    local ck, msg, code = nb.open(dir .. "/nothing")
    assert.is_nil(ck)
    assert.matches("doesn't exist; expected a checkpoint's folder", msg)
    assert.equal("eio", code)
    assert.error_matches(function() nb.open(nil) end, "expected a path, found nil")
  end)

  it("reads config.json, with line and column when it is damaged", function()
    put("model.safetensors", shard "a")
    assert.is_nil(assert(nb.open(dir)).config)
    put("config.json", '{"a": 1,\n "b": }')
    refused "config.json:2:7: not JSON: expected a value, found '}'"
    put("config.json", "[1]")
    refused "config.json: expected a JSON object"
    put("config.json", '{"model_type": "llama"}')
    assert.equal("llama", assert(nb.open(dir)).config.model_type)
    assert.equal("llama", assert(nb.open(dir .. "/model.safetensors")).config.model_type)
  end)

  it("finds the quantization config where it lives", function()
    put("model.safetensors", shard "a")
    local function source(config)
      put("config.json", nb.json.encode(config))
      local q = assert(nb.open(dir)).quantization
      return q and q.source, q and q.config.quant_method
    end
    assert.is_nil((source { quantization_config = nb.json.null }))
    assert.same({ "config.json:quantization_config", "awq" }, { source { quantization_config = { quant_method = "awq" } } })
    assert.same({ "config.json:text_config.quantization_config", "gptq" },
      { source { text_config = { quantization_config = { quant_method = "gptq" } } } })
    put("quantize_config.json", '{"bits": 4}')
    assert.same({ "quantize_config.json" }, { source { x = 1 } })
    put("quantize_config.json", "{")
    refused "quantize_config.json:1:2: not JSON"
  end)

  it("survives each failed allocation while it opens", function()
    local C = require("nibble.ffi").C
    collectgarbage()
    local before, failures, n = tonumber(C.nb_live_buffers()), 0, 0
    repeat
      n = n + 1
      C.nb_debug_fail_alloc(n)
      local ok, ck, msg, code = pcall(nb.open, "spec/models/parity/qwen3-moe-sharded")
      C.nb_debug_fail_alloc(0)
      local failed = not (ok and ck)
      if failed then
        failures = failures + 1
        assert.matches("out of memory", ok and msg or ck)
        assert.equal(ok and "enomem" or nil, code)
      end
    until not failed and n > 50 or n > 1000
    assert.is_true(failures > 40 and n < 1000)
    collectgarbage() collectgarbage()
    assert.equal(before, tonumber(C.nb_live_buffers()))
  end)

  it("lists what a conversion copies, without weights and their configs", function()
    put("model.safetensors", shard "a")
    for _, name in ipairs { "config.json", "quantize_config.json", "tokenizer.json", "pytorch_model.bin", "x.partial",
      ".gitattributes", "README.md", "old.gguf" } do put(name, "{}") end
    assert(nb.checkpoint.mkdir(dir .. "/assets/deep"))
    put("assets/deep/a.txt", "x")
    assert.same({ "README.md", "assets/deep/a.txt", "tokenizer.json" }, assert(nb.open(dir)).other_files)
  end)
end)
