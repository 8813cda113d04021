-- Bugs for the products of experts; what they share with other products is in product.lua.
local LOOP, FETCH, FINISH = "cuda/kernels/product_loop.cuh", "cuda/kernels/product_fetch.cuh", "cuda/kernels/product_finish.cuh"
local ROUTES, ROWS, HOST = "cuda/kernels/product_routes.cuh", "cuda/kernels/product_rows.cu", "cuda/product_experts.c"

return {
  spec = "spec/cuda_experts_spec.lua",
  bugs = {
    { "strangers' blocks are fetched", FETCH, "todo -= (c.tiles - tile) * c.depth - stage;", "todo -= (c.tiles - tile) * c.depth;" },
    { "the next block's rows of x", FETCH, "if (!across) block++;", "" },
    { "rows of x before all have read the last block's", FETCH, "__syncwarp(); /* all of a row's", "/* all of a row's" },
    { "another expert's words", FETCH, "(int64_t)expert * (j.k / S::TILE_K)", "(int64_t)expert * (j.k / S::TILE_K - 1)" },
    { "another expert's scales", FETCH, "(int64_t)expert * (j.k / j.group)", "(int64_t)(expert / 2) * (j.k / j.group)" },
    { "another expert's zero-points", LOOP, "(int64_t)u.expert * (j.n * S::BITS / 32)", "(int64_t)(u.expert / 2) * (j.n * S::BITS / 32)" },
    { "another expert's bias", FINISH, "u.expert * (j.n / 2)", "u.expert / 2 * (j.n / 2)" },
    { "a tile of another block", FINISH, "{unit, unit - block * c.tiles, block,", "{unit, unit % (c.tiles + 1), block," },
    { "a block without work goes on", LOOP, "if (EXPERTS && left <= 0) return;", "if (EXPERTS && left < 0) left = 1;" },
    { "strangers' work is counted twice", LOOP, "    left -= stages;\n    if (EXPERTS && u.expert < 0) continue;",
      "    if (EXPERTS && u.expert < 0) continue;\n    left -= stages;" },
    { "rows beyond a block", ROUTES, "if (r >= j.to.block) return -1;", "" },
    { "rows of nobody", ROUTES, "pair >= 0 && pair < j.m ? pair : -1", "pair >= 0 && pair <= j.m ? pair : -1" },
    { "x's rows not shared by a token's pairs", ROUTES, "return row / j.to.top;", "return row;" },
    { "weights of the token", ROUTES, "j.to.weights[row]", "j.to.weights[row / j.to.top]" },
    { "skipped experts", ROUTES, " && !(j.to.skip && j.to.skip[e])", "" },
    { "one global scale for all", ROUTES, "j.to.globals[expert]", "j.to.globals[0]" },
    { "counts of other blocks", FINISH, "add_in_turn(j.arrived + first, 1)", "add_in_turn(j.arrived + (int)blockIdx.x, 1)" },
    { "another expert's order", ROWS, "perm + (int64_t)expert * k", "perm" },
    { "another expert's groups", ROWS, "j.g_idx = g_idx + (int64_t)e * k", "j.g_idx = g_idx" },
    { "all orders looked at as one", ROWS, "g_idx + (int64_t)blockIdx.x * k, k, group", "g_idx, k, group" },
    { "pairs of the next block's expert", ROWS, "{sorted, at * block + first, block - first, pairs, top}",
      "{sorted, at * block + first, block, pairs, top}" },
    { "gathered rows counted as tokens'", HOST, "e->x = out->data, e->top = 1;", "e->x = out->data;" },
  },
}
