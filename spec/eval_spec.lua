-- Evaluation by spec/models/PROTOCOL.md: losses per token against the reference,
-- comparisons of two models, and what a wrong input is told.
local nb = require "nibble"
local C = require("nibble.ffi").C

local TOKENS = "spec/models/eval/test_tokens.safetensors"

local function model(name) return assert(nb.open("spec/models/" .. name)) end

local function write(text)
  local path = os.tmpname()
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
  return path
end

-- The same weights, one tensor replaced by what make() gives (anew each time: the forward pass frees it).
local function with_tensor(ck, name, make)
  return setmetatable({
    path = ck.path, config = ck.config, bytes = ck.bytes,
    tensor = function(_, n)
      if n == name then return make() end
      return ck:tensor(n)
    end,
    info = function(_, n)
      local info = ck:info(n)
      if n == name then info.dtype = "f32" end
      return info
    end,
  }, nil)
end

describe("eval", function()
  after_each(function() C.nb_threads_set(0) end)

  for _, name in ipairs { "tiny-llama", "tiny-moe" } do
    it("gives the reference's loss of every token: " .. name, function()
      local r = assert(nb.eval.run { model = model(name), ids = TOKENS, context = 256, windows = 3, per_token = true })
      local want = assert(assert(nb.open("spec/models/eval/nll_" .. name .. ".safetensors")):tensor "nll")
      local found, sum = r.per_token, 0
      for w = 0, 2 do
        for i = 0, 254 do
          local nll = want:ptr()[w * 255 + i]
          sum = sum + nll
          assert.is_true(math.abs(found:ptr()[w * 256 + i] - nll) < 5e-5)
        end
      end
      assert.is_true(math.abs(r.nll - sum / 765) < 2e-6)
      assert.equal(math.exp(r.nll), r.ppl)
      assert.same({ 3, 765, 256 }, { r.windows, r.tokens, r.context })
      assert.equal("[]", nb.json.encode(r.warnings))
    end)
  end

  it("gives the same sums whatever the threads, and in windows ready to use", function()
    local ck = model "parity/qwen3-moe"
    local stream, windows = nb.tensor("i32", { 43 * 17 }), nb.tensor("i32", { 17, 44 })
    for w = 1, 17 do
      windows:set((w - 1) * 44 + 1, 1) -- its BOS
      for i = 1, 43 do
        local id = (w * w * 31 + i * 7919) % 256
        stream:set((w - 1) * 43 + i, id)
        windows:set((w - 1) * 44 + 1 + i, id)
      end
    end
    C.nb_threads_set(1)
    local a = assert(nb.eval.run { model = ck, ids = stream, context = 44 })
    C.nb_threads_set(3)
    local b = assert(nb.eval.run { model = ck, ids = windows })
    assert.equal(a.nll, b.nll)
    assert.equal(a.top1, b.top1)
    assert.equal(17, a.windows)
  end)

  it("finds no divergence between a model and itself", function()
    local r = assert(nb.eval.run { model = model "tiny-llama", against = model "tiny-llama", ids = TOKENS, context = 64, windows = 2 })
    assert.equal(0, r.kl)
    assert.equal(1, r.top1_agreement)
    assert.equal(0, r.delta_nll)
    assert.equal(0, r.delta_nll_stderr)
    assert.equal(r.nll, r.nll_against)
  end)

  it("compares two models, paired over windows", function()
    local ck = model "tiny-llama"
    local name = "model.layers.2.mlp.down_proj.weight"
    local coarse = with_tensor(ck, name, function()
      local t = nb.compute.widen(assert(ck:tensor(name)))
      for i = 0, t:numel() - 1 do t:ptr()[i] = math.floor(t:ptr()[i] * 64 + 0.5) / 64 end
      return t
    end)
    local o = { ids = TOKENS, context = 128, windows = 4 }
    local function run(extra)
      for k, v in pairs(o) do extra[k] = v end
      extra.per_token = true
      return assert(nb.eval.run(extra))
    end
    local a, b, r = run { model = ck }, run { model = coarse }, run { model = coarse, against = ck }
    assert.is_true(r.kl > 1e-4 and r.kl < 0.1)
    assert.is_true(r.top1_agreement > 0.8 and r.top1_agreement < 1)
    assert.is_true(math.abs(r.nll - b.nll) < 1e-9 and math.abs(r.nll_against - a.nll) < 1e-9)
    -- delta and its standard error from the windows' means
    local mean, delta = {}, 0
    for w = 0, 3 do
      mean[w] = 0
      for i = 0, 126 do mean[w] = mean[w] + (b.per_token:ptr()[w * 128 + i] - a.per_token:ptr()[w * 128 + i]) / 127 end
      delta = delta + mean[w] / 4
    end
    local square = 0
    for w = 0, 3 do square = square + (mean[w] - delta) ^ 2 end
    assert.is_true(math.abs(r.delta_nll - delta) < 1e-9)
    assert.is_true(math.abs(r.delta_nll_stderr - math.sqrt(square / 3 / 4)) < 1e-9)
  end)

  it("reads ids from a JSON list, and from lines", function()
    local list = {}
    for i = 1, 31 do list[i] = i end
    local json, lines = write("[" .. table.concat(list, ", ") .. "]"), write(table.concat(list, "\n") .. "\n")
    local want = assert(nb.eval.run { model = model "tiny-llama", ids = nb.tensor("i32", { 31 }, list), context = 16 })
    assert.equal(2, want.windows)
    assert.equal(want.nll, assert(nb.eval.run { model = model "tiny-llama", ids = json, context = 16 }).nll)
    assert.equal(want.nll, assert(nb.eval.run { model = model "tiny-llama", ids = lines, context = 16 }).nll)
    os.remove(json)
    os.remove(lines)
  end)

  it("reports progress, batch by batch", function()
    local seen = {}
    local r = assert(nb.eval.run { model = model "parity/llama", ids = nb.tensor("i32", { 40 * 127 }), context = 128, windows = 33,
      progress = function(p) seen[#seen + 1] = { p.done, p.total, p.tokens, p.seconds > 0 } end })
    assert.same({ { 32, 33, 32 * 127, true }, { 33, 33, 33 * 127, true } }, seen)
    assert.equal(33 * 127, r.tokens)
  end)

  it("says when the context is longer than the model was made for", function()
    local r = assert(nb.eval.run { model = model "parity/llama", ids = nb.tensor("i32", { 199 }), context = 200 })
    assert.matches("a context of 200 is more than its max_position_embeddings 128", r.warnings[1])
  end)

  it("stops when asked to", function()
    C.nb_stop_request()
    local ok, msg = pcall(nb.eval.run, { model = model "tiny-llama", ids = TOKENS, context = 256, windows = 1 })
    C.nb_stop_clear()
    assert.is_false(ok)
    assert.equal("interrupted", msg)
  end)

  local function failure(o)
    local r, msg, code = nb.eval.run(o)
    assert.is_nil(r)
    return msg, code
  end

  it("refuses inputs that cannot be scored, each with its sentence", function()
    local ck = model "tiny-llama"
    local few = nb.tensor("i32", { 10 })
    assert.matches("^ids has 10 tokens, but one window of context 256 needs 255;", failure { model = ck, ids = few, context = 256 })
    assert.matches("token id 2048 at place 2 is outside the model's vocabulary of 2048",
      failure { model = ck, ids = nb.tensor("i32", { 3 }, { 0, 2048, 1 }), context = 3 })
    assert.matches("token id %-7 at place 1", failure { model = ck, ids = nb.tensor("i32", { 1 }, { -7 }), context = 2 })
    assert.matches("holds windows of 256 tokens, but a context of 128 was asked for", failure { model = ck,
      ids = nb.tensor("i32", { 2, 256 }), context = 128 })
    assert.matches("token ids are f32, expected I32 or I64", failure { model = ck, ids = nb.tensor("f32", { 9 }), context = 4 })
    assert.matches("cannot read .*no/such/file", failure { model = ck, ids = "no/such/file" })
    assert.matches("has neither a tensor ids nor input_ids", failure { model = ck, ids = "spec/models/eval/nll_tiny-moe.safetensors" })
    local words = write "12 13 fourteen"
    assert.matches("entry 3, fourteen, is not a token id", failure { model = ck, ids = words })
    os.remove(words)
    assert.matches("has a vocabulary of 2048, .*parity/llama one of 256", failure { model = ck, against = model "parity/llama",
      ids = few, context = 4 })
    local config = {}
    for k, v in pairs(ck.config) do config[k] = v end
    config.bos_token_id = nil
    local nobos = with_tensor(ck, nil)
    nobos.config = config
    assert.matches("no BOS token is known", failure { model = nobos, ids = few, context = 4 })
  end)

  it("names the layer, or the output layer, that gave what is not a number", function()
    local ck = model "parity/llama"
    local function nan()
      local t = nb.tensor("f32", { 64 })
      for i = 1, 64 do t:set(i, 0 / 0) end
      return t
    end
    local o = { ids = nb.tensor("i32", { 2, 8 }) }
    o.model = with_tensor(ck, "model.layers.1.input_layernorm.weight", nan)
    assert.matches("^spec/models/parity/llama: model.layers.1: .*infinite or NaN", failure(o))
    o.model = with_tensor(ck, "model.norm.weight", nan)
    assert.matches("the logits of window 1 are infinite or NaN: look at lm_head", failure(o))
  end)

  it("is strict about how it is called", function()
    local ck = model "tiny-llama"
    assert.error_matches(function() nb.eval.run { ids = TOKENS } end, "needs model = an opened checkpoint")
    assert.error_matches(function() nb.eval.run { model = ck } end, "needs text = a file, or ids")
    assert.error_matches(function() nb.eval.run { model = ck, ids = TOKENS, text = "x" } end, "and not both")
    assert.error_matches(function() nb.eval.run { model = ck, ids = TOKENS, context = 1 } end,
      "context must be a whole number of at least 2, found 1")
  end)
end)
