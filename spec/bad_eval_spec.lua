-- Configs, tokenizers, texts and ids that are no good, met by eval:
-- one sentence on stderr, exit status 2, nothing on stdout, no output folder left behind.
local nb = require "nibble"
local editor = require "spec.support.editor"
local files = require "spec.support.files"
local hostile = require "spec.support.hostile"
local damaged, fresh, file = hostile.damaged, hostile.fresh, hostile.file
local refused, eval_of = hostile.refused, hostile.eval_of
local plain_model, language_model = hostile.plain_model, hostile.language_model
local module = "model.layers.0.mlp.up_proj"

setup(hostile.begin)
teardown(hostile.finish)

-- ---- configs that contradict the tensors ---------------------------------------------

describe("eval, where the config contradicts the tensors:", function()
  local cases = {
    { "hidden_size", 32, "32" }, { "hidden_size", 0, "hidden_size" }, { "hidden_size", "wide", "hidden_size.*wide" },
    { "hidden_size", 2 ^ 30, "expected %[256×1073741824%]" }, { "num_hidden_layers", 5, "model%.layers%.2" },
    { "num_hidden_layers", 1e9, "model%.layers%.2" }, { "num_hidden_layers", 1.5, "num_hidden_layers" },
    { "vocab_size", 255, "lm_head.*255" }, { "vocab_size", -1, "vocab_size" },
    { "num_attention_heads", 3, "num_attention_heads" }, { "num_attention_heads", 8, "k_proj" },
    { "num_key_value_heads", 3, "num_key_value_heads" }, { "num_key_value_heads", 1, "k_proj" },
    { "intermediate_size", 64, "mlp" }, { "rms_norm_eps", "small", "rms_norm_eps" }, { "rms_norm_eps", -1, "rms_norm_eps" },
    { "hidden_act", "gelu", "gelu" }, { "rope_theta", 0, "rope_theta" }, { "rope_theta", "x", "rope_theta" },
    { "rope_scaling", { rope_type = "mystery" }, "mystery" }, { "rope_scaling", { rope_type = "llama3" }, "factor" },
    { "head_dim", 7, "head_dim" }, { "head_dim", 2 ^ 31, "head_dim" },
    { "model_type", "mamba", "known: llama, mistral" }, { "model_type", 7, "known: llama" },
    { "bos_token_id", 5000, "5000" }, { "bos_token_id", "x", "BOS" }, { "bos_token_id", -1, "%-1" },
    { "attention_bias", true, "q_proj.bias" },
  }
  for _, case in ipairs(cases) do
    it(("%s = %s"):format(case[1], tostring(case[2])), function()
      local dir = damaged("plain", { config = function(c) c[case[1]] = case[2] end })
      eval_of(dir, case[3])
    end)
  end

  it("no config.json at all", function()
    eval_of(damaged("plain", { config = false }), "no config.json")
  end)

  it("a tensor is missing or has another shape or dtype", function()
    eval_of(damaged("plain", { weights = function(l) editor.remove(l, "model.norm.weight") end }), "model%.norm")
    eval_of(damaged("plain", { weights = function(l) editor.remove(l, "lm_head.weight") end }), "lm_head")
    eval_of(damaged("plain", { weights = function(l) editor.remove(l, "model.embed_tokens.weight") end }), "embed_tokens")
    eval_of(damaged("plain", { weights = function(l) l["model.norm.weight"].dtype = "I32" end }), "model%.norm")
    eval_of(damaged("plain", { weights = function(l) l["lm_head.weight"].dtype = "I32" end }), "lm_head")
    eval_of(damaged("plain", { weights = function(l) l[module .. ".weight"].shape = { 64, 128 } end }), "up_proj")
  end)
end)

-- ---- tokenizers and ids ------------------------------------------------------------------

describe("eval", function()
  local text

  setup(function() text = file("text.txt", ("Once upon a time there was a model. "):rep(20)) end)

  local function with_tokenizer(change)
    local dir = fresh()
    os.execute(("mkdir -p %s && cp %s/*.json %s && ln -s $PWD/%s/model.safetensors %s/model.safetensors && chmod u+w %s/*.json")
      :format(dir, language_model, dir, language_model, dir, dir))
    local path = dir .. "/tokenizer.json"
    if type(change) == "function" then
      local spec = assert(nb.json.decode(files.read(path)))
      change(spec)
      files.write(path, nb.json.encode(spec))
    elseif change then files.write(path, change)
    else os.remove(path) end
    return dir
  end

  local tokenizers = {
    { "that isn't there", nil, "no tokenizer.*tokenizer.json" },
    { "that is no JSON", "{", "tokenizer.json" },
    { "that is a list", "[]", "tokenizer.json" },
    { "that is empty", "", "tokenizer.json" },
    { "of type Unigram", function(t) t.model.type = "Unigram" end, "Unigram" },
    { "of type WordPiece", function(t) t.model.type = "WordPiece" end, "WordPiece" },
    { "without a model", function(t) t.model = nil end, "model" },
    { "whose model is a word", function(t) t.model = "BPE" end, "model" },
    { "without merges", function(t) t.model.merges = nil end, "merges" },
    { "with merges of nonsense", function(t) t.model.merges = { 7 } end, "merges" },
    { "with ids of nonsense", function(t) t.model.vocab["a"] = -5 end, "vocab" },
    { "with a pre-tokenizer of SentencePiece", function(t) t.pre_tokenizer = { type = "Metaspace" } end, "Metaspace" },
    { "with a pre-tokenizer that is a word", function(t) t.pre_tokenizer = "x" end, "pre_tokenizer" },
    { "with a broken pattern", function(t)
      t.pre_tokenizer = { type = "Sequence", pretokenizers = { { type = "Split", pattern = { Regex = "(((" }, behavior = "Isolated" },
        { type = "ByteLevel", add_prefix_space = false, use_regex = false } } }
    end, "%(%(%(" },
    { "with a normalizer it can't run", function(t) t.normalizer = { type = "Lowercase" } end, "Lowercase" },
    { "with a normalizer that is a word", function(t) t.normalizer = "NFC" end, "normalizer" },
    { "with added tokens of nonsense", function(t) t.added_tokens = { 5 } end, "added_tokens" },
    { "with a post-processor of nonsense", function(t) t.post_processor = { type = "Roberta" } end, "Roberta" },
    { "with ids beyond the model's", function(t)
      t.added_tokens = { { id = 9999, content = "Once", special = true } }
    end, "9999.*vocabulary of 2048" },
  }
  for _, case in ipairs(tokenizers) do
    it("with a tokenizer " .. case[1], function()
      refused(("eval %s --text %s --context 16"):format(with_tokenizer(case[2]), text), case[3])
    end)
  end

  it("of a text that is missing, too short, empty or no UTF-8", function()
    refused(("eval %s --text /nonexistent.txt"):format(language_model), "/nonexistent.txt")
    refused(("eval %s --text %s"):format(language_model, hostile.root), hostile.root)
    refused(("eval %s --text %s --context 2048"):format(language_model, text), "2047.*longer text or a smaller context")
    refused(("eval %s --text %s --context 8"):format(language_model, file("empty.txt", "")), "0 tokens")
    refused(("eval %s --text %s --context 8"):format(language_model, file("latin.txt", "caf\233 "):rep(1)), "UTF%-8")
  end)

  it("of ids that are no good", function()
    local function ids(name, content, pattern)
      refused(("eval %s --ids %s --context 8"):format(plain_model, file(name, content)), pattern)
    end
    ids("big.txt", ("1 2 999 "):rep(10), "token id 999 at place 3.*vocabulary of 256")
    ids("negative.txt", ("1 -2 9 "):rep(10), "token id %-2")
    ids("half.txt", ("1 2.5 9 "):rep(10), "2.5")
    ids("word.txt", ("1 two 9 "):rep(10), "two")
    ids("short.txt", "1 2 3", "3 tokens")
    ids("none.txt", "", "0 tokens")
    ids("object.json", '{"a": 1}', "object.json")
    ids("nested.json", '[[1,2],[3]]', "nested.json")
    ids("broken.json", '[1,2', "broken.json")
    ids("text.safetensors", "hello, I am a text", "text.safetensors")
    ids("f32.safetensors", files.safetensors('{"ids":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}', 64), "f32, expected I32")
    ids("other.safetensors", files.safetensors('{"x":{"dtype":"I32","shape":[16],"data_offsets":[0,64]}}', 64), "neither")
    ids("cube.safetensors", files.safetensors('{"ids":{"dtype":"I32","shape":[2,2,4],"data_offsets":[0,64]}}', 64), "3 dimensions")
    ids("wide.safetensors", files.safetensors('{"ids":{"dtype":"I32","shape":[1,16],"data_offsets":[0,64]}}', 64), "windows of 16")
    ids("huge.safetensors", files.safetensors('{"ids":{"dtype":"I64","shape":[8],"data_offsets":[0,64]}}',
      ("\255\255\255\255\255\255\255\127"):rep(8)), "outside the model's vocabulary")
    refused(("eval %s --ids /nonexistent.safetensors"):format(plain_model), "/nonexistent.safetensors doesn't exist")
  end)

  it("against a model that can't be compared", function()
    refused(("eval %s --ids %s --context 8 --against %s"):format(plain_model, hostile.ids, language_model), "vocabulary")
    refused(("eval %s --ids %s --context 8 --against /nonexistent"):format(plain_model, hostile.ids), "/nonexistent doesn't exist")
  end)

  it("of an architecture that is not known tells the known ones", function()
    local dir = damaged("plain", { config = function(c) c.model_type, c.architectures = "mamba", { "MambaForCausalLM" } end })
    eval_of(dir, "MambaForCausalLM.*known: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe")
  end)
end)
