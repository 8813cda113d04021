-- eval: how well a checkpoint predicts a text: negative log-likelihood, perplexity,
-- and, against another checkpoint, KL divergence and top-1 agreement.
--
-- The text's tokens are cut into windows of context-1 with BOS in front of each;
-- windows share nothing, and every text token is predicted exactly once; what does
-- not fill a window is left out. Losses are in nats, summed in double in a fixed
-- order, so the number of threads doesn't show.
local compute = require "nibble.compute"
local json = require "nibble.json"
local models = require "nibble.models"
local nffi = require "nibble.ffi"
local tensor = require "nibble.tensor"
local token_ids = require "nibble.token_ids"

local M = {}

local BATCH_TOKENS = 4096          -- of one batch of windows, at most
local BATCH_BYTES = 512 * 2 ^ 20   -- of its activations, at most (but one window always fits)

-- targets[i] = the token after ids[i] in its window; -1 at a window's last place.
local function next_tokens(ids, context)
  local targets = tensor.new("i32", { ids:numel() })
  local p, t = ids:ptr(), targets:ptr()
  for i = 0, ids:numel() - 1 do t[i] = (i + 1) % context == 0 and -1 or p[i + 1] end
  return targets
end

-- ---- sums ------------------------------------------------------------------------------

-- Adds the scored places of one batch, window by window.
local function add_losses(sum, loss, windows, context)
  local p = loss:ptr()
  for w = 0, windows - 1 do
    local total = 0
    for i = 0, context - 2 do total = total + p[w * context + i] end
    sum[#sum + 1] = total
  end
end

-- How many scored places have a == b.
local function agreements(a, b, context)
  local p, q, n = a:ptr(), b:ptr(), 0
  for i = 0, a:numel() - 1 do
    if (i + 1) % context ~= 0 and p[i] == q[i] then n = n + 1 end
  end
  return n
end

local function total(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return sum
end

-- Standard error of the mean over windows of (a - b) per token.
local function paired_error(a, b, per_window)
  local n, mean, square = #a, (total(a) - total(b)) / (#a * per_window), 0
  if n < 2 then return nil end
  for i = 1, n do square = square + ((a[i] - b[i]) / per_window - mean) ^ 2 end
  return math.sqrt(square / (n - 1) / n)
end

-- ---- the run -----------------------------------------------------------------------------

-- What a call of the model gave; a failure with its path.
local function of_model(model, result, msg, code)
  if result == nil then return nil, ("%s: %s"):format(model.ck.path, msg), code end
  return result
end

-- One batch through the model (and the one it is compared with).
local function run_batch(s, ids, windows)
  local context, targets = s.windows.context, next_tokens(ids, s.windows.context)
  local x, msg, code = of_model(s.model, s.model:hidden(ids, context))
  if not x then return nil, msg, code end
  local nll, top
  if s.against then
    local x_p
    x_p, msg, code = of_model(s.against, s.against:hidden(ids, context))
    if not x_p then return nil, msg, code end
    local r
    r, msg, code = of_model(s.model, s.against:compare(x_p, s.model, x, targets))
    if not r then return nil, msg, code end
    local kl, nll_p, top_p
    kl, nll_p, nll, top_p, top = unpack(r)
    add_losses(s.kl, kl, windows, context)
    add_losses(s.nll_against, nll_p, windows, context)
    s.agreed = s.agreed + agreements(top, top_p, context)
  else
    local r
    r, msg, code = of_model(s.model, s.model:score(x, targets))
    if not r then return nil, msg, code end
    nll, top = unpack(r)
  end
  add_losses(s.nll, nll, windows, context)
  s.hits = s.hits + agreements(top, targets, context)
  if s.per_token then compute.copy(s.per_token:rows(s.done * context + 1, (s.done + windows) * context), nll) end
  return true
end

local function check_losses(s, losses, model)
  for i = s.done + 1, #losses do
    if losses[i] ~= losses[i] or losses[i] == math.huge then
      return nil, ("%s: the logits of window %d are infinite or NaN: look at %s"):format(model.ck.path, i,
        model.arch.lm_head), "eformat"
    end
  end
  return true
end

-- How many windows a batch has.
local function batch_windows(s)
  local bytes = s.model:bytes_per_token() + (s.against and s.against:bytes_per_token() or 0)
  local tokens = math.min(BATCH_TOKENS, BATCH_BYTES / bytes)
  if s.device then tokens = math.min(s.model:batch_rows(), s.against and s.against:batch_rows() or math.huge) end
  return math.max(1, math.floor(tokens / s.windows.context))
end

-- The next batch of at most `most` windows -> how many it had | nil, msg, code
local function next_batch(s, most)
  local context, n = s.windows.context, math.min(most, s.windows.n - s.done)
  local ids = tensor.new("i32", { n * context })
  s.windows:fill(ids, s.done + 1, n)
  local ok, msg, code = run_batch(s, ids, n)
  -- Where a device has no room for the batch, for a smaller one it may, or without weights that stay: sums are added to
  -- only when all is there.
  if not ok and code == "enomem" and s.device then
    local streams = false
    for _, model in ipairs { s.model, s.against } do
      model.place:release()
      streams = n == 1 and model.place:stream() or streams
    end
    if n > 1 or streams then return next_batch(s, math.max(1, math.floor(n / 2))) end
  end
  if ok then ok, msg, code = check_losses(s, s.nll, s.model) end
  if ok and s.against then ok, msg, code = check_losses(s, s.nll_against, s.against) end
  if not ok then return nil, msg, code end
  return n
end

local function run_windows(s, o)
  local most = math.huge
  while s.done < s.windows.n do
    nffi.stop_check()
    local batch = math.min(batch_windows(s), most)
    local n, msg, code = next_batch(s, batch)
    if not n then return nil, msg, code end
    s.done = s.done + n
    if n < batch and s.done < s.windows.n then most = n end
    local progress = o.progress or nffi.progress
    if progress then
      progress { done = s.done, total = s.windows.n, tokens = s.done * (s.windows.context - 1), seconds = nffi.C.nb_now() - s.start }
    end
  end
  return true
end

-- ---- what came out --------------------------------------------------------------

local function row(rows, name, fmt, value)
  if value ~= nil then rows[#rows + 1] = { name, fmt:format(value) } end
end

local function as_text(r)
  local rows = {}
  row(rows, "nll", "%.6f", r.nll)
  row(rows, "perplexity", "%.4f", r.ppl)
  row(rows, "tokens", "%d", r.tokens)
  row(rows, "windows", "%d", r.windows)
  row(rows, "bits per byte", "%.4f", r.bits_per_byte)
  row(rows, "against: nll", "%.6f", r.nll_against)
  row(rows, "against: perplexity", "%.4f", r.ppl_against)
  row(rows, "KL divergence", "%.6f", r.kl)
  row(rows, "top-1 agreement", "%.4f", r.top1_agreement)
  if #r.inputs > 0 then rows[#rows + 1] = { "inputs", table.concat(r.inputs, ", ") } end
  if r.through and #r.through > 0 then rows[#rows + 1] = { "through", table.concat(r.through, ", ") } end
  if r.seconds then rows[#rows + 1] = { "time", require("nibble.units").seconds(r.seconds) } end
  return (require("nibble.show").columns(rows, "ll"):gsub("\n$", ""))
end

local result_mt = { __tostring = as_text }

local function result_of(s, bytes)
  local context, W = s.windows.context, s.windows.n
  local tokens = W * (context - 1)
  local seconds = nffi.C.nb_now() - s.start
  local nll = total(s.nll) / tokens
  local r = {
    model = s.model.ck.path, context = context, windows = W, tokens = tokens, nll = nll, ppl = math.exp(nll),
    top1 = s.hits / tokens, seconds = seconds, tokens_per_second = tokens / seconds,
    bits_per_byte = bytes and nll * tokens / math.log(2) / bytes or nil,
    activations = s.model.weights.activations, inputs = json.array(s.model.weights:input_kinds()),
    through = s.model.runner and json.array(s.model.runner:summary()) or nil,
    warnings = s.warnings, per_token = s.per_token and s.per_token:reshape { W, context },
  }
  if s.against then
    r.against, r.kl, r.top1_agreement = s.against.ck.path, total(s.kl) / tokens, s.agreed / tokens
    r.nll_against = total(s.nll_against) / tokens
    r.ppl_against, r.delta_nll = math.exp(r.nll_against), nll - r.nll_against
    r.delta_nll_stderr = paired_error(s.nll, s.nll_against, context - 1)
  end
  return setmetatable(r, result_mt)
end

local function load_side(ck, activations, through, o)
  local place, runner, msg, code
  if o then
    place, msg, code = models.place(ck, o)
    if not place then return nil, msg, code end
  end
  if through ~= "reference" then
    runner, msg, code = require("nibble.methods.runner").new(ck, { through = through, place = place,
      activations = activations ~= "none" })
    if not runner then return nil, msg, code end
  end
  local model
  model, msg, code = models.load(ck, { activations = activations, place = place, runner = runner })
  if not model then return nil, msg, code end
  local ok
  ok, msg, code = model:check_head()
  if not ok then return nil, ("%s: %s"):format(ck.path, msg), code end
  return model
end

-- The models of a run, and what is summed over windows.
local function open_sides(o)
  local s = { start = nffi.C.nb_now(), done = 0, hits = 0, agreed = 0, nll = {}, kl = {}, nll_against = {},
    warnings = json.array(), device = o.device ~= "cpu" and o.device or nil }
  local msg, code
  local there = s.device and { device = s.device, share = o.against and 0.5 or 1, cache_bytes = o.cache_bytes, dtype = o.dtype }
  s.model, msg, code = load_side(o.model, o.activations, o.through or there and "auto" or "reference", there)
  if not s.model then return nil, msg, code end
  if o.against then
    s.against, msg, code = load_side(o.against, o.activations, "reference", there)
    if not s.against then return nil, msg, code end
    if s.against.vocab ~= s.model.vocab then
      return nil, ("%s has a vocabulary of %d, %s one of %d; only models of one vocabulary can be compared"):format(
        s.model.ck.path, s.model.vocab, s.against.ck.path, s.against.vocab), "eformat"
    end
  end
  return s
end

local function check_options(o)
  if type(o) ~= "table" or not o.model then error("eval.run needs model = an opened checkpoint", 3) end
  if (o.text == nil) == (o.ids == nil) then error("eval.run needs text = a file, or ids = a file or tensor, and not both", 3) end
  local c = o.context
  if c ~= nil and (type(c) ~= "number" or c < 2 or c ~= math.floor(c)) then
    error(("context must be a whole number of at least 2, found %s"):format(tostring(c)), 3)
  end
  if o.activations ~= nil and o.activations ~= "stored" and o.activations ~= "none" then
    error(('activations = "%s", expected stored or none'):format(tostring(o.activations)), 3)
  end
  if o.dtype ~= nil and not (o.dtype == "f32" or o.dtype == "f16" or o.dtype == "bf16") then
    error(('dtype = "%s", expected f32, f16 or bf16'):format(tostring(o.dtype)), 3)
  end
  if o.dtype and o.dtype ~= "f32" and (o.device or "cpu") == "cpu" then
    error(("dtype = %s is of activations on a device; in the computer's memory they are f32"):format(o.dtype), 3)
  end
  if o.device ~= nil then require("nibble.cuda").number_of(o.device, 3) end
end

--- judge(accept, result) -> nil, or the sentence of a bound that was missed
-- accept: a recipe's (ppl_ratio, kl); result: of run with against.
function M.judge(accept, result)
  local ratio = result.ppl_against and result.ppl / result.ppl_against
  if accept.ppl_ratio and ratio and not (ratio <= accept.ppl_ratio) then
    return ("perplexity is %.4f times the original's, the recipe accepts %g or less"):format(ratio, accept.ppl_ratio)
  end
  if accept.kl and result.kl and not (result.kl <= accept.kl) then
    return ("KL divergence is %.5f, the recipe accepts %g or less"):format(result.kl, accept.kl)
  end
end

--- run{model=, text=|ids=, context=2048, against=nil, activations="stored", through="reference", device=nil, dtype=nil,
--    bos=nil, windows=nil, per_token=false, cache_bytes=nil, progress=nil} -> result | nil, msg, code
-- model, against: opened checkpoints, of any readable format; the KL divergence is
-- KL(against ‖ model). text: a file, for the model's tokenizer; ids: an i32 tensor,
-- a .safetensors file with `ids` or `input_ids`, or a text file of ids. 1-D ids are
-- a stream; 2-D ids are windows, ready to use. windows: only the first so many.
-- activations: "stored": layers whose scheme quantizes their input do so, as a consumer
-- would (the arithmetic is compressed-tensors' in float32); "none": only the weights count.
-- through: "reference": weights are dequantized to float32; "auto" or a method's name: model's layers
-- run by the systems' methods, from the form their kernels read, where one takes them. device: "cuda", …: the models run there,
-- whole, in 16 bits (f32 where their weights have that); layers run by methods that work there (through = "auto"), or
-- dequantized ("reference", which is what against does). Weights that don't fit into its memory are streamed through it,
-- and batches are as large as makes that worth it; without room for a batch they are halved (nibble.place). cache_bytes: of
-- weights that stay there (default: 0.7 of the free memory).
-- dtype: of activations on the device, "f32", "f16" or "bf16". Quantized inputs double what rounds them: of two runs whose f32
-- values differ in the last bit alone, codes soon differ, and a token's loss by 0.007 to 0.04 (root of the mean square; spec/models'
-- small model), in 16 bits by 0.02 to 0.16, without a bias: of n tokens the mean is off by that over sqrt(n). f32 takes
-- attention and products of floats in f32: what isn't on a tie then has the CPU's codes, at a fraction of the speed.
-- progress{done=, total= (windows), tokens=, seconds=}, after each batch.
-- result: {nll (nats per token), ppl, top1, tokens, windows, context, seconds,
-- tokens_per_second, bits_per_byte (with text), activations, inputs (what was done to
-- layers' inputs, as "fp8 token dynamic"), through (how many layers each method ran), warnings}; with against {kl,
-- top1_agreement, nll_against, ppl_against, delta_nll, delta_nll_stderr (paired over
-- windows)}; per_token = f64 [windows, context], the last column unused. tostring(result) is a table for a person.
-- Source: spec/models/PROTOCOL.md.
function M.run(o)
  check_options(o)
  local s, msg, code = open_sides(o)
  if not s then return nil, msg, code end
  local ids, tok
  ids, tok, code = token_ids.read(o, o.model)
  if not ids then return nil, tok, code end
  local ok
  ok, msg, code = token_ids.check(ids, s.model.vocab)
  if not ok then return nil, msg, code end
  s.windows, msg, code = token_ids.windows(ids, o.context, token_ids.bos(s.model, o.bos, tok), token_ids.source(o))
  if not s.windows then return nil, msg, code end
  s.windows.n = math.min(s.windows.n, o.windows or s.windows.n)
  local context = s.windows.context
  for _, model in ipairs { s.model, s.against } do
    if context > model.max_position then
      s.warnings[#s.warnings + 1] = ("%s: a context of %d is more than its max_position_embeddings %d"):format(
        model.ck.path, context, model.max_position)
    end
  end
  if o.per_token then s.per_token = tensor.new("f64", { s.windows.n * context }) end
  ok, msg, code = run_windows(s, o)
  if not ok then return nil, msg, code end
  local bytes = tok and #tok:decode(ids:rows(1, s.windows.n * (context - 1)))
  return result_of(s, bytes)
end

return M
