-- The table at the end of `make demo`: the original and what became of it, side by side.
--   nibble scripts/demo.lua MODEL QUANTIZED TEXT
local nb = require "nibble"

local original, quantized = assert(nb.open(arg[1])), assert(nb.open(arg[2]))
local r = assert(nb.eval.run { model = quantized, against = original, text = arg[3], context = 256 })

local function size(ck)
  local bytes, params, linear_bits, linear_params = 0, 0, 0, 0
  for _, rec in ipairs(assert(ck:modules())) do
    bytes, params = bytes + rec.bytes, params + (rec.params or 0)
    if rec.kind == "linear" and not rec.name:match "lm_head" then
      linear_bits, linear_params = linear_bits + rec.bytes * 8, linear_params + rec.params
    end
  end
  return bytes, bytes * 8 / params, linear_bits / linear_params
end

local b0, all0, lin0 = size(original)
local b1, all1, lin1 = size(quantized)
print(("%-28s %14s %14s"):format("", original.name, quantized.name))
local function row(name, fmt, a, b) print(("%-28s %14s %14s"):format(name, fmt:format(a), b and fmt:format(b) or "")) end
row("size, MiB", "%.2f", b0 / 2 ^ 20, b1 / 2 ^ 20)
row("bits per weight", "%.3f", all0, all1)
row("bits per weight, linears", "%.3f", lin0, lin1)
row("perplexity", "%.4f", r.ppl_against, r.ppl)
row("nll per token", "%.5f", r.nll_against, r.nll)
print(("%-28s %14s %14.5f"):format("KL divergence", "", r.kl))
print(("%-28s %14s %14s"):format("same first choice", "", ("%.2f %%"):format(r.top1_agreement * 100)))
print(("%d tokens in %.1f s"):format(r.tokens, r.seconds))
