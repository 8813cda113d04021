-- budget: the most instructions that a warp may issue for a tile of 16 rows and 64 columns of weights, by kernel
-- (scripts/cuda-budget.lua counts, scripts/cuda-check asks). At an H200's copy rate a tile of 4 bits comes every 110 issue
-- slots, one of 8 bits every 220, one of NVFP4 with its scales every 124; with more than 16 rows of x the tensor cores take
-- longer than that. sass: the machine's own, of the target that takes most; ptx: where there is no disassembler.
return {
  sass = {
    nb_product_f16_w4_m16 = 98, nb_product_f16_w4_m32 = 126, nb_product_f16_w4_m64 = 122,
    nb_product_f16_w8_m16 = 102, nb_product_f16_w8_m32 = 128, nb_product_f16_w8_m64 = 122,
    nb_product_bf16_w4_m16 = 102, nb_product_bf16_w4_m32 = 130, nb_product_bf16_w4_m64 = 125,
    nb_product_bf16_w8_m16 = 136, nb_product_bf16_w8_m32 = 164, nb_product_bf16_w8_m64 = 156,
    nb_product_experts_f16_w4_m16 = 104, nb_product_experts_f16_w4_m32 = 131, nb_product_experts_f16_w4_m64 = 126,
    nb_product_experts_f16_w8_m16 = 104, nb_product_experts_f16_w8_m32 = 142, nb_product_experts_f16_w8_m64 = 132,
    nb_product_experts_bf16_w4_m16 = 108, nb_product_experts_bf16_w4_m32 = 138, nb_product_experts_bf16_w4_m64 = 133,
    nb_product_experts_bf16_w8_m16 = 136, nb_product_experts_bf16_w8_m32 = 173, nb_product_experts_bf16_w8_m64 = 165,
    nb_product_f16_fp8_m16 = 113, nb_product_f16_fp8_m32 = 131, nb_product_f16_fp8_m64 = 128,
    nb_product_f16_mxfp8_m16 = 116, nb_product_f16_mxfp8_m32 = 135, nb_product_f16_mxfp8_m64 = 131,
    nb_product_f16_mxfp4_m16 = 98, nb_product_f16_mxfp4_m32 = 116, nb_product_f16_mxfp4_m64 = 114,
    nb_product_f16_nvfp4_m16 = 115, nb_product_f16_nvfp4_m32 = 125, nb_product_f16_nvfp4_m64 = 122,
    nb_product_bf16_fp8_m16 = 134, nb_product_bf16_fp8_m32 = 152, nb_product_bf16_fp8_m64 = 148,
    nb_product_bf16_mxfp8_m16 = 134, nb_product_bf16_mxfp8_m32 = 152, nb_product_bf16_mxfp8_m64 = 148,
    nb_product_bf16_mxfp4_m16 = 131, nb_product_bf16_mxfp4_m32 = 150, nb_product_bf16_mxfp4_m64 = 148,
    nb_product_bf16_nvfp4_m16 = 136, nb_product_bf16_nvfp4_m32 = 146, nb_product_bf16_nvfp4_m64 = 143,
  },
  ptx = {
    nb_product_f16_w4_m16 = 118, nb_product_f16_w4_m32 = 148, nb_product_f16_w4_m64 = 144,
    nb_product_f16_w8_m16 = 112, nb_product_f16_w8_m32 = 142, nb_product_f16_w8_m64 = 136,
    nb_product_bf16_w4_m16 = 114, nb_product_bf16_w4_m32 = 144, nb_product_bf16_w4_m64 = 140,
    nb_product_bf16_w8_m16 = 152, nb_product_bf16_w8_m32 = 182, nb_product_bf16_w8_m64 = 176,
    nb_product_experts_f16_w4_m16 = 120, nb_product_experts_f16_w4_m32 = 150, nb_product_experts_f16_w4_m64 = 147,
    nb_product_experts_f16_w8_m16 = 117, nb_product_experts_f16_w8_m32 = 146, nb_product_experts_f16_w8_m64 = 141,
    nb_product_experts_bf16_w4_m16 = 116, nb_product_experts_bf16_w4_m32 = 146, nb_product_experts_bf16_w4_m64 = 143,
    nb_product_experts_bf16_w8_m16 = 157, nb_product_experts_bf16_w8_m32 = 186, nb_product_experts_bf16_w8_m64 = 180,
    nb_product_f16_fp8_m16 = 138, nb_product_f16_fp8_m32 = 166, nb_product_f16_fp8_m64 = 160,
    nb_product_f16_mxfp8_m16 = 139, nb_product_f16_mxfp8_m32 = 167, nb_product_f16_mxfp8_m64 = 162,
    nb_product_f16_mxfp4_m16 = 118, nb_product_f16_mxfp4_m32 = 148, nb_product_f16_mxfp4_m64 = 144,
    nb_product_f16_nvfp4_m16 = 122, nb_product_f16_nvfp4_m32 = 136, nb_product_f16_nvfp4_m64 = 131,
    nb_product_bf16_fp8_m16 = 159, nb_product_bf16_fp8_m32 = 187, nb_product_bf16_fp8_m64 = 181,
    nb_product_bf16_mxfp8_m16 = 158, nb_product_bf16_mxfp8_m32 = 186, nb_product_bf16_mxfp8_m64 = 180,
    nb_product_bf16_mxfp4_m16 = 153, nb_product_bf16_mxfp4_m32 = 183, nb_product_bf16_mxfp4_m64 = 179,
    nb_product_bf16_nvfp4_m16 = 143, nb_product_bf16_nvfp4_m32 = 157, nb_product_bf16_nvfp4_m64 = 152,
  },
}
