-- eval: perplexity of a model over a text, and its distance from another model.
local common = require "nibble.cli.common"

local M = {
  summary = "perplexity over a text; KL divergence and top-1 agreement against another model",
  notes = "Each window is BOS and context-1 tokens of the text.",
  args = { { "MODEL" } },
  options = {
    { "--text", "FILE", doc = "a UTF-8 text, tokenized by the model's tokenizer.json" },
    { "--ids", "FILE", doc = "token ids instead: a .safetensors file with `ids`" },
    { "--context", "N", number = true, least = 2, doc = "tokens of a window, BOS included (default 2048)" },
    { "--windows", "N", number = true, doc = "only the first N windows" },
    { "--activations", "WHICH", values = { "stored", "none" },
      doc = "stored (default): layers quantize their inputs as their scheme says; none: only weights count" },
    { "--through", "METHOD", words = function() return require("nibble.methods").names() end,
      doc = "reference (default): dequantized weights; auto, or a system's method such as awq_marlin: "
      .. "layers run from the form its kernels read" },
    { "--device", "NAME", words = function() return { "cpu", "cuda" } end,
      doc = "cpu (default), or cuda, cuda:1 …: the models run there, whole, in 16 bits; weights that don't fit are streamed" },
    { "--dtype", "NAME", values = { "f32", "f16", "bf16" },
      doc = "of activations on the device: f16 (default), bf16, or f32, slower: nearer to the CPU where inputs are quantized" },
    { "--against", "MODEL", doc = "the model to compare with" },
    { "--json", doc = "one JSON document" },
  },
  again = true,
}

-- The bounds of the recipe that made the model (its certificate keeps them), against the figures.
local function missed(model, result)
  local checkpoint = require "nibble.checkpoint"
  local text = checkpoint.read_file(model.dir .. "/nibble.json")
  local certificate = text and require("nibble.json").decode(text)
  return require("nibble.eval").judge(type(certificate) == "table" and certificate.accept or {}, result)
end

function M.run(values)
  if (values.text == nil) == (values.ids == nil) then
    error("eval needs either --text FILE or --ids FILE", 0)
  end
  local nb = require "nibble"
  local model = assert(nb.open(values.model))
  local against = values.against and assert(nb.open(values.against))
  local result = assert(common.with_progress(function(report)
    return nb.eval.run {
      model = model, against = against or nil, text = values.text, ids = values.ids,
      activations = values.activations, through = values.through, device = values.device, dtype = values.dtype,
      context = values.context or 2048, windows = values.windows,
      progress = function(p) report { share = p.done / p.total, done = p.tokens, unit = "tokens", seconds = p.seconds } end,
    }
  end))
  for _, warning in ipairs(result.warnings or {}) do require("nibble.cli").say("%s", warning) end
  if values.json then
    result.warnings = nb.json.array(result.warnings)
    io.write(nb.json.encode(result, { indent = 2 }), "\n")
  else
    io.write(tostring(result), "\n")
  end
  local why = missed(model, result)
  if why then require("nibble.cli").say("%s", why) end
  return why and 1 or 0
end

return M
