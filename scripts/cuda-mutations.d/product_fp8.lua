-- Bugs for the products of small floats and the activations for them.
local KERNEL, HOST, BLAS = "cuda/kernels/product_fp8.cu", "cuda/product_fp8.c", "cuda/blas.c"

return {
  spec = "spec/cuda_product_fp8_spec.lua",
  bugs = {
    { "barrier before the sums dropped", KERNEL, "  __syncthreads();\n  for (int i = tid;", "  for (int i = tid;" },
    { "one warp's sums forgotten", KERNEL, "warp < (int)blockDim.x / LANES; warp++)", "warp < (int)blockDim.x / LANES - 1; warp++)" },
    { "bank conflicts", "cuda/kernels/product_fp8.h", "NB_FP8_PITCH = 36", "NB_FP8_PITCH = 32" },
    { "the last columns of k", KERNEL, "piece + 4 * h < j.pieces", "piece < j.pieces" },
    { "scales only where a lane has codes", KERNEL, "piece / 4 * 4 >= j.pieces", "piece >= j.pieces" },
    { "the next group's scales", KERNEL, "piece / (NB_FP8_GROUP / 16)", "(piece + 4) / (NB_FP8_GROUP / 16)" },
    { "halves of a word changed", KERNEL,
      "b[i][1] = f16_pair_of_e4m3(word(x[h][i], s) >> 16)",
      "b[i][1] = f16_pair_of_e4m3(word(x[h][i], s))" },
    { "rows of a half changed", KERNEL,
      "const uint32_t upper = word(w[h][2 * half], s)",
      "const uint32_t upper = word(w[h][2 * half + 1], s)" },
    { "tokens' scales changed", KERNEL, "xs[i][c % 2] * ws", "xs[i][c / 2] * ws" },
    { "rows beyond the last are read", KERNEL, "smaller(column + g + 8 * i, j.n - 1)", "(column + g + 8 * i)" },
    { "rows beyond m are written", KERNEL, "row >= j.m || column >= j.n", "column >= j.n" },
    { "bias before its column", KERNEL, "load_float(j.bias, column,", "load_float(j.bias, i % COLUMNS," },
    { "a step too far", KERNEL, "piece += round;", "piece += STEP;" },
    { "blocks of 64 rows", HOST, "block == 1 ? 0 : 7", "block == 1 ? 0 : 6" },
    { "scales of groups as they lie, to cuBLASLt", HOST, "blocks ? p->groups : 1, 1, p->m)", "blocks ? p->groups : 1, p->groups, 1)" },
    { "rows of blocks not filled up", HOST, "wide = NB_CEIL(p->groups, 4) * 4", "wide = p->groups" },
    { "x's scales for w", BLAS, "{{p->w_scales, LT_SCALE_A", "{{p->x_scales, LT_SCALE_A" },
    { "modes not told", BLAS, "if (!status && of[i].mode != LT_OF_ALL)", "if (!status && of[i].mode < 0)" },
    { "rows' scales on every GPU, which its library refuses", BLAS, "sm < least || (rows && sm != 90)", "sm < least",
      "if (p->w_scales && (status == LT_INVALID_VALUE", "if (false && (status == LT_INVALID_VALUE" },
    { "the least scale of a token for groups", "core/layout/act_quant.c", "mode == NB_ACT_TOKEN ? 1.0f", "mode != NB_ACT_STATIC ? 1.0f" },
    { "groups of a token", "cuda/quantize.c", "mode == NB_ACT_GROUP ? NB_ACT_COLUMNS : x->shape[1]", "x->shape[1]" },
  },
}
