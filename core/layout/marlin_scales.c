/* marlin_scales.c - Marlin's order of scales, bias and zero-points along n, and the
 * inverses (SYSTEMS 2.3, MRL-20 to MRL-28).
 *
 *   grouped, blocks of 64: an 8x8 transpose      single, blocks of 32:
 *     out 0  1  2 .. 7   8  9 ..                   out 0 1 2 3  4  5  6  7   8 9 ...
 *     in  0  8 16 .. 56  1  9 ..                   in  0 1 8 9 16 17 24 25   2 3 ...
 */
#include "layout.h"

enum { GROUPED = 64, SINGLE = 32 };

static int p64(int p) { return p / 8 + 8 * (p % 8); }
static int p32(int p) { return 2 * (p / 8) + p % 2 + 8 * (p % 8 / 2); }

void nb_marlin_scale_columns(uint8_t column[GROUPED], bool grouped) {
  for (int p = 0; p < GROUPED; p++)
    column[p] = (uint8_t)(grouped ? p64(p) : p / SINGLE * SINGLE + p32(p % SINGLE));
}

int nb_marlin_scale_perm(nb_tensor *perm, int single) {
  NB_TRY(nb_expect(perm, "marlin scale_perm", NB_I32, 1, NB_SHAPE(single ? SINGLE : GROUPED)));
  for (int p = 0; p < (single ? SINGLE : GROUPED); p++) ((int32_t *)perm->data)[p] = single ? p32(p) : p64(p);
  return NB_OK;
}

#define PERMUTE(name, type) \
  static void name(type *out, const type *in, int64_t blocks, int block, const uint8_t *from) { \
    for (int64_t b = 0; b < blocks; b++) \
      for (int p = 0; p < block; p++) out[b * block + p] = in[b * block + from[p]]; \
  }
PERMUTE(permute8, uint8_t)
PERMUTE(permute16, uint16_t)
PERMUTE(permute32, uint32_t)

/* Scales have 16 bits nearly always: both permutations are transposes, of 8x8 elements and
 * of 4x4 pairs of them. */
typedef uint16_t v8h __attribute__((vector_size(16)));
typedef uint32_t v4w __attribute__((vector_size(16)));

static inline v8h low_h(v8h a, v8h b) { return __builtin_shuffle(a, b, (v8h){0, 8, 1, 9, 2, 10, 3, 11}); }
static inline v8h high_h(v8h a, v8h b) { return __builtin_shuffle(a, b, (v8h){4, 12, 5, 13, 6, 14, 7, 15}); }
static inline v4w low_w(v4w a, v4w b) { return __builtin_shuffle(a, b, (v4w){0, 4, 1, 5}); }
static inline v4w high_w(v4w a, v4w b) { return __builtin_shuffle(a, b, (v4w){2, 6, 3, 7}); }

static void grouped16(uint16_t *out, const uint16_t *in, int64_t blocks) {
  for (int64_t b = 0; b < blocks; b++, in += GROUPED, out += GROUPED) {
    v8h x[8], y[8];
    memcpy(x, in, sizeof x);
    for (int i = 0; i < 4; i++) y[2 * i] = low_h(x[i], x[i + 4]), y[2 * i + 1] = high_h(x[i], x[i + 4]);
    for (int i = 0; i < 4; i++) x[2 * i] = low_h(y[i], y[i + 4]), x[2 * i + 1] = high_h(y[i], y[i + 4]);
    for (int i = 0; i < 4; i++) y[2 * i] = low_h(x[i], x[i + 4]), y[2 * i + 1] = high_h(x[i], x[i + 4]);
    memcpy(out, y, sizeof y);
  }
}

static void single16(uint16_t *out, const uint16_t *in, int64_t blocks) {
  for (int64_t b = 0; b < blocks; b++, in += SINGLE, out += SINGLE) {
    v4w x[4], y[4];
    memcpy(x, in, sizeof x);
    for (int i = 0; i < 2; i++) y[2 * i] = low_w(x[i], x[i + 2]), y[2 * i + 1] = high_w(x[i], x[i + 2]);
    for (int i = 0; i < 2; i++) x[2 * i] = low_w(y[i], y[i + 2]), x[2 * i + 1] = high_w(y[i], y[i + 2]);
    memcpy(out, x, sizeof x);
  }
}

int nb_marlin_permutation(uint8_t from[GROUPED], const nb_tensor *t, bool grouped, int inverse,
                          const char *what) {
  if (t->ndim < 1) return nb_fail(NB_EINVAL, "%s: expected at least one dimension, found a scalar", what);
  int64_t n = t->shape[t->ndim - 1], bits = nb_dtype_bits(t->dtype);
  int block = grouped ? GROUPED : SINGLE;
  if (n % block)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of %d, the block of the %s permutation", what,
                   (long long)n, block, grouped ? "grouped" : "single");
  if (bits != 8 && bits != 16 && bits != 32)
    return nb_fail(NB_EINVAL, "%s: elements of 8, 16 or 32 bits are moved, found %s", what,
                   nb_dtype_name(t->dtype));
  uint8_t column[GROUPED];
  nb_marlin_scale_columns(column, grouped);
  for (int p = 0; p < GROUPED; p++) from[inverse ? column[p] : p] = (uint8_t)(inverse ? p : column[p]);
  return NB_OK;
}

/* Blocks of the last axis, in the permutation or its inverse. */
static int permute_last(nb_tensor *out, const nb_tensor *in, bool grouped, int inverse, const char *what) {
  uint8_t from[GROUPED];
  int64_t bits = nb_dtype_bits(in->dtype);
  int block = grouped ? GROUPED : SINGLE;
  NB_TRY(nb_expect_here(in, what));
  NB_TRY(nb_marlin_permutation(from, in, grouped, inverse, what));
  NB_TRY(nb_expect(out, what, in->dtype, in->ndim, in->shape));
  int64_t blocks = nb_tensor_numel(in) / block;
  if (out->data == in->data && blocks) return nb_fail(NB_EINVAL, "%s: cannot be done in place", what);
  if (bits == 8) permute8(out->data, in->data, blocks, block, from);
  else if (bits == 32) permute32(out->data, in->data, blocks, block, from);
  else if (grouped) grouped16(out->data, in->data, blocks); /* its own inverse */
  else if (!inverse) single16(out->data, in->data, blocks);
  else permute16(out->data, in->data, blocks, block, from);
  return NB_OK;
}

bool nb_marlin_grouped(int64_t k, int64_t g, int a8) { return g != -1 && g < k && !a8; }

int nb_marlin_permute_scales(nb_tensor *out, const nb_tensor *scales, int64_t k, int64_t g, int a8,
                             int inverse) {
  if (scales->ndim != 2 && scales->ndim != 3)
    return nb_expect(scales, "marlin permute_scales", -1, 2, NB_SHAPE(-1, -1));
  return permute_last(out, scales, nb_marlin_grouped(k, g, a8), inverse, "marlin permute_scales");
}

int nb_marlin_permute_bias(nb_tensor *out, const nb_tensor *bias, int inverse) {
  return permute_last(out, bias, false, inverse, "marlin permute_bias");
}

/* ---- zero-points ------------------------------------------------------------- */

/* column[c*pf + u]: what slot u of the block's marlin word c holds. */
void nb_marlin_zero_columns(uint8_t column[GROUPED], int bits, bool a8) {
  const uint8_t *order = bits == 4 ? nb_awq_order4 : nb_awq_order8;
  int pf = 32 / bits;
  for (int p = 0; p < GROUPED; p++) column[p] = (uint8_t)p64(p / pf * pf + (a8 ? p % pf : order[p % pf]));
}

void nb_marlin_zero_slots(uint8_t slot[8], int bits, int order) {
  const uint8_t *awq = bits == 4 ? nb_awq_slot4 : nb_awq_slot8;
  for (int v = 0; v < 32 / bits; v++) slot[v] = order == NB_MARLIN_AWQ ? awq[v] : (uint8_t)v;
}

int nb_marlin_zeros_shape(int64_t shape[3], const nb_tensor *zeros, bool words, int bits, const char *what) {
  if (bits != 4 && bits != 8) return nb_fail(NB_EINVAL, "%s: bits must be 4 or 8, found %d", what, bits);
  int d = zeros->ndim == 3 ? 3 : 2, pf = 32 / bits;
  NB_TRY(words ? nb_expect_words(zeros, what, d, NB_SHAPE(-1, -1, -1))
               : nb_expect(zeros, what, NB_U8, d, NB_SHAPE(-1, -1, -1)));
  int64_t n = zeros->shape[d - 1] * (words ? pf : 1);
  if (n % GROUPED)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 64, the block of the grouped permutation",
                   what, (long long)n);
  memcpy(shape, zeros->shape, 3 * sizeof *shape);
  shape[d - 1] = n / pf;
  return NB_OK;
}

static int zeros_check(const nb_tensor *marlin, const nb_tensor *other, bool words, int bits,
                       const char *what) {
  int64_t shape[3];
  NB_TRY(nb_marlin_zeros_shape(shape, other, words, bits, what));
  return nb_expect_words(marlin, what, other->ndim, shape);
}

int nb_marlin_zero_points(nb_tensor *out, const nb_tensor *zeros, int bits, int a8) {
  NB_TRY(zeros_check(out, zeros, false, bits, "marlin zero_points"));
  uint8_t from[GROUPED];
  nb_marlin_zero_columns(from, bits, a8 != 0);
  int pf = 32 / bits;
  uint32_t *w = out->data;
  unsigned seen = 0;
  for (int64_t i = 0; i < nb_tensor_numel(out); i++) {
    const uint8_t *z = (const uint8_t *)zeros->data + i * pf / GROUPED * GROUPED;
    w[i] = 0;
    for (int u = 0; u < pf; u++) {
      uint8_t v = z[from[(int)(i * pf % GROUPED) + u]];
      seen |= v;
      w[i] |= (uint32_t)v << (u * bits);
    }
  }
  return seen >> bits ? nb_codes_check(zeros, bits, "marlin zero_points") : NB_OK;
}

int nb_marlin_unpack_zero_points(nb_tensor *zeros, const nb_tensor *marlin, int bits, int a8) {
  NB_TRY(zeros_check(marlin, zeros, false, bits, "marlin unpack_zero_points"));
  uint8_t from[GROUPED];
  nb_marlin_zero_columns(from, bits, a8 != 0);
  int pf = 32 / bits;
  const uint32_t *w = marlin->data;
  for (int64_t i = 0; i < nb_tensor_numel(marlin); i++) {
    uint8_t *z = (uint8_t *)zeros->data + i * pf / GROUPED * GROUPED;
    for (int u = 0; u < pf; u++)
      z[from[(int)(i * pf % GROUPED) + u]] = (uint8_t)(w[i] >> (u * bits) & ((1u << bits) - 1));
  }
  return NB_OK;
}

/* t[j], nibble r = t[r], nibble j: halves of the 8x8 matrix swapped, then quarters, then pairs. */
static inline void transpose_nibbles(uint32_t t[8]) {
  static const uint32_t masks[3] = {0x0000ffffu, 0x00ff00ffu, 0x0f0f0f0fu};
  for (int level = 0; level < 3; level++) {
    int apart = 4 >> level, shift = 4 * apart;
    for (int i = 0; i < 8; i++) {
      if (i & apart) continue;
      uint32_t x = (t[i] >> shift ^ t[i + apart]) & masks[level];
      t[i + apart] ^= x;
      t[i] ^= x << shift;
    }
  }
}

/* 4 bits: within a block of 8 words, out word c has in nibble u the column c + 8*I[u], I = the
 * interleave or, with a8, u itself: nibble slot[c] of the source's word I[u]. */
static void nibbles_from_words(uint32_t *out, const uint32_t *in, int64_t blocks, const uint8_t slot[8],
                               int a8) {
  for (int64_t b = 0; b < blocks; b++, in += 8, out += 8) {
    uint32_t t[8];
    for (int u = 0; u < 8; u++) t[u] = in[a8 ? u : nb_awq_order4[u]];
    transpose_nibbles(t);
    for (int c = 0; c < 8; c++) out[c] = t[slot[c]];
  }
}

/* From words that hold the zero-points along n, interleaved (AWQ) or plain. */
static int from_words(nb_tensor *out, const nb_tensor *words, int order, int bits, int a8, const char *what) {
  NB_TRY(zeros_check(out, words, true, bits, what));
  if (out->data == words->data) return nb_fail(NB_EINVAL, "%s: cannot be done in place", what);
  uint8_t from[GROUPED], slot[8];
  nb_marlin_zero_columns(from, bits, a8 != 0);
  nb_marlin_zero_slots(slot, bits, order);
  int pf = 32 / bits, block = GROUPED / pf;
  uint32_t mask = (1u << bits) - 1, *to = out->data;
  if (bits == 4) {
    nibbles_from_words(to, words->data, nb_tensor_numel(out) / block, slot, a8);
    return NB_OK;
  }
  for (int64_t i = 0; i < nb_tensor_numel(out); i++) {
    const uint32_t *w = (const uint32_t *)words->data + i / block * block;
    to[i] = 0;
    for (int u = 0; u < pf; u++) {
      int column = from[(int)(i % block) * pf + u];
      to[i] |= (w[column / pf] >> (slot[column % pf] * bits) & mask) << (u * bits);
    }
  }
  return NB_OK;
}

int nb_marlin_awq_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8) {
  return from_words(out, words, NB_MARLIN_AWQ, bits, a8, "marlin awq_zero_points");
}

int nb_marlin_packed_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8) {
  return from_words(out, words, NB_MARLIN_STD, bits, a8, "marlin packed_zero_points");
}
