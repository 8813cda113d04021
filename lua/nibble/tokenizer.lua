-- tokenizer: a Hugging Face tokenizer.json with byte-level BPE (Llama 3, Qwen 2,
-- GPT-2 and their kin), token for token as the reference does it. What it cannot
-- run is refused when it is opened, by the name of the part.
local ffi = require "ffi"
local nffi = require "nibble.ffi"
local json = require "nibble.json"
local tensor = require "nibble.tensor"
local C, check = nffi.C, nffi.check

local M = {}

-- ByteLevel's own pattern (use_regex).
local GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]

local behaviors = {
  Removed = "NB_SPLIT_REMOVED", Isolated = "NB_SPLIT_ISOLATED", MergedWithPrevious = "NB_SPLIT_WITH_PREVIOUS",
  MergedWithNext = "NB_SPLIT_WITH_NEXT", Contiguous = "NB_SPLIT_CONTIGUOUS",
}

-- A refusal on its way to open(): error{...} with the sentence and its code.
local function refuse(fmt, ...)
  error({ refused = fmt:format(...), code = "eunsupported" }, 0)
end
local function malformed(fmt, ...)
  error({ refused = fmt:format(...), code = "eformat" }, 0)
end

local function given(v) return v ~= nil and v ~= json.null end

local function must(...)
  local ok, msg, code = ...
  if ok == nil then error({ refused = msg, code = code }, 0) end
  return ok
end

-- ---- patterns ------------------------------------------------------------------

-- Where Oniguruma, which the reference matches with, and PCRE2 read an escape
-- differently: what it stands for, outside and inside of [...].
local SPACE = [[\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]]
local WORD = [[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]]
local HEX = "0-9a-fA-F"
local escapes = { s = SPACE, w = WORD, h = HEX }
local negated = { S = SPACE, W = WORD, H = HEX }

--- pcre2_pattern(text) -> the same pattern for PCRE2 | nil, msg
-- White space, word characters and hexadecimal digits are spelled out, because
-- the two libraries' sets differ; what only Oniguruma has is refused.
function M.pcre2_pattern(text)
  local out, in_class, i = {}, false, 1
  while i <= #text do
    local c, next_two = text:sub(i, i), text:sub(i, i + 1)
    if c == "\\" then
      local e = text:sub(i + 1, i + 1)
      i = i + 2
      if escapes[e] then
        out[#out + 1] = in_class and escapes[e] or "[" .. escapes[e] .. "]"
      elseif negated[e] then
        if in_class then return nil, ("\\%s inside of [...]"):format(e) end
        out[#out + 1] = "[^" .. negated[e] .. "]"
      elseif e == "u" and text:match("^%x%x%x%x", i) then
        out[#out + 1] = ("\\x{%s}"):format(text:sub(i, i + 3))
        i = i + 4
      else
        out[#out + 1] = "\\" .. e
      end
    else
      if in_class and next_two == "&&" then return nil, "an intersection (&&) inside of [...]" end
      if in_class and c == "[" and text:sub(i + 1, i + 1) ~= ":" then return nil, "[...] inside of [...]" end
      if in_class and next_two == "[:" then
        local name = text:match("^%[:%^?%a+:%]", i)
        if not name then return nil, "[: inside of [...]" end
        c = name
      elseif c == "[" then
        in_class = true
        -- a ] (or ^]) right after the [ stands for itself
        local start = text:match("^%[%^?%]", i)
        c = start or c
      elseif c == "]" then
        in_class = false
      end
      out[#out + 1] = c
      i = i + #c
    end
  end
  return table.concat(out)
end

local function add_split(b, pattern, behavior, invert, where)
  local translated, why = M.pcre2_pattern(pattern)
  if not translated then refuse("%s: its pattern has %s, which nibble cannot run: %s", where, why, pattern) end
  must(check(C.nb_bpe_split(b, translated, #translated, C[behaviors[behavior]], invert and 1 or 0)))
end

local function quote(literal) return (literal:gsub("[^%w\128-\255]", "\\%0")) end

-- ---- the parts of a tokenizer.json ------------------------------------------------

local steps = {}
local add_step

function steps.Sequence(b, part, state)
  for _, p in ipairs(part.pretokenizers or {}) do add_step(b, p, state) end
end

function steps.Split(b, part)
  local pattern = part.pattern or {}
  local text = pattern.Regex or (pattern.String and quote(pattern.String))
  if type(text) ~= "string" then malformed "pre_tokenizer Split: no pattern" end
  if not behaviors[part.behavior] then refuse("pre_tokenizer Split: unknown behavior %q", tostring(part.behavior)) end
  add_split(b, text, part.behavior, part.invert == true, "pre_tokenizer Split")
end

function steps.Digits(b, part)
  add_split(b, [[\p{N}]], part.individual_digits and "Isolated" or "Contiguous", false, "pre_tokenizer Digits")
end

function steps.ByteLevel(b, part, state)
  state.byte_level = true
  if part.add_prefix_space ~= false then must(check(C.nb_bpe_prefix_space(b))) end
  if part.use_regex ~= false then add_split(b, GPT2, "Isolated", false, "pre_tokenizer ByteLevel") end
end

-- The next step of the pre-tokenizer; refuses what cannot be run.
function add_step(b, part, state)
  if state.byte_level then refuse("pre_tokenizer: %s after ByteLevel", tostring(part.type)) end
  local step = steps[part.type]
  if not step then
    refuse("pre_tokenizer %s cannot be run; known: Sequence, Split, Digits, ByteLevel", tostring(part.type))
  end
  step(b, part, state)
end

local function normalizer(b, part)
  if not given(part) then return end
  if part.type == "Sequence" and #(part.normalizers or {}) == 0 then return end
  if part.type == "Sequence" and #part.normalizers == 1 then return normalizer(b, part.normalizers[1]) end
  local forms = { NFC = C.NB_NFC, NFD = C.NB_NFD, NFKC = C.NB_NFKC, NFKD = C.NB_NFKD }
  local form = forms[part.type]
  if not form then
    refuse("normalizer %s cannot be run; known: NFC, NFD, NFKC, NFKD or none", tostring(part.type))
  end
  check(C.nb_bpe_normal_form(b, form))
end

local function check_model(model)
  if type(model) ~= "table" then malformed "no model" end
  if model.type ~= nil and model.type ~= "BPE" then
    refuse("model %s cannot be run; nibble runs byte-level BPE", tostring(model.type))
  end
  if type(model.vocab) ~= "table" or type(model.merges) ~= "table" then
    malformed "model BPE: vocab and merges are needed"
  end
  if model.byte_fallback == true then
    refuse "model BPE with byte_fallback (SentencePiece style) cannot be run; nibble runs byte-level BPE"
  end
  for _, key in ipairs { "continuing_subword_prefix", "end_of_word_suffix" } do
    if given(model[key]) and model[key] ~= "" then refuse("model BPE with %s cannot be run", key) end
  end
  if given(model.dropout) and model.dropout ~= 0 then refuse "model BPE with dropout gives no fixed ids" end
end

local function is_id(id) return type(id) == "number" and id >= 0 and id % 1 == 0 and id < 2 ^ 21 end

local function vocabulary(b, vocab)
  local size = 0
  for text, id in pairs(vocab) do
    if not is_id(id) then malformed("vocab: %q has the id %s", text, tostring(id)) end
    must(check(C.nb_bpe_token(b, text, #text, id)))
    size = size + 1
  end
  return size
end

local function merges(b, vocab, list)
  for i = 1, #list do
    local m, left, right = list[i], nil, nil
    if type(m) == "string" then
      left, right = m:match "^([^ ]+) ([^ ]+)$"
    elseif type(m) == "table" then
      left, right = m[1], m[2]
    end
    if type(left) ~= "string" or type(right) ~= "string" then
      malformed("merges: entry %d is not a pair of tokens", i)
    end
    local l, r, merged = vocab[left], vocab[right], vocab[left .. right]
    if not (l and r and merged) then
      malformed("merges: entry %d joins %q and %q, but the vocabulary lacks %q", i, left, right,
        not l and left or not r and right or left .. right)
    end
    must(check(C.nb_bpe_merge(b, l, r, merged)))
  end
end

local function added_tokens(b, list, tok)
  for i, t in ipairs(given(list) and list or {}) do
    if type(t) ~= "table" or type(t.content) ~= "string" or not is_id(t.id) then
      malformed("added_tokens: entry %d has no content or id", i)
    end
    if (tok.vocab[t.content] or t.id) ~= t.id then
      malformed("added_tokens: %q has the id %d, but the vocabulary gives it %d", t.content, t.id, tok.vocab[t.content])
    end
    local flags = (t.special and C.NB_ADDED_SPECIAL or 0) + (t.lstrip and C.NB_ADDED_LSTRIP or 0)
      + (t.rstrip and C.NB_ADDED_RSTRIP or 0) + (t.single_word and C.NB_ADDED_SINGLE_WORD or 0)
      + (t.normalized and C.NB_ADDED_NORMALIZED or 0)
    must(check(C.nb_bpe_added(b, t.content, #t.content, t.id, flags)))
    tok.added[t.content] = t.id
    if not tok.vocab[t.content] then tok.size = tok.size + 1 end
  end
end

-- The ids that the post-processor puts before and after a text.
local function post_processor(part, tok)
  if not given(part) or part.type == "ByteLevel" then return end
  if part.type == "Sequence" then
    for _, p in ipairs(part.processors or {}) do post_processor(p, tok) end
    return
  end
  if part.type ~= "TemplateProcessing" then
    refuse("post_processor %s cannot be run; known: Sequence, ByteLevel, TemplateProcessing", tostring(part.type))
  end
  local before, after, seen = {}, {}, false
  for _, item in ipairs(part.single or {}) do
    if item.Sequence then
      if seen then refuse "post_processor TemplateProcessing: the text appears twice" end
      seen = true
    elseif item.SpecialToken then
      local name = item.SpecialToken.id
      local known = (part.special_tokens or {})[name]
      if not known then malformed("post_processor TemplateProcessing: no special token %q", tostring(name)) end
      local ids = seen and after or before
      for _, id in ipairs(known.ids) do
        if not is_id(id) then malformed("post_processor TemplateProcessing: %s has the id %s", name, tostring(id)) end
        ids[#ids + 1] = id
      end
    end
  end
  if not seen then refuse "post_processor TemplateProcessing: the text has no place" end
  for i = #before, 1, -1 do table.insert(tok.before, 1, before[i]) end
  for _, id in ipairs(after) do tok.after[#tok.after + 1] = id end
end

local function decoder(part)
  if not given(part) or part.type == "ByteLevel" then return end
  if part.type == "Sequence" then
    for _, p in ipairs(part.decoders or {}) do decoder(p) end
    return
  end
  refuse("decoder %s cannot be run; known: ByteLevel", tostring(part.type))
end

-- ---- the object -------------------------------------------------------------------

local methods = {}
local mt = { __index = methods }

function mt.__tostring(tok)
  return ("tokenizer: byte-level BPE, %d tokens, bos %s, eos %s"):format(tok.size, tostring(tok.bos), tostring(tok.eos))
end

local function join(before, ids, after)
  local n = ids:numel()
  local out = tensor.new("i32", { #before + n + #after })
  local p = ffi.cast("int32_t *", out.data)
  for i, id in ipairs(before) do p[i - 1] = id end
  if n > 0 then ffi.copy(p + #before, ids.data, n * 4) end
  for i, id in ipairs(after) do p[#before + n + i - 1] = id end
  return out
end

--- tok:encode(text [, {special=false, plain=false}]) -> i32 tensor [n] | nil, msg, code
-- text: UTF-8. Added tokens in the text become their ids. special: also what the
-- model's template puts around a text (BOS, usually). plain: special tokens in
-- the text are read as ordinary text. Text that is not UTF-8 is refused with the
-- offset of its first bad byte.
function methods.encode(tok, text, options)
  if type(text) ~= "string" then error("encode expects a text, found " .. type(text), 2) end
  options = options or {}
  local ids = tensor.type()
  local ok, msg, code = check(C.nb_bpe_encode(ids, tok.handle, text, #text, options.plain and 1 or 0))
  if ok == nil then return nil, msg, code end
  if options.special and #tok.before + #tok.after > 0 then return join(tok.before, ids, tok.after) end
  return ids
end

local function id_array(ids)
  if type(ids) ~= "table" then
    if ids:type() == "i32" then return ids, ids:numel() end
    ids = ids:totable()
  end
  return tensor.new("i32", { #ids }, ids), #ids
end

--- tok:decode(ids [, {skip_special=false, raw=false}]) -> text
-- ids: an integer tensor or a table. Bytes that are not UTF-8 (half a character)
-- become U+FFFD, unless raw. An id that the tokenizer lacks is an error.
function methods.decode(tok, ids, options)
  options = options or {}
  local array, n = id_array(ids)
  local flags = (options.skip_special and C.NB_DECODE_SKIP_SPECIAL or 0) + (options.raw and C.NB_DECODE_RAW or 0)
  local out = tensor.type()
  nffi.must(C.nb_bpe_decode(out, tok.handle, ffi.cast("const int32_t *", array.data), n, flags))
  local text = ffi.string(out.data, out:numel())
  out:free()
  return text
end

--- tok:id(text) -> the id of one token by its text ("<|im_start|>"), or nil.
function methods.id(tok, text) return tok.added[text] or tok.vocab[text] end

-- ---- opening ----------------------------------------------------------------------

local function read_json(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local text = f:read "*a"
  f:close()
  return json.decode(text, path)
end

-- A token that tokenizer_config.json names: "text" or {content=text}.
local function named(tok, v)
  if type(v) == "table" and v ~= json.null then v = v.content end
  return type(v) == "string" and tok:id(v) or nil
end

local function first_id(v)
  if type(v) == "table" then v = v[1] end
  return is_id(v) and v or nil
end

-- BOS and EOS: tokenizer_config.json, then the template, then config.json.
local function boundaries(tok, dir)
  local named_tokens = read_json(dir .. "tokenizer_config.json") or {}
  local config = read_json(dir .. "config.json") or {}
  tok.bos = named(tok, named_tokens.bos_token) or tok.before[1] or first_id(config.bos_token_id)
  tok.eos = named(tok, named_tokens.eos_token) or first_id(config.eos_token_id)
end

local function build(spec, dir)
  check_model(spec.model)
  local handle = C.nb_bpe_new(spec.model.ignore_merges == true and 1 or 0)
  if handle == nil then error { refused = ffi.string(C.nb_error()), code = "enomem" } end
  handle = ffi.gc(handle, C.nb_bpe_free)
  local tok = setmetatable({ handle = handle, vocab = spec.model.vocab, added = {}, before = {}, after = {} }, mt)
  normalizer(handle, spec.normalizer)
  tok.size = vocabulary(handle, spec.model.vocab)
  merges(handle, spec.model.vocab, spec.model.merges)
  added_tokens(handle, spec.added_tokens, tok)
  local state = {}
  if given(spec.pre_tokenizer) then add_step(handle, spec.pre_tokenizer, state) end
  if not state.byte_level then refuse "no ByteLevel pre_tokenizer: nibble runs byte-level BPE" end
  post_processor(spec.post_processor, tok)
  decoder(spec.decoder)
  boundaries(tok, dir)
  return tok
end

--- open(path) -> tokenizer | nil, msg, code
-- path: a tokenizer.json or the folder that holds it (there BOS and EOS are also
-- looked for in tokenizer_config.json and config.json). Fields: bos, eos (ids or
-- nil), size (number of tokens). Methods: encode, decode, id.
function M.open(path)
  local file = path:match "%.json$" and path or path:gsub("/*$", "/") .. "tokenizer.json"
  local spec, msg, code = read_json(file)
  if spec and type(spec) ~= "table" then spec, msg, code = nil, file .. ": not a JSON object", "eformat" end
  if not spec then
    if msg then return nil, msg, code end
    return nil, ("no tokenizer: cannot open %s; give token ids instead"):format(file), "eio"
  end
  local ok, result = pcall(build, spec, file:match "^(.*/)" or "")
  if ok then return result end
  if type(result) == "table" then return nil, ("%s: %s"):format(file, result.refused), result.code end
  if tostring(result):match "interrupted$" then error(result, 0) end
  -- a part that is of another type than every tokenizer.json has it
  return nil, ("%s: not the shape of a tokenizer.json (%s)"):format(file, (result:gsub("^[^%s:]+:%d+: ", ""))), "eformat"
end

return M
