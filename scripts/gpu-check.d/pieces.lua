-- pieces: the files of pieces/, one a piece of nibble.cuda: each returns functions correctness(ctx) and benchmarks(ctx) that
-- give its cases for these stages.
local M = {}

local FILES = { "primitives", "repack", "permute", "dequantize", "quantize", "product", "product_float", "fp8",
  "product_a8", "experts", "blas", "moe_tokens", "forward", "models" }

--- collect("correctness" | "benchmarks" | "models", ctx) -> all cases, or with ctx.only those whose name has this pattern
-- A case of each piece in turn: a time that is too short leaves something of each.
function M.collect(what, ctx)
  local lists, most, cases = {}, 0, {}
  for i, name in ipairs(FILES) do
    local piece = dofile(("%s/scripts/gpu-check.d/pieces/%s.lua"):format(ctx.root, name))
    lists[i] = {}
    for _, case in ipairs(piece[what] and piece[what](ctx) or {}) do
      if not ctx.only or case.name:find(ctx.only) then table.insert(lists[i], case) end
    end
    most = math.max(most, #lists[i])
  end
  for nth = 1, most do
    for _, list in ipairs(lists) do cases[#cases + 1] = list[nth] end
  end
  return cases
end

return M
