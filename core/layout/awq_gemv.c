/* awq_gemv.c - AutoAWQ's "gemv" and "gemv_fast" files, 4 bits (FORMATS 2).
 *
 * gemv: qweight I32 [n, k/8] and qzeros I32 [n, w], plain nibbles along k and G;
 * scales F16 [n, 8*w]. w is padded past ceil(G/8); the padding holds zeros.
 *
 * gemv_fast: qweight I16 [n/4, k]; four rows x 64 k are 256 nibbles in a row:
 *
 *   | row 0: k 0..31, k 32..63 | row 1 | row 2 | row 3 |        16 words of 16 bits each
 *
 *   inside 32 k, nibble 8y + 4z + x holds k = 8x + 2y + z       (x, y in 0..3, z in 0..1)
 *
 * scales F16 [G', n] and qzeros F16 [G', n] = -(scale*zero), G' >= G padded with 0. */
#include "layout.h"

#include <math.h>

/* ---- gemv ------------------------------------------------------------------- */

static int gemv_plane(nb_plane *p, const nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0,
                      bool exact, const char *what) {
  NB_TRY(nb_expect_bits(what, bits, 4, 4));
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(-1, -1)));
  int64_t r = codes->shape[0], k = codes->shape[1], width = words->shape[1];
  if (exact ? width * 8 != k : width * 8 < k)
    return nb_fail(NB_EINVAL, "%s: %lld codes of 4 bits a row don't fit rows of %lld words (8 codes each)",
                   what, (long long)k, (long long)width);
  NB_TRY(nb_expect_rows(what, n0, r, words->shape[0], 1));
  *p = (nb_plane){.words = (uint32_t *)words->data + n0 * width,
                  .codes = codes->data,
                  .bits = 4,
                  .total = width * 8,
                  .count = k,
                  .streams = r,
                  .word_step = 1,
                  .word_stream = width,
                  .code_step = 1,
                  .code_stream = k};
  return NB_OK;
}

static int gemv_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0, bool exact,
                     const char *what) {
  nb_plane p;
  NB_TRY(gemv_plane(&p, words, codes, bits, n0, exact, what));
  return nb_plane_pack(&p, codes, what);
}

static int gemv_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0, bool exact,
                       const char *what) {
  nb_plane p;
  NB_TRY(gemv_plane(&p, words, codes, bits, n0, exact, what));
  return nb_plane_unpack(&p);
}

int nb_awq_gemv_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0) {
  return gemv_pack(words, codes, bits, n0, true, "awq_gemv pack");
}

int nb_awq_gemv_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0) {
  return gemv_unpack(codes, words, bits, n0, true, "awq_gemv unpack");
}

int nb_awq_gemv_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0) {
  return gemv_pack(words, zeros, bits, n0, false, "awq_gemv pack_zeros");
}

int nb_awq_gemv_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0) {
  return gemv_unpack(zeros, words, bits, n0, false, "awq_gemv unpack_zeros");
}

/* ---- gemv_fast -------------------------------------------------------------- */

/* k inside 32 of the nibble at position p. */
static int fast_k(int p) { return 8 * (p % 4) + 2 * (p / 8) + (p / 4) % 2; }

static int fast_check(const nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0,
                      const char *what) {
  NB_TRY(nb_expect_bits(what, bits, 4, 4));
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t r = codes->shape[0], k = codes->shape[1];
  NB_TRY(nb_expect(words, what, NB_I16, 2, NB_SHAPE(-1, k)));
  if (k % 64) return nb_fail(NB_EINVAL, "%s: k must be a multiple of 64, found %lld", what, (long long)k);
  return nb_expect_rows(what, n0, r, words->shape[0] * 4, 4);
}

int nb_awq_gemv_fast_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0) {
  NB_TRY(fast_check(words, codes, bits, n0, "awq_gemv_fast pack"));
  int64_t r = codes->shape[0], k = codes->shape[1];
  uint16_t *out = (uint16_t *)words->data + n0 / 4 * k;
  const uint8_t *c = codes->data;
  unsigned seen = 0;
  for (int64_t n = 0; n < r; n++) {
    if (nb_stop_requested()) return nb_fail_stopped();
    for (int64_t b = 0; b < k; b += 32)
      for (int w = 0; w < 8; w++) { /* 8 words of 4 nibbles: 32 codes of row n */
        unsigned word = 0;
        for (int u = 0; u < 4; u++) {
          uint8_t code = c[n * k + b + fast_k(4 * w + u)];
          seen |= code;
          word |= (unsigned)(code & 15) << (4 * u);
        }
        out[n / 4 * k + b / 64 * 64 + n % 4 * 16 + b % 64 / 4 + w] = (uint16_t)word;
      }
  }
  return seen >> 4 ? nb_codes_check(codes, bits, "awq_gemv_fast pack") : NB_OK;
}

int nb_awq_gemv_fast_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0) {
  NB_TRY(fast_check(words, codes, bits, n0, "awq_gemv_fast unpack"));
  int64_t r = codes->shape[0], k = codes->shape[1];
  const uint16_t *in = (const uint16_t *)words->data + n0 / 4 * k;
  uint8_t *c = codes->data;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (r * k > (1 << 15))
  for (int64_t n = 0; n < r; n++) {
    if (nb_stop_requested()) stopped = 1;
    for (int64_t b = 0; b < k && !stopped; b += 32)
      for (int p = 0; p < 32; p++)
        c[n * k + b + fast_k(p)] =
            (uint8_t)(in[n / 4 * k + b / 64 * 64 + n % 4 * 16 + b % 64 / 4 + p / 4] >> (p % 4 * 4) & 15);
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- gemv_fast zero-points: float -(scale*zero) ------------------------------ */

static int fast_zeros_check(const nb_tensor *qzeros, const nb_tensor *scales, const nb_tensor *zeros,
                            int64_t n0, const char *what) {
  NB_TRY(nb_expect(zeros, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(qzeros, what, NB_F16, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(scales, what, NB_F16, 2, NB_SHAPE(qzeros->shape[0], qzeros->shape[1])));
  if (zeros->shape[1] > qzeros->shape[0])
    return nb_fail(NB_EINVAL, "%s: %lld groups don't fit the %lld rows of qzeros", what,
                   (long long)zeros->shape[1], (long long)qzeros->shape[0]);
  return nb_expect_rows(what, n0, zeros->shape[0], qzeros->shape[1], 1);
}

static uint16_t folded_zero(uint16_t scale, int zero) {
  return nb_f32_to_f16(-(nb_f16_to_f32(scale) * (float)zero));
}

int nb_awq_gemv_fast_pack_zeros(nb_tensor *qzeros, const nb_tensor *scales, const nb_tensor *zeros,
                                int64_t n0) {
  NB_TRY(fast_zeros_check(qzeros, scales, zeros, n0, "awq_gemv_fast pack_zeros"));
  int64_t r = zeros->shape[0], groups = zeros->shape[1], n = qzeros->shape[1];
  const uint8_t *z = zeros->data;
  NB_TRY(nb_codes_check(zeros, 4, "awq_gemv_fast pack_zeros"));
  for (int64_t g = 0; g < groups; g++)
    for (int64_t i = 0; i < r; i++) {
      int64_t at = g * n + n0 + i;
      ((uint16_t *)qzeros->data)[at] = folded_zero(((const uint16_t *)scales->data)[at], z[i * groups + g]);
    }
  return NB_OK;
}

int nb_awq_gemv_fast_unpack_zeros(nb_tensor *zeros, const nb_tensor *qzeros, const nb_tensor *scales,
                                  int64_t n0) {
  NB_TRY(fast_zeros_check(qzeros, scales, zeros, n0, "awq_gemv_fast unpack_zeros"));
  int64_t r = zeros->shape[0], groups = zeros->shape[1], n = qzeros->shape[1];
  uint8_t *z = zeros->data;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t i = 0; i < r; i++) {
      int64_t at = g * n + n0 + i;
      uint16_t folded = ((const uint16_t *)qzeros->data)[at], scale = ((const uint16_t *)scales->data)[at];
      float zero = rintf(-nb_f16_to_f32(folded) / nb_f16_to_f32(scale));
      if (!(zero >= 0 && zero <= 15) || ((folded ^ folded_zero(scale, (int)zero)) & 0x7fff))
        return nb_fail(
            NB_EINEXACT,
            "awq_gemv_fast unpack_zeros: group %lld, column %lld: %g is not minus a whole zero-point of "
            "0 to 15 times the scale %g",
            (long long)g, (long long)(n0 + i), (double)nb_f16_to_f32(folded), (double)nb_f16_to_f32(scale));
      z[i * groups + g] = (uint8_t)zero;
    }
  return NB_OK;
}
