-- Made-up results of a sweep, as its folder holds them: figures follow from the bits, so that reports look like real ones.
local json = require "nibble.json"

local M = {}

-- Repeatable numbers in [0, 1).
local function stream(seed)
  return function()
    seed = (seed * 16807) % 2147483647
    return seed / 2147483647
  end
end

local kinds = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                "mlp.up_proj", "mlp.down_proj" }

M.recipes = {
  { "w8a16", 8.13, "W8A16 g128 sym" }, { "fp8-dynamic", 8.02, "FP8_DYNAMIC" }, { "fp8-block", 8.01, "FP8_BLOCK" },
  { "w6a16", 6.13, "W6A16 g128 sym" }, { "w4a16-g32", 4.5, "W4A16 g32 sym" }, { "w4a16-g64", 4.25, "W4A16 g64 sym" },
  { "w4a16", 4.13, "W4A16 g128 sym" }, { "w4a16-channel", 4.0, "W4A16 channel sym" }, { "nvfp4a16", 4.5, "NVFP4A16 g16" },
  { "mxfp4a16", 4.25, "MXFP4A16 g32" }, { "w3a16", 3.13, "W3A16 g128 sym" }, { "w2a16", 2.13, "W2A16 g128 sym" },
}

-- Modules of `layers` layers: the last ones and down_proj are harder, one layer is an outlier.
local function modules(next_number, layers, bits, scheme)
  local out = {}
  for layer = 0, layers - 1 do
    for k, kind in ipairs(kinds) do
      local sqnr = bits * 5.2 - 1.2 + 1.5 * next_number() - (k == 7 and 2.5 or k == 2 and -1 or 0)
        - 2.2 * (layer / layers) ^ 2 - (layer == 2 and k == 7 and 4 or 0)
      out[#out + 1] = { name = ("model.layers.%d.%s"):format(layer, kind), scheme = scheme, action = "quantize",
        bytes = math.floor(4096 * 4096 * bits / 8), params = 4096 * 4096, sqnr_db = sqnr, mse = 1e-3 * 10 ^ (-sqnr / 10) }
    end
  end
  out[#out + 1] = { name = "lm_head", scheme = "bf16", action = "copy", bytes = 2 * 4096 * 32000, params = 4096 * 32000 }
  return out
end

--- result(o) -> one result. o: {recipe=, bits=, scheme=, model=, text=, layers=, seed=, set=}; without a recipe: the model itself.
function M.result(o)
  local random = stream(o.seed or 7)
  random()
  local base = o.base or 6.2431
  local loss = o.recipe and 1.2 * 3.1 ^ -o.bits * (0.8 + 0.4 * random()) or 0
  local list = o.recipe and modules(random, o.layers or 4, o.bits, o.scheme) or json.array {}
  local worst
  for _, m in ipairs(list) do
    if m.sqnr_db and (not worst or m.sqnr_db < worst.sqnr_db) then worst = m end
  end
  local name = o.recipe or "reference"
  return {
    job = ("%08x%08x%08x%08x"):format(#name * 7919 + (o.seed or 7), o.seed or 7, #(o.model or ""), #(o.text or "")),
    status = "done", recipe = o.recipe or json.null, recipe_hash = o.recipe and ("%032x"):format(#name * 31 + (o.seed or 7)),
    recipe_text = o.recipe and ('-- %s: made up.\nreturn {\n  name = "%s",\n  scheme = "%s", group = 128,\n}\n'):format(o.recipe,
      o.recipe, o.scheme:match "^%S+"),
    set = o.set or {}, model = o.model or "models/tiny-llama", model_hash = ("a"):rep(32), text = o.text or "texts/heldout.txt",
    text_hash = ("b"):rep(32), context = 2048, windows = 32,
    figures = {
      ppl = base * (1 + loss), nll = math.log(base * (1 + loss)), tokens = 65504, ppl_against = o.recipe and base or nil,
      kl = o.recipe and loss * 0.8 or nil, top1_agreement = o.recipe and 1 - loss * 0.7 or nil,
      bits_per_weight = o.recipe and o.bits + 0.31 or 16, bytes = 1e9 * (o.recipe and o.bits + 0.31 or 16), bytes_model = 16e9,
      worst_sqnr_db = worst and worst.sqnr_db, worst = worst and worst.name, accepted = o.accepted,
    },
    modules = list, seconds = 30 + 60 * random(), seconds_run = 20, seconds_eval = 30, peak_bytes = 3e8 + 2e8 * random(), attempts = 1,
    host = "node01", processor = "AMD EPYC 9654", version = "0.1.0",
  }
end

--- sweep(o) -> results: every recipe and the model itself, for each model and text, and one failed job.
-- o: {models={…}, texts={…}, layers=, seed=, failed=false}
function M.sweep(o)
  o = o or {}
  local out = json.array {}
  for a, model in ipairs(o.models or { "models/tiny-llama" }) do
    for b, text in ipairs(o.texts or { "texts/heldout.txt" }) do
      local function add(extra)
        extra.model, extra.text, extra.layers, extra.base = model, text, o.layers, 6.2431 + 2 * a + b
        out[#out + 1] = M.result(extra)
      end
      add { seed = (o.seed or 1) + a }
      for i, r in ipairs(M.recipes) do
        add { recipe = r[1], bits = r[2], scheme = r[3], seed = (o.seed or 1) + 100 * i + a }
      end
    end
  end
  if o.failed ~= false then
    out[#out + 1] = M.failed { recipe = "w4a16-gptq", message = "gptq needs calibration: the recipe has no calibrate\nadd calibrate = { text = … }" }
  end
  return out
end

--- failed(o) -> the result of a job that failed with o.message.
function M.failed(o)
  local r = M.result { recipe = o.recipe, bits = 4, scheme = "W4A16", seed = 3, layers = 1 }
  r.status, r.figures, r.modules, r.message = "failed", {}, json.array {}, o.message
  return r
end

--- many(n, layers) -> n results of as many recipes, each with 7 modules a layer and one more.
function M.many(n, layers)
  local out = { M.result { seed = 1 } }
  for i = 2, n do
    local r = M.recipes[i % #M.recipes + 1]
    out[i] = M.result { recipe = ("%s-%04d"):format(r[1], i), bits = r[2] + i / n / 2, scheme = r[3], layers = layers, seed = i }
  end
  return out
end

return M
