-- pieces: the files of pieces/, one a piece of nibble.cuda: each returns functions correctness(ctx) and benchmarks(ctx) that
-- give its cases for these stages.
local M = {}

local FILES = { "primitives", "repack", "permute", "dequantize", "quantize", "product", "product_float", "fp8",
  "product_a8", "experts", "blas", "moe_tokens", "forward" }

-- Whole models last: they take longest.
FILES[#FILES + 1] = "models"

--- collect("correctness" | "benchmarks", ctx) -> all cases, or with ctx.only those whose name has this pattern
function M.collect(what, ctx)
  local cases = {}
  for _, name in ipairs(FILES) do
    local path = ("%s/scripts/gpu-check.d/pieces/%s.lua"):format(ctx.root, name)
    local piece = dofile(path)
    for _, case in ipairs(piece[what] and piece[what](ctx) or {}) do
      if not ctx.only or case.name:find(ctx.only) then cases[#cases + 1] = case end
    end
  end
  return cases
end

return M
