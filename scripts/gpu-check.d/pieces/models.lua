-- Whole models: a 7-billion-parameter Llama of 4-bit weights, written here in random codes, evaluated on the device: its loss
-- against the CPU's on a prefix, and tokens a second.
local checkpoint = require "nibble.checkpoint"
local eval = require "nibble.eval"
local json = require "nibble.json"
local tensor = require "nibble.tensor"
local data = require "data"

local LLAMA_7B = { name = "llama 7B W4A16", hidden = 4096, intermediate = 11008, layers = 32, heads = 32, vocab = 32000 }
local SMALL = { name = "llama, small, W4A16", hidden = 256, intermediate = 512, layers = 2, heads = 2, vocab = 512 }
local GROUP, BOUND = 128, 1e-3

local function config(c)
  return { architectures = { "LlamaForCausalLM" }, model_type = "llama", hidden_size = c.hidden, intermediate_size = c.intermediate,
    num_hidden_layers = c.layers, num_attention_heads = c.heads, num_key_value_heads = c.heads, vocab_size = c.vocab,
    hidden_act = "silu", max_position_embeddings = 4096, rms_norm_eps = 1e-5, rope_theta = 10000, tie_word_embeddings = false,
    torch_dtype = "float16", bos_token_id = 1,
    quantization_config = { quant_method = "compressed-tensors", format = "pack-quantized", quantization_status = "compressed",
      ignore = json.array { "lm_head" }, config_groups = { group_0 = { targets = json.array { "Linear" }, weights = {
        num_bits = 4, type = "int", symmetric = true, strategy = "group", group_size = GROUP } } } } }
end

-- The tensors of the checkpoint in order: {name =, dtype =, shape =, values = "codes" | "scales" | "ones" | "floats" | "shape"}.
local function tensors_of(c)
  local out = {}
  local function add(name, dtype, shape, values) out[#out + 1] = { name = name, dtype = dtype, shape = shape, values = values } end
  local function linear(name, n, k)
    add(name .. ".weight_packed", "i32", { n, k / 8 }, "codes")
    add(name .. ".weight_scale", "f16", { n, k / GROUP }, "scales")
    add(name .. ".weight_shape", "i64", { 2 }, { n, k })
  end
  add("model.embed_tokens.weight", "f16", { c.vocab, c.hidden }, "floats")
  for i = 0, c.layers - 1 do
    local p = "model.layers." .. i
    add(p .. ".input_layernorm.weight", "f16", { c.hidden }, "ones")
    for _, name in ipairs { "q", "k", "v", "o" } do linear(p .. ".self_attn." .. name .. "_proj", c.hidden, c.hidden) end
    add(p .. ".post_attention_layernorm.weight", "f16", { c.hidden }, "ones")
    linear(p .. ".mlp.gate_proj", c.intermediate, c.hidden)
    linear(p .. ".mlp.up_proj", c.intermediate, c.hidden)
    linear(p .. ".mlp.down_proj", c.hidden, c.intermediate)
  end
  add("model.norm.weight", "f16", { c.hidden }, "ones")
  add("lm_head.weight", "f16", { c.vocab, c.hidden }, "floats")
  return out
end

-- Random numbers of about the size that weights have: codes are around 4.6, scales 2^-8 to 2^-7, so weights 0.03; the
-- floats of the embedding and the output layer are 2^-6 to 2^-5.
local masks = { scales = { keep = 0x03ff03ff, set = 0x1c001c00 }, floats = { keep = 0x83ff83ff, set = 0x24002400 } }

-- Tensors of a kind are views into one storage, each from another place on: writing takes no longer than the disk does.
local function source(c, seed)
  local most = { codes = 0, scales = 0, floats = 0 }
  for _, t in ipairs(tensors_of(c)) do
    if most[t.values] then most[t.values] = math.max(most[t.values], t.shape[1] * t.shape[2]) end
  end
  local pool, step = {}, 4096
  for kind, count in pairs(most) do
    pool[kind] = data.random(kind == "codes" and "i32" or "f16", { count + 256 * step }, seed, c.name .. kind, masks[kind])
  end
  local number = 0
  return function(t)
    if t.values == "ones" then return tensor.new(t.dtype, t.shape):fill(1) end
    if type(t.values) == "table" then return tensor.new(t.dtype, t.shape, t.values) end
    number = number + 1
    local at = number % 256 * step
    return pool[t.values]:rows(at + 1, at + t.shape[1] * t.shape[2]):reshape(t.shape)
  end
end

local function write(c, dir, seed)
  local list, make = tensors_of(c), source(c, seed)
  assert(checkpoint.mkdir(dir))
  local w = assert(checkpoint.writer { dir = dir, tensors = list })
  for _, t in ipairs(list) do assert(w:put(t.name, make(t))) end
  assert(w:finish())
  assert(checkpoint.write_file(dir .. "/config.json", json.encode(config(c))))
end

local function ids_of(c, windows, context, seed)
  local ids = data.random("i32", { windows, context }, seed, "ids")
  local p = ids:ptr()
  for i = 0, ids:numel() - 1 do p[i] = p[i] % c.vocab end
  return ids
end

local function without(dir, f)
  local ok, row = pcall(f)
  os.execute(("rm -rf '%s'"):format(dir))
  if not ok then error(row, 0) end
  return row
end

-- The loss on a prefix against the CPU's: once in a process, however often it is measured.
local compared = {}
local function compare(c, run, prefix)
  if compared[c.name] then return compared[c.name] end
  local here, there = run("cpu", prefix, 1), run("cuda", prefix, 1)
  local off = math.abs(here.nll - there.nll)
  if not (off <= BOUND) then
    error(("nll %.6f, on the CPU %.6f: expected no more than %g apart"):format(there.nll, here.nll, BOUND), 0)
  end
  compared[c.name] = off
  return off
end

local function benchmark(c)
  return { name = ("eval of %s"):format(c.name), run = function(ctx)
    local dir = os.tmpname()
    os.remove(dir)
    return without(dir, function()
      write(c, dir, ctx.seed)
      local ck = assert(checkpoint.open(dir))
      local function run(device, context, windows, progress)
        return assert(eval.run { model = ck, ids = ids_of(c, windows, context, ctx.seed), device = device, progress = progress })
      end
      local context, windows = ctx.small and 24 or 2048, ctx.small and 2 or 32
      local off = compare(c, run, ctx.small and 24 or 64)
      if ctx.once then return { piece = "models", nll_off = off } end
      -- Weights come with the first batch: the rate is that of the others.
      local first, last
      local r = run("cuda", context, windows, function(p)
        last = p
        first = first or { tokens = p.tokens, seconds = p.seconds }
      end)
      local tokens, seconds = last.tokens - first.tokens, last.seconds - first.seconds
      if tokens == 0 then tokens, seconds = r.tokens, r.seconds end
      return { piece = "models", nll_off = off, tokens = tokens, seconds_each = seconds, rate = tokens / seconds, unit = "tokens/s",
        first_seconds = first.seconds, bytes = 0, through = table.concat(r.through, ", "), emulated = ctx.emulated or nil }
    end)
  end }
end

return { benchmarks = function(ctx) return { benchmark(ctx.small and SMALL or LLAMA_7B) } end }
