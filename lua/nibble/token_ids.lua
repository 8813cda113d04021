-- token_ids: token ids of a text, a file or a tensor, and the windows that a model sees of them: what eval and
-- calibration have in common.
local checkpoint = require "nibble.checkpoint"
local compute = require "nibble.compute"
local json = require "nibble.json"
local tensor = require "nibble.tensor"

local M = {}

local DEFAULT_CONTEXT = 2048

-- ---- where token ids come from ------------------------------------------------------

-- i32 copy of an i32 or i64 tensor of ids, same shape.
local function narrow(t, path)
  local kind = t:type()
  if kind ~= "i32" and kind ~= "i64" and kind ~= "u32" and kind ~= "u16" then
    return nil, ("%s: token ids are %s, expected I32 or I64"):format(path, kind), "eformat"
  end
  local out = tensor.new("i32", t:size())
  local from, to = t:ptr(), out:ptr()
  for i = 0, t:numel() - 1 do
    local v = tonumber(from[i])
    to[i] = v >= -2 ^ 31 and v < 2 ^ 31 and v or -1
  end
  return out
end

-- A safetensors file: `ids` (a stream) or `input_ids` (windows, or a stream when 1-D).
local function ids_from_safetensors(path)
  local file, msg, code = checkpoint.open(path)
  if not file then return nil, msg, code end
  local name = file:info "ids" and "ids" or "input_ids"
  local t = file:tensor(name)
  if not t then return nil, ("%s has neither a tensor ids nor input_ids"):format(path), "eformat" end
  if t.ndim < 1 or t.ndim > 2 then
    return nil, ("%s: %s has %d dimensions, expected 1 (a stream) or 2 (windows)"):format(path, name, t.ndim), "eformat"
  end
  return narrow(t, path)
end

-- Text: a JSON list, or whole numbers with white space or commas between.
local function ids_from_text(path)
  local text, msg, code = checkpoint.read_file(path)
  if not text then return nil, msg, code end
  local list = {}
  if text:find "^%s*%[" then
    list, msg, code = json.decode(text, path)
    if not list then return nil, msg, code end
  else
    for word in text:gmatch "[^%s,]+" do list[#list + 1] = tonumber(word) or word end
  end
  for i, v in ipairs(list) do
    if type(v) ~= "number" or v ~= math.floor(v) or math.abs(v) >= 2 ^ 31 then
      return nil, ("%s: entry %d, %s, is not a token id"):format(path, i, tostring(v)), "eformat"
    end
  end
  return tensor.new("i32", { #list }, list)
end

local function ids_from(source)
  if type(source) ~= "string" then return narrow(source, "ids") end
  return (source:find "%.safetensors$" and ids_from_safetensors or ids_from_text)(source)
end

-- The tokenizer's ids of a text file, and the tokenizer.
local function ids_from_tokenizer(path, ck)
  local text, msg, code = checkpoint.read_file(path)
  if not text then return nil, msg, code end
  local tok
  tok, msg, code = require("nibble.tokenizer").open(ck.path)
  if not tok then return nil, msg, code end
  local ids
  ids, msg, code = tok:encode(text, { special = false })
  if not ids then return nil, msg, code end
  return ids, tok
end

--- read({text=|ids=}, ck) -> ids i32, tokenizer|nil | nil, msg, code
-- text: a file, for the model's tokenizer; ids: an i32 tensor, a .safetensors file with `ids` or `input_ids`, or a
-- text file of ids.
function M.read(o, ck)
  if o.text then return ids_from_tokenizer(o.text, ck) end
  return ids_from(o.ids)
end

--- source(o) -> how a sentence names where the ids came from.
function M.source(o) return o.text or (type(o.ids) == "string" and o.ids) or "ids" end

-- ---- windows -------------------------------------------------------------------------

local function count(n, thing) return ("%d %s%s"):format(n, thing, n == 1 and "" or "s") end

--- check(ids, vocab) -> true | nil, msg, code: every id is one of the model's.
function M.check(ids, vocab)
  local p = ids:ptr()
  for i = 0, ids:numel() - 1 do
    if p[i] < 0 or p[i] >= vocab then
      return nil, ("token id %d at place %d is outside the model's vocabulary of %d; was the text tokenized for another model?")
        :format(p[i], i + 1, vocab), "eformat"
    end
  end
  return true
end

-- fill(windows, to, first, n): windows first..first+n-1 into to, i32 [n × context]. Plain
-- functions and not closures over ids: a compiled trace would keep those alive.
local function fill_rows(w, to, first, n)
  compute.copy(to, w.ids:rows(first, first + n - 1):reshape { n * w.context })
end

local function fill_stream(w, to, first, n)
  local from, p, context, step = w.ids:ptr(), to:ptr(), w.context, w.context - 1
  for i = 0, n - 1 do
    p[i * context] = w.bos
    for t = 0, step - 1 do p[i * context + 1 + t] = from[(first - 1 + i) * step + t] end
  end
end

--- windows(ids, context, bos, source) -> {n, context, ids, bos, fill} | nil, msg, code
-- Windows of a stream (1-D: BOS and context-1 tokens each), or the rows of a matrix of ids.
function M.windows(ids, context, bos, source)
  if ids.ndim == 2 then
    local width = ids:size(2)
    if context and context ~= width then
      return nil, ("%s holds windows of %d tokens, but a context of %d was asked for"):format(source, width, context), "einval"
    end
    if width < 2 or ids:size(1) < 1 then
      return nil, ("%s holds %s of %s; at least one of 2 is needed"):format(source, count(ids:size(1), "window"),
        count(width, "token")), "eformat"
    end
    return { n = ids:size(1), context = width, ids = ids, fill = fill_rows }
  end
  context = context or DEFAULT_CONTEXT
  local step, total = context - 1, ids:numel()
  if total < step then
    return nil, ("%s has %s, but one window of context %d needs %d; give a longer text or a smaller context"):format(
      source, count(total, "token"), context, step), "eformat"
  end
  if not bos then
    return nil, "no BOS token is known: config.json has no bos_token_id and the tokenizer none; give bos = its id", "eformat"
  end
  return { n = math.floor(total / step), context = context, ids = ids, bos = bos, fill = fill_stream }
end

--- bos(model, given, tok) -> the id of BOS: what was given, the config's, the tokenizer's; or nil.
function M.bos(model, given, tok)
  local bos = given or model.c.get "bos_token_id"
  if type(bos) ~= "number" then bos = tok and tok.bos end
  return type(bos) == "number" and bos or nil
end

return M
