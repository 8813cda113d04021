-- explain: which method and kernel each layer gets at a consumer, every one that is refused and why.
local target = require "nibble.cli.target"

local M = {
  summary = "which method and kernel a consumer gives each layer, what it refuses and why",
  notes = "MODULE: a name, a glob, a piece of a name, or re:REGULAR-EXPRESSION; each layer in full. Without it: all\n"
    .. "layers in a table. Layers are the consumer's: q_proj, k_proj and v_proj may be one, and a mixture's experts.",
  args = { { "MODEL" }, { "MODULE", optional = true } },
  options = target.options {
    { "--method", "NAME", doc = "the quantization method the user asks the consumer for" },
    { "--backend", "NAME", doc = "a kernel by name; it is checked alone" },
    { "--recipe", "RECIPE", doc = "a recipe whose kernels (prefer, fallback, stage) count" },
    { "--force", "STAGE", doc = "skip, plain, generic or marlin, for the layers that MODULE names" },
    { "--strict", doc = "refuse where the consumer would fall back" },
    { "--json", doc = "one JSON document" },
  },
}

function M.run(values)
  local nb = require "nibble"
  local ck = assert(nb.open(values.model))
  local t = target.of(values)
  t.method, t.backend, t.recipe = values.method, values.backend, values.recipe
  t.policy = values.strict and "raise" or nil
  local shown
  if values.force then t.force = { { assert(nb.formats.matcher(values.module or "*")), values.force } } end
  if values.module then shown = assert(nb.select.explain(ck, values.module, t))
  else shown = assert(nb.select.explain(ck, t)) end
  if values.json then
    io.write(nb.json.encode(shown:totable(), { indent = 2 }), "\n")
  else
    io.write(tostring(shown), "\n")
  end
  return 0
end

return M
