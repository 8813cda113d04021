-- Bugs for the products of 8- and 4-bit floats.
local CODES, LOOP = "cuda/kernels/product_floats.cuh", "cuda/kernels/product_loop.cuh"
local SHAPE, ORDER, ROWS = "cuda/kernels/product_fetch.cuh", "cuda/kernels/marlin_order.cuh", "cuda/kernels/product_rows.cu"
local HOST, WEIGHT = "cuda/product.c", "cuda/marlin_weight.c"

return {
  spec = "spec/cuda_product_float_spec.lua",
  bugs = {
    { "e4m3 in f16, its exponent one place off", CODES, "q << 7 & 0x3f803f80", "q << 6 & 0x3f803f80" },
    { "e4m3 in bf16, its last bit", CODES, "q >> 4 & 0x07f007f0", "q >> 4 & 0x07e007e0" },
    { "e4m3 in bf16 without signs", CODES, "b[1] = lop3<AND_OR>(q, SIGNS, q >> 4", "b[1] = lop3<AND_OR>(0u, SIGNS, q >> 4" },
    { "e2m1, slots changed", CODES, "b[0] = pick_bytes(even", "b[0] = pick_bytes(odd" },
    { "e2m1 in bf16, the next column's rows", CODES,
      "next[0] = lop3<AND_OR>(q << 4, SIGNS, q >> 2", "next[0] = lop3<AND_OR>(q << 4, SIGNS, q >> 6" },
    { "scales' bytes in their columns' order", CODES, "to[2] = float_of_bits(w << 15", "to[1] = float_of_bits(w << 15",
      "to[1] = float_of_bits(w << 7", "to[2] = float_of_bits(w << 7" },
    { "scales of weights, every other column's", CODES, "t % 2 ? 0x3232 : 0x1010", "0x1010" },
    { "scales of weights, NaN in bf16", CODES, "<< 4 & 0x7ff07ff0 : w << 7", "<< 4 & 0x3ff03ff0 : w << 7" },
    { "FP8 scales with their unit", CODES, "return bf16::high(pair) * 0x1p-120f;", "return bf16::high(pair);" },
    { "one row of scales is not one", CODES, "return 0x7b807b80;", "return 0x3f803f80;" },
    { "groups of 16, a warp's first only", LOOP,
      "scales + (at.k * 4 + step) * S::SCALE_ROW", "scales + at.k * 4 * S::SCALE_ROW" },
    { "weights not raised", SHAPE, "CODES::UNIT > 0x1p64f && !SCALES::OF_WEIGHTS", "CODES::UNIT > 0x1p127f && !SCALES::OF_WEIGHTS" },
    { "scales of bytes take two", SHAPE, "SCALE_ROW = COLUMNS * SCALES::BYTES / PIECE", "SCALE_ROW = COLUMNS * 2 / PIECE" },
    { "bytes in the order of 16-bit scales", ORDER, "? byte_place(place)", "? place" },
    { "rows' scales without their factor", ROWS, "(scale * j.scale_factor)", "scale" },
    { "one group of bytes to the tensor cores", HOST,
      "w->scale == NB_MARLIN_E8M0 && p->groups == 1", "w->scale == NB_MARLIN_E8M0 && p->groups == 0" },
    { "NVFP4's unit", "cuda/dequantize_marlin.c", "? 0x1p-7 : 1", "? 0x1p-6 : 1" },
    { "NVFP4 is not taken", WEIGHT, "w->code == NB_MARLIN_E2M1 ? w->scale == NB_MARLIN_S0E5M3 ||",
      "w->code == NB_MARLIN_E2M1 ? w->scale == NB_MARLIN_FLOAT ||" },
  },
}
