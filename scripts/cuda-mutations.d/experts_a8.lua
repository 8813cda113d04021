-- Bugs for the products of experts and 8-bit activations; what they share with others is in moe_product.lua and product_a8.lua.
local SHAPES, FETCH, FINISH = "cuda/kernels/product_a8.cuh", "cuda/kernels/product_fetch.cuh", "cuda/kernels/product_finish.cuh"
local HOST, EXPERTS, SHARED, LUA = "cuda/product_a8.c", "cuda/product_experts.c", "cuda/product.c", "lua/nibble/cuda/experts.lua"

return {
  spec = "spec/cuda_experts_a8_spec.lua",
  bugs = {
    { "another expert's tiles of 32 rows", FETCH, "(int64_t)expert * (j.k / S::TILE_K)", "(int64_t)expert * (j.k / 16)" },
    { "x's pieces of 8 numbers", FETCH, "S::ROUTES::source(j, y_row) * (j.k / S::X_PIECE)", "S::ROUTES::source(j, y_row) * (j.k / 8)" },
    { "scales of pairs for those of tokens", FINISH, "j.row_scale[ROUTES::source(j, row)]", "j.row_scale[row]" },
    { "one expert's scales for all", FETCH, "(int64_t)expert * (j.k / j.group)", "(int64_t)0 * (j.k / j.group)" },
    { "strangers' rows of x", FETCH, "cp_async16_if(x_left && from >= 0,", "cp_async16_if(x_left," },
    { "int16 scales taken for floats", SHAPES, "NB_PRODUCT_ROUTES, whole != 0}", "NB_PRODUCT_ROUTES, false}" },
    { "a stage without room for zero-points", HOST, "scale_bytes, p->zeros != NULL)", "scale_bytes, 0)" },
    { "the unit of folded codes, of experts", SHARED, "if (p->w->a8) return nb_cuda_product_a8_factor(p);", "" },
    { "y of the scales' dtype, whatever it is to be", HOST, " || y->dtype == NB_F16 || y->dtype == NB_BF16)", ")" },
    { "columns filled up by half", SHARED, "(int)x->shape[1] / at_once", "(int)x->shape[1] / 2 / at_once" },
    { "x not filled up", EXPERTS, "e->columns < e->p.k) rc = widen", "e->columns < 0) rc = widen" },
    { "y of another dtype", LUA, "out.dtype = dtype --", "out.dtype = 0 --" },
    { "rows' scales twice", LUA, "x, scale, code = gemm.codes(x, w)",
      "x, scale, code = gemm.codes(x, setmetatable({ global = 2 }, { __index = w }))" },
  },
}
