-- budget: the most instructions that a warp may issue for a tile of 16 rows and 64 columns of weights, by kernel
-- (scripts/cuda-budget.lua counts, scripts/cuda-check asks). At an H200's copy rate a tile of 4 bits comes every 110 issue
-- slots, one of 8 bits every 220, one of NVFP4 with its scales every 124; with more than 16 rows of x the tensor cores take
-- longer than that. sass: the machine's own, of the target that takes most; ptx: where there is no disassembler. "NAME sm_80":
-- there. Products of 8-bit activations: experts' share a row with one weight's. Those of e4m3 are FP8's on sm_89 and sm_120;
-- sm_90a's and sm_100's mma.sync converts to f16 by itself, sm_80's codes are converted before.
local budget = {
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
    nb_product_experts_f16_fp8_m16 = 121, nb_product_experts_f16_fp8_m32 = 146, nb_product_experts_f16_fp8_m64 = 143,
    nb_product_experts_f16_mxfp8_m16 = 124, nb_product_experts_f16_mxfp8_m32 = 150, nb_product_experts_f16_mxfp8_m64 = 146,
    nb_product_experts_f16_mxfp4_m16 = 106, nb_product_experts_f16_mxfp4_m32 = 131, nb_product_experts_f16_mxfp4_m64 = 129,
    nb_product_experts_f16_nvfp4_m16 = 123, nb_product_experts_f16_nvfp4_m32 = 140, nb_product_experts_f16_nvfp4_m64 = 137,
    nb_product_experts_bf16_fp8_m16 = 142, nb_product_experts_bf16_fp8_m32 = 167, nb_product_experts_bf16_fp8_m64 = 163,
    nb_product_experts_bf16_mxfp8_m16 = 142, nb_product_experts_bf16_mxfp8_m32 = 167, nb_product_experts_bf16_mxfp8_m64 = 163,
    nb_product_experts_bf16_mxfp4_m16 = 139, nb_product_experts_bf16_mxfp4_m32 = 165, nb_product_experts_bf16_mxfp4_m64 = 163,
    nb_product_experts_bf16_nvfp4_m16 = 144, nb_product_experts_bf16_nvfp4_m32 = 161, nb_product_experts_bf16_nvfp4_m64 = 158,
  },
  ptx = {
    nb_product_f16_w4_m16 = 118, nb_product_f16_w4_m32 = 148, nb_product_f16_w4_m64 = 144,
    nb_product_f16_w8_m16 = 112, nb_product_f16_w8_m32 = 142, nb_product_f16_w8_m64 = 136,
    nb_product_bf16_w4_m16 = 114, nb_product_bf16_w4_m32 = 144, nb_product_bf16_w4_m64 = 140,
    nb_product_bf16_w8_m16 = 152, nb_product_bf16_w8_m32 = 182, nb_product_bf16_w8_m64 = 176,
    nb_product_experts_f16_w4_m16 = 120, nb_product_experts_f16_w4_m32 = 150, nb_product_experts_f16_w4_m64 = 147,
    nb_product_experts_f16_w8_m16 = 117, nb_product_experts_f16_w8_m32 = 146, nb_product_experts_f16_w8_m64 = 141,
    nb_product_experts_bf16_w4_m16 = 124, nb_product_experts_bf16_w4_m32 = 146, nb_product_experts_bf16_w4_m64 = 143,
    nb_product_experts_bf16_w8_m16 = 157, nb_product_experts_bf16_w8_m32 = 186, nb_product_experts_bf16_w8_m64 = 180,
    nb_product_f16_fp8_m16 = 138, nb_product_f16_fp8_m32 = 166, nb_product_f16_fp8_m64 = 160,
    nb_product_f16_mxfp8_m16 = 139, nb_product_f16_mxfp8_m32 = 167, nb_product_f16_mxfp8_m64 = 162,
    nb_product_f16_mxfp4_m16 = 118, nb_product_f16_mxfp4_m32 = 148, nb_product_f16_mxfp4_m64 = 144,
    nb_product_f16_nvfp4_m16 = 122, nb_product_f16_nvfp4_m32 = 136, nb_product_f16_nvfp4_m64 = 131,
    nb_product_bf16_fp8_m16 = 159, nb_product_bf16_fp8_m32 = 187, nb_product_bf16_fp8_m64 = 181,
    nb_product_bf16_mxfp8_m16 = 158, nb_product_bf16_mxfp8_m32 = 186, nb_product_bf16_mxfp8_m64 = 180,
    nb_product_bf16_mxfp4_m16 = 153, nb_product_bf16_mxfp4_m32 = 183, nb_product_bf16_mxfp4_m64 = 179,
    nb_product_bf16_nvfp4_m16 = 143, nb_product_bf16_nvfp4_m32 = 157, nb_product_bf16_nvfp4_m64 = 152,
    nb_product_experts_f16_fp8_m16 = 146, nb_product_experts_f16_fp8_m32 = 181, nb_product_experts_f16_fp8_m64 = 175,
    nb_product_experts_f16_mxfp8_m16 = 147, nb_product_experts_f16_mxfp8_m32 = 182, nb_product_experts_f16_mxfp8_m64 = 177,
    nb_product_experts_f16_mxfp4_m16 = 126, nb_product_experts_f16_mxfp4_m32 = 163, nb_product_experts_f16_mxfp4_m64 = 159,
    nb_product_experts_f16_nvfp4_m16 = 130, nb_product_experts_f16_nvfp4_m32 = 151, nb_product_experts_f16_nvfp4_m64 = 146,
    nb_product_experts_bf16_fp8_m16 = 167, nb_product_experts_bf16_fp8_m32 = 202, nb_product_experts_bf16_fp8_m64 = 196,
    nb_product_experts_bf16_mxfp8_m16 = 166, nb_product_experts_bf16_mxfp8_m32 = 201, nb_product_experts_bf16_mxfp8_m64 = 195,
    nb_product_experts_bf16_mxfp4_m16 = 161, nb_product_experts_bf16_mxfp4_m32 = 198, nb_product_experts_bf16_mxfp4_m64 = 194,
    nb_product_experts_bf16_nvfp4_m16 = 151, nb_product_experts_bf16_nvfp4_m32 = 172, nb_product_experts_bf16_nvfp4_m64 = 167,
  },
}

-- Of m16, m32 and m64, whatever y's dtype.
local function a8(kind, format, target, ...)
  for i, most in ipairs { ... } do
    for _, dtype in ipairs { "f16", "bf16" } do
      budget[kind][("nb_product_a8_%s_%s_m%d%s"):format(dtype, format, 8 * 2 ^ i, target)] = most
    end
  end
end
a8("sass", "int4", "", 97, 119, 114)
a8("sass", "int8", "", 72, 98, 92)
a8("sass", "folded4", "", 154, 191, 182)
a8("sass", "folded4", " sm_80", 361, 460, 451)
a8("sass", "e4m3", "", 98, 141, 133)
a8("sass", "e4m3", " sm_80", 306, 408, 406)
a8("sass", "e2m1", "", 144, 186, 152)
a8("sass", "e2m1", " sm_80", 354, 454, 426)
a8("ptx", "int4", "", 123, 162, 156)
a8("ptx", "int8", "", 100, 137, 131)
a8("ptx", "folded4", "", 126, 148, 122)
a8("ptx", "folded4", " sm_80", 414, 560, 534)
a8("ptx", "e4m3", "", 76, 97, 74)
a8("ptx", "e4m3", " sm_80", 358, 507, 486)
a8("ptx", "e2m1", "", 120, 137, 92)
a8("ptx", "e2m1", " sm_80", 402, 547, 504)

return budget
