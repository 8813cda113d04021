-- Whole models: a 7-billion-parameter Llama of 4-bit weights, written here in random codes, evaluated on the device: its loss
-- against the CPU's on one window, tokens a second, and the same with weights that are streamed. It takes 4 GB of disk in
-- the build's folder and of the computer's memory, 6 GB on the device.
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

-- Cases follow one another in one folder, which the stage takes away: the first writes the model.
local function folder(ctx) return ctx.build .. "/gpu-check-model" end

local function removed(ctx) return os.execute(("rm -rf '%s'"):format(folder(ctx))) end

-- run(device, windows, context [, options]) -> eval.run's result for the model in the folder
local function runner(ctx, c)
  local ck = assert(checkpoint.open(folder(ctx)))
  return function(device, windows, context, o)
    return assert(eval.run(setmetatable({ model = ck, ids = ids_of(c, windows, context, ctx.seed), device = device }, { __index = o })))
  end
end

local function near(what, found, expected)
  local off = math.abs(found - expected)
  if not (off <= BOUND) then error(("nll %.6f, %s %.6f: expected no more than %g apart"):format(found, what, expected, BOUND), 0) end
  return off
end

-- The loss of one window against the CPU's, which takes some seconds on 16 cores: each weight is dequantized once.
local function compared(c)
  return { name = c.name .. ": loss against the CPU's", seconds = 90, run = function(ctx)
    removed(ctx)
    write(c, folder(ctx), ctx.seed)
    local run, context = runner(ctx, c), ctx.small and 24 or 256
    local here = run("cpu", 1, context)
    local there = run("cuda", 1, context)
    return { nll = there.nll, nll_cpu = here.nll, nll_off = near("on the CPU", there.nll, here.nll), tokens = there.tokens,
             cpu_seconds = here.seconds, device_seconds = there.seconds, through = table.concat(there.through, ", ") }
  end }
end

-- Tokens a second of the batches behind the first, with which the weights come to stay.
local function kept(c)
  return { name = "eval of " .. c.name, seconds = 60, run = function(ctx)
    local first, last
    local r = runner(ctx, c)("cuda", ctx.small and 2 or 32, ctx.small and 24 or 2048, { progress = function(p)
      last = p
      first = first or { tokens = p.tokens, seconds = p.seconds }
    end })
    local tokens, seconds = last.tokens - first.tokens, last.seconds - first.seconds
    if tokens == 0 then tokens, seconds = r.tokens, r.seconds end
    return { piece = "models", nll = r.nll, tokens = tokens, seconds_each = seconds, rate = tokens / seconds, unit = "tokens/s",
             first_seconds = first.seconds, bytes = 0, through = table.concat(r.through, ", "), emulated = ctx.emulated or nil }
  end }
end

-- The same where no weight stays: with each batch all of them come, made ready anew while the products before go on.
local function streamed(c)
  return { name = ("eval of %s, streamed"):format(c.name), seconds = 60, run = function(ctx)
    local run, windows, context = runner(ctx, c), ctx.small and 2 or 16, ctx.small and 24 or 2048
    local r = run("cuda", windows, context, { cache_bytes = 0 })
    return { nll = r.nll, nll_off = near("where they stay", r.nll, run("cuda", windows, context).nll), tokens = r.tokens,
             seconds_each = r.seconds, rate = r.tokens / r.seconds, unit = "tokens/s", emulated = ctx.emulated or nil }
  end }
end

return { removed = removed, models = function(ctx)
  local c = ctx.small and SMALL or LLAMA_7B
  return { compared(c), kept(c), streamed(c) }
end }
