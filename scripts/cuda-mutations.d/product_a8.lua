-- Bugs for the product kernels of 8-bit activations.
local LOOP, CODES, FETCH = "cuda/kernels/product_a8.cuh", "cuda/kernels/product_a8_codes.cuh", "cuda/kernels/product_fetch.cuh"
local HOST, SIZES = "cuda/product_a8.c", "cuda/kernels/product_a8.h"

return {
  spec = "spec/cuda_product_a8_spec.lua",
  bugs = {
    { "nibbles changed", CODES, "b[1] = (lop3<AND_OR>(q[0] >> 4, LOW", "b[1] = (lop3<AND_OR>(q[0], LOW" },
    { "a borrow from the neighbour", CODES, "SIGNS = 0x80808080", "SIGNS = 0x00808080" },
    { "the middle one off", CODES, "MIDDLE = 0x08080808", "MIDDLE = 0x07070707" },
    { "folded, one too small", CODES, "zero + 0x80 - 15", "zero + 0x80 - 16" },
    { "folded zero-points ignored", CODES, "(c + zero * ONES) >> 4 & ONES", "(c + 8 * ONES) >> 4 & ONES" },
    { "e2m1's mantissa", CODES, "q[0] << 2 & MAGNITUDES", "q[0] << 1 & MAGNITUDES" },
    { "int16 scales without a sign's place", CODES, "(float)((int32_t)of[t] >> 16)", "(float)((int32_t)of[t] >> 15)" },
    { "E8M0, the other pair", CODES, ">> t % 2 * 16;", ">> 0;" },
    { "zero-points of the other tile", LOOP, "(half * 4 + t) * 4 & 15", "t * 4 & 15" },
    { "rows of the other step", LOOP, "(x_at ^ step * 2)", "x_at" },
    { "words of the other tile", LOOP, "(at.n * 2 + half) * TILE", "at.n * 2 * TILE" },
    { "scales of the other tile", LOOP, "at.n * 2 + half, at.lane % 4", "at.n * 2, at.lane % 4" },
    { "sums not begun anew", LOOP, "        part[b][t][i] = SUMS::NOTHING;", "" },
    { "scales only at the end", LOOP, "if (step == 1 || r.next != r.first)", "if (step == 1)" },
    { "bank conflicts, four pieces to a row of x", FETCH, "row / 2 % S::X_ROW", "0" },
    { "no room for what warps exchange", SIZES, "(blocks == 2 ? 2 : 1)", "1" },
    { "the unit of folded codes", HOST, "0x1p9}", "1}" },
    { "rows of a later launch", HOST, "p->row_scale + row", "p->row_scale" },
  },
}
