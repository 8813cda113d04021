-- Bugs for 4-bit floats on both sides of a product.
local KERNEL, HOST, BLAS = "cuda/kernels/quantize_fp4.cu", "cuda/product_fp4.c", "cuda/blas.c"

return {
  spec = "spec/cuda_product_fp4_spec.lua",
  bugs = {
    { "scales row after row", KERNEL, "row % 32 * 16 + row % 128 / 32 * 4", "row % 128 * 4" },
    { "blocks of groups", KERNEL, "(row / 128) * (wide / 4) + group / 4", "(row / 128) + group / 4" },
    { "padding left as it was", KERNEL, "      scales[to] = 0;\n", "" },
    { "-0 for 0", KERNEL, "v != 0 ? code |", "v == v ? code |" },
    { "the sign lost", KERNEL, "bits_of_float(v) >> 28 & 8u", "0u" },
    { "no scale for zeros", KERNEL, "if (scale == 0) scale = 0x20;", "" },
    { "NaN hidden", KERNEL, "if (!finite) scale = 0x7f;", "" },
    { "odd columns first", KERNEL, "<< j % 8 * 4;", "<< (j % 8 ^ 1) * 4;" },
    { "w's scales for x", HOST, ".x_scales = x_scales->data", ".x_scales = w_scales->data" },
    { "e4m3 for e2m1", BLAS, "case NB_U8: return LT_E2M1;", "case NB_U8: return LT_E4M3;" },
    { "on every GPU", BLAS, "in == NB_U8 ? 100 :", "in == NB_U8 ? 80 :" },
  },
}
