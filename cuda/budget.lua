-- budget: the most instructions that a warp may issue for a tile of 16 rows and 64 columns of weights, by kernel
-- (scripts/cuda-budget.lua counts, scripts/cuda-check asks). From memory a tile of 4 bits comes every 110 issue slots
-- of an H200, one of 8 bits every 220. sass: the machine's own; ptx: where there is no disassembler.
return {
  sass = {
    nb_product_f16_w4_m16 = 110, nb_product_f16_w4_m32 = 200, nb_product_f16_w4_m64 = 200,
    nb_product_f16_w8_m16 = 200, nb_product_f16_w8_m32 = 200, nb_product_f16_w8_m64 = 200,
    nb_product_bf16_w4_m16 = 110, nb_product_bf16_w4_m32 = 200, nb_product_bf16_w4_m64 = 200,
    nb_product_bf16_w8_m16 = 200, nb_product_bf16_w8_m32 = 200, nb_product_bf16_w8_m64 = 200,
  },
  ptx = {
    nb_product_f16_w4_m16 = 200, nb_product_f16_w4_m32 = 200, nb_product_f16_w4_m64 = 200,
    nb_product_f16_w8_m16 = 200, nb_product_f16_w8_m32 = 200, nb_product_f16_w8_m64 = 200,
    nb_product_bf16_w4_m16 = 200, nb_product_bf16_w4_m32 = 200, nb_product_bf16_w4_m64 = 200,
    nb_product_bf16_w8_m16 = 200, nb_product_bf16_w8_m32 = 200, nb_product_bf16_w8_m64 = 200,
  },
}
