-- The tokenizer: token-exact to the reference, and what it refuses (issue: Evaluation, Bad input).
local nb = require "nibble"
local json = nb.json

local DIR = "spec/models/tiny-llama"

local function slurp(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local text_of_file = slurp(DIR .. "/tokenizer.json")

-- The small tokenizer with changes, opened from a temporary file.
local function variant(change)
  local spec = json.decode(text_of_file)
  change(spec)
  local path = os.tmpname()
  local f = assert(io.open(path .. ".json", "wb"))
  f:write(json.encode(spec))
  f:close()
  local tok, msg, code = nb.tokenizer.open(path .. ".json")
  os.remove(path)
  os.remove(path .. ".json")
  return tok, msg, code
end

local function split(pattern, behavior)
  return { type = "Split", pattern = { Regex = pattern }, behavior = behavior or "Isolated", invert = false }
end
local byte_level = { type = "ByteLevel", add_prefix_space = false, use_regex = false }

local QWEN2 = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]]

local function pieces(tok, text, options)
  local out = {}
  for i, id in ipairs(tok:encode(text, options):totable()) do out[i] = tok:decode({ id }, { raw = true }) end
  return out
end

describe("tokenizer", function()
  it("gives the reference's ids for every case, with and without BOS, and decodes them", function()
    local tok = assert(nb.tokenizer.open(DIR))
    local cases = assert(json.decode(slurp "spec/models/tokenizer/tokenizer_cases.json"))
    assert.equal(29, #cases)
    for _, c in ipairs(cases) do
      assert.same(setmetatable(c.ids, nil), tok:encode(c.text):totable(), c.text)
      assert.same(setmetatable(c.ids_bos, nil), tok:encode(c.text, { special = true }):totable(), c.text)
      assert.equal(c.decoded, tok:decode(c.ids))
    end
  end)

  it("gives the reference's ids for the whole test text", function()
    local tok = assert(nb.tokenizer.open(DIR))
    local text = slurp "spec/models/eval/test.txt"
    local ids = tok:encode(text)
    local reference = assert(nb.open "spec/models/eval/test_tokens.safetensors"):tensor "ids"
    assert.equal(66975, ids:numel())
    assert.is_true(ids:equal(reference))
    assert.equal(text, tok:decode(ids))
  end)

  it("knows BOS and EOS, its size, and prints itself", function()
    local tok = assert(nb.tokenizer.open(DIR .. "/tokenizer.json"))
    assert.equal(2046, tok.bos)
    assert.equal(2047, tok.eos)
    assert.equal(2048, tok.size)
    assert.equal("tokenizer: byte-level BPE, 2048 tokens, bos 2046, eos 2047", tostring(tok))
  end)

  it("takes empty text, and refuses what is not UTF-8 with the byte's offset", function()
    local tok = assert(nb.tokenizer.open(DIR))
    assert.equal(0, tok:encode(""):numel())
    assert.equal("", tok:decode {})
    for text, offset in pairs { ["ab\255c"] = 2, ["\192\128"] = 0, ["x\237\160\128"] = 1, ["abcdefgh\240\159"] = 8 } do
      local ids, msg, code = tok:encode(text)
      assert.is_nil(ids)
      assert.equal("eformat", code)
      assert.matches("the text is not UTF%-8: byte 0x%x+ at offset " .. offset .. " ", msg)
    end
    assert.error_matches(function() tok:encode(7) end, "encode expects a text, found number")
    assert.error_matches(function() tok:decode { 5000 } end, "the tokenizer has no token 5000")
  end)

  it("repairs half a character with U+FFFD as the reference does, or hands out raw bytes", function()
    local tok = assert(nb.tokenizer.open(DIR))
    local ids = tok:encode("語"):totable()
    assert.equal(3, #ids)
    assert.equal("\239\191\189", tok:decode { ids[1], ids[2] })
    assert.equal("\239\191\189a", tok:decode { ids[1], tok:id "a" })
    assert.equal("\239\191\189\239\191\189", tok:decode { ids[3], ids[3] })
    assert.equal("\232\170", tok:decode({ ids[1], ids[2] }, { raw = true }))
  end)

  it("finds special tokens in the text, reads them as text when told to, and can leave them out", function()
    local tok = assert(nb.tokenizer.open(DIR))
    local text = "a<|end_of_text|>b"
    assert.same({ 64, 2047, 65 }, tok:encode(text):totable())
    local plain = tok:encode(text, { plain = true }):totable()
    assert.is_true(#plain > 3)
    assert.equal(text, tok:decode(plain))
    assert.equal("ab", tok:decode({ 64, 2047, 65 }, { skip_special = true }))
  end)

  it("splits as Qwen2 does: digits one by one, NFC before", function()
    local tok = assert(variant(function(s)
      s.normalizer = { type = "NFC" }
      s.pre_tokenizer = { type = "Sequence", pretokenizers = { split(QWEN2), byte_level } }
      for i, m in ipairs(s.model.merges) do s.model.merges[i] = m[1] .. " " .. m[2] end
      s.model.ignore_merges = false
      s.model.continuing_subword_prefix, s.model.end_of_word_suffix = "", ""
    end))
    assert.same({ "2", "0", "2", "4" }, pieces(tok, "2024"))
    assert.same(tok:encode("caf\195\169"):totable(), tok:encode("cafe\204\129"):totable())
    assert.equal("caf\195\169", tok:decode(tok:encode "cafe\204\129"))
  end)

  it("honours ignore_merges: a word that is in the vocabulary is one token", function()
    local function one(ignore)
      return assert(variant(function(s)
        s.model.ignore_merges = ignore
        s.model.vocab["zqzq"] = 2048
      end)):encode("zqzq"):numel()
    end
    assert.equal(1, one(true))
    assert.is_true(one(false) > 1)
  end)

  it("adds GPT-2's pattern and the blank in front for ByteLevel", function()
    local tok = assert(variant(function(s)
      s.pre_tokenizer = { type = "ByteLevel", add_prefix_space = true, use_regex = true }
    end))
    assert.equal(" the", tok:decode(tok:encode "the"))
    assert.same(tok:encode(" the"):totable(), tok:encode("the"):totable())
  end)

  it("cuts by every behavior of Split", function()
    local expected = { -- of "a--b-c" at "-", checked against the reference
      Removed = { "a", "b", "c" }, Isolated = { "a", "-", "-", "b", "-", "c" },
      MergedWithPrevious = { "a-", "-", "b-", "c" }, MergedWithNext = { "a", "-", "-b", "-c" },
      Contiguous = { "a", "--", "b", "-", "c" },
    }
    for behavior, words in pairs(expected) do
      local tok = assert(variant(function(s)
        s.pre_tokenizer = { type = "Sequence", pretokenizers = { split("-", behavior), byte_level } }
        s.model.vocab = { a = 0, b = 1, c = 2, ["-"] = 3, ["--"] = 4, ["a-"] = 5, ["b-"] = 6, ["-b"] = 7, ["-c"] = 8 }
        s.model.merges = {}
        s.added_tokens, s.post_processor = {}, nil
      end))
      assert.same(words, pieces(tok, "a--b-c"), behavior)
    end
  end)

  it("finds added tokens: blanks around them, whole words, normalized ones, the longest first", function()
    local tok = assert(variant(function(s)
      s.normalizer = { type = "NFC" }
      local function add(content, options)
        options.content, options.id, options.special = content, 2048 + #s.added_tokens - 2, false
        table.insert(s.added_tokens, options)
      end
      add("<m>", { lstrip = true, rstrip = true })
      add("zend", { single_word = true })
      add("caf\195\169", { normalized = true })
      add("<m>>", {})
    end))
    assert.same({ 64, 2048, 65 }, tok:encode("a  <m> \n b"):totable())
    assert.same({ 64, 2051 }, tok:encode("a<m>>"):totable())
    assert.same({ 2049 }, tok:encode("zend"):totable())
    assert.is_true(tok:encode("zendy"):get(1) ~= 2049)
    assert.same({ 2050 }, tok:encode("cafe\204\129"):totable())
  end)

  it("writes patterns for PCRE2 where it reads them otherwise", function()
    local pattern = nb.tokenizer.pcre2_pattern
    assert.equal([=[[^\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]]=], pattern [[\S]])
    assert.equal([=[[]a]\[\x{00e9}[[:alpha:]]]=], pattern [=[[]a]\[\u00e9[[:alpha:]]]=])
    assert.same({ nil, "an intersection (&&) inside of [...]" }, { pattern "[a&&b]" })
    assert.same({ nil, "[...] inside of [...]" }, { pattern "[a[b]]" })
    assert.same({ nil, "\\S inside of [...]" }, { pattern "[\\S]" })
  end)

  it("refuses what it cannot run, naming the part", function()
    local function refused(expected, code, change)
      local tok, msg, found = variant(change)
      assert.is_nil(tok)
      assert.matches(expected, msg)
      assert.equal(code, found)
    end
    refused("model Unigram cannot be run", "eunsupported", function(s) s.model.type = "Unigram" end)
    refused("byte_fallback", "eunsupported", function(s) s.model.byte_fallback = true end)
    refused("end_of_word_suffix", "eunsupported", function(s) s.model.end_of_word_suffix = "</w>" end)
    refused("dropout", "eunsupported", function(s) s.model.dropout = 0.1 end)
    refused("normalizer Lowercase cannot be run", "eunsupported", function(s) s.normalizer = { type = "Lowercase" } end)
    refused("pre_tokenizer Metaspace cannot be run", "eunsupported",
      function(s) s.pre_tokenizer = { type = "Metaspace" } end)
    refused("no ByteLevel pre_tokenizer", "eunsupported", function(s) s.pre_tokenizer = split "a" end)
    refused("pattern cannot be run: .* at byte 2 of %(a", "eunsupported",
      function(s) s.pre_tokenizer.pretokenizers[1] = split "(a" end)
    refused("unknown behavior", "eunsupported", function(s) s.pre_tokenizer.pretokenizers[1] = split("a", "Odd") end)
    refused("post_processor BertProcessing", "eunsupported", function(s) s.post_processor = { type = "BertProcessing" } end)
    refused("%<|begin_of_text|%> has the id x", "eformat", function(s)
      s.post_processor.processors[2].special_tokens["<|begin_of_text|>"].ids[1] = "x"
    end)
    refused("not the shape of a tokenizer.json", "eformat", function(s) s.added_tokens = 7 end)
    refused("decoder Metaspace", "eunsupported", function(s) s.decoder = { type = "Metaspace" } end)
    refused("merges: entry 3 joins", "eformat", function(s) s.model.merges[3] = { "zzz", "q" } end)
    refused("merges: entry 1 is not a pair", "eformat", function(s) s.model.merges[1] = "abc" end)
    refused('vocab: "a" has the id %-1', "eformat", function(s) s.model.vocab.a = -1 end)
    refused("token id %d+ is given twice", "eformat", function(s) s.model.vocab.a = s.model.vocab.b end)
    refused('added_tokens: "the" has the id 2048, but the vocabulary gives it', "eformat", function(s)
      table.insert(s.added_tokens, { content = "the", id = 2048 })
    end)
    local tok, msg, code = nb.tokenizer.open "spec/models/none"
    assert.is_nil(tok)
    assert.equal("eio", code)
    assert.matches("no tokenizer: cannot open spec/models/none/tokenizer.json", msg)
  end)

  it("says which byte the vocabulary lacks", function()
    local tok = assert(variant(function(s)
      s.model.vocab, s.model.merges = { a = 0 }, {}
      s.added_tokens, s.post_processor = {}, nil
    end))
    local ids, msg, code = tok:encode "ab"
    assert.same({ nil, "eunsupported" }, { ids, code })
    assert.equal("the vocabulary has no token for byte 0x62", msg)
  end)

  it("survives failing allocations", function()
    local C = require("nibble.ffi").C
    local tok = assert(nb.tokenizer.open(DIR))
    for n = 1, 12 do
      C.nb_debug_fail_alloc(n)
      local ok, ids, msg, code = pcall(tok.encode, tok, "some words that no text had before 8127 ✓")
      C.nb_debug_fail_alloc(0)
      assert.is_true(ok, ids)
      if not ids then assert.same({ true, "enomem" }, { msg:match "out of memory" ~= nil, code }) end
    end
    assert.equal("again", tok:decode(tok:encode "again"))
  end)
end)
