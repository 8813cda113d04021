-- Bugs for the product kernels.
local LOOP, FETCH, FINISH = "cuda/kernels/product_loop.cuh", "cuda/kernels/product_fetch.cuh", "cuda/kernels/product_finish.cuh"
local CODES, ROWS = "cuda/kernels/product_codes.cuh", "cuda/kernels/product_rows.cu"

return {
  spec = "spec/cuda_product_spec.lua",
  bugs = {
    { "wait, one stage too late", LOOP, "cp_async_wait<STAGES - 2>()", "cp_async_wait<STAGES - 1>()" },
    { "barrier before the wait", LOOP, "cp_async_wait<STAGES - 2>();\n      __syncthreads();",
      "__syncthreads();\n      cp_async_wait<STAGES - 2>();" },
    { "barrier of the stages dropped", LOOP, "      __syncthreads(); /* the stage", "      /* the stage" },
    { "stages not taken in turn", FETCH, "to == (STAGES - 1) * c.pieces ? 0", "to == (STAGES - 2) * c.pieces ? 0" },
    { "the last rows of k", FETCH, "x_left && i * X_STEP < j.m - row", "i * X_STEP < j.m - row" },
    { "the last columns", FETCH, "(p + along) / HALF_ROW * 64 < columns", "(p + along) / HALF_ROW * 64 < columns + 64" },
    { "scales of a group begun by another block", FETCH, "same = c.same - stage % c.same;", "same = c.same;" },
    { "bank conflicts, 8 bits", FETCH, "(p % BOTH / 2 ^ p % 2 * 4)", "p % BOTH / 2" },
    { "x as it lies", FETCH, "row / 2 % S::X_ROW : row % 8", "row / 2 % S::X_ROW : 0" },
    { "next tile's words", FETCH, "words_back = S::TILE_ROW - c.depth", "words_back = S::TILE_ROW - (c.depth - 1)" },
    { "columns of scales changed", LOOP, "i % 2 ? high[t] : low[t]", "i % 2 ? low[t] : high[t]" },
    { "groups of 32, their second half", LOOP, "(at.k * 64 + 32) / j.group", "at.k * 64 / j.group" },
    { "zero-points' slots", LOOP, ">> slot * S::BITS", ">> slot * 8" },
    { "nibbles changed", CODES, "lop3<AND_OR>(q, 0x00f000f0, 0x64006400)", "lop3<AND_OR>(q, 0x000f000f, 0x64006400)" },
    { "zero-point one off", CODES, "0xc308c308", "0xc307c307" },
    { "the eighth bit", CODES, "0x00800080, 0xc380c380", "0x00800080, 0xc300c300" },
    { "warps change the wrong halves", FINISH, "(at.warp ^ 2)", "(at.warp ^ 1)" },
    { "counts stay", FINISH, "if (last[0]) j.arrived[first] = 0;", "" },
    { "the other part", FINISH, "block * 2 + (block * per / depth != unit)", "block * 2" },
    { "one block too few is waited for", FINISH, "== others;", "== others - 1;" },
    { "bias of other columns", FINISH, "across / 4 * 32", "across / 4 * 16" },
    { "scales of other rows", FINISH, "j.row_scale[ROUTES::source(j, row)]", "j.row_scale[0]" },
    { "scales of the first rows for all", LOOP, "if (j.row_scale) j.row_scale = j.row_scale + before;", "" },
    { "rows' scales after all", ROWS, "if (to.row_scale) sum *= to.row_scale[row / at.top];", "" },
    { "rows beyond m", "cuda/kernels/product_routes.cuh", "r < j.m ? r : -1", "r <= j.m ? r : -1" },
    { "order ignored", ROWS, "perm ? perm[i] : i", "i" },
    { "every order taken for a regular one", ROWS, "other || g_idx[i] != i / group", "other" },
    { "rows' scales in the other order", ROWS, "scale_place(c + 8 * t, j.groups > 1", "scale_place(c + 8 * t, j.groups < 1" },
  },
}
