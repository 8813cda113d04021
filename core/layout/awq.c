/* awq.c - AutoAWQ's "gemm" packing: I32 [k, n/pf], pf = 32/b consecutive output
 * columns in a word, interleaved (FORMATS 2, MRL-12, MRL-13). Zero-points are the
 * same packing of [G, n].
 *
 *   b = 4   slot     7   6   5   4   3   2   1   0        b = 8   slot   3  2  1  0
 *           column   7   5   3   1   6   4   2   0                column 3  1  2  0
 */
#include "layout.h"

const uint8_t nb_awq_order4[8] = {0, 2, 4, 6, 1, 3, 5, 7}, nb_awq_order8[4] = {0, 2, 1, 3};
const uint8_t nb_awq_slot4[8] = {0, 4, 1, 5, 2, 6, 3, 7}, nb_awq_slot8[4] = {0, 2, 1, 3};

enum { K_TILE = 64, SERIAL_CODES = 1 << 15 };

/* `count` words of one column group: word i, slot u = codes[order[u]*ld + i]. */
static unsigned pack_group(uint32_t *words, int64_t step, const uint8_t *codes, int64_t ld, int64_t count, int bits) {
  const uint8_t *order = bits == 4 ? nb_awq_order4 : nb_awq_order8;
  int pf = 32 / bits;
  uint32_t mask = (1u << bits) - 1, w[K_TILE] = {0};
  unsigned seen = 0;
  for (int u = 0; u < pf; u++) {
    const uint8_t *c = codes + order[u] * ld;
    for (int64_t i = 0; i < count; i++) {
      seen |= c[i];
      w[i] |= (c[i] & mask) << (u * bits);
    }
  }
  for (int64_t i = 0; i < count; i++) words[i * step] = w[i];
  return seen;
}

static void unpack_group(uint8_t *codes, int64_t ld, const uint32_t *words, int64_t step, int64_t count, int bits) {
  const uint8_t *order = bits == 4 ? nb_awq_order4 : nb_awq_order8;
  int pf = 32 / bits;
  uint32_t mask = (1u << bits) - 1, w[K_TILE];
  for (int64_t i = 0; i < count; i++) w[i] = words[i * step];
  for (int u = 0; u < pf; u++) {
    uint8_t *c = codes + order[u] * ld;
    for (int64_t i = 0; i < count; i++) c[i] = (uint8_t)(w[i] >> (u * bits) & mask);
  }
}

/* The tile of rows [n0, n0+r) as groups of pf rows x K_TILE words. */
typedef struct strip { uint32_t *words; uint8_t *codes; int64_t step, groups, k; } strip;

static int strip_of(strip *s, const nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0, const char *what) {
  if (bits != 4 && bits != 8) return nb_fail(NB_EINVAL, "%s: AWQ packs 4 or 8 bits, found %d", what, bits);
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t r = codes->shape[0], k = codes->shape[1], pf = 32 / bits;
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(k, -1)));
  int64_t width = words->shape[1];
  NB_TRY(nb_expect_rows(what, n0, r, width * pf, pf));
  *s = (strip){.words = (uint32_t *)words->data + n0 / pf, .codes = codes->data, .step = width,
               .groups = r / pf, .k = k};
  return NB_OK;
}

/* k outside, groups inside: the words of one k lie side by side. */
int nb_awq_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0) {
  strip s;
  NB_TRY(strip_of(&s, words, codes, bits, n0, "awq pack"));
  int pf = 32 / bits, stopped = 0;
  unsigned seen = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(| : seen, stopped) \
    if (s.groups * s.k * pf > SERIAL_CODES)
  for (int64_t k = 0; k < s.k; k += K_TILE) {
    if (nb_stop_requested()) stopped = 1;
    for (int64_t g = 0; g < s.groups && !stopped; g++)
      seen |= pack_group(s.words + k * s.step + g, s.step, s.codes + g * pf * s.k + k, s.k,
                         NB_MIN(K_TILE, s.k - k), bits);
  }
  if (stopped) return nb_fail_stopped();
  return seen >> bits ? nb_codes_check(codes, bits, "awq pack") : NB_OK;
}

int nb_awq_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0) {
  strip s;
  NB_TRY(strip_of(&s, words, codes, bits, n0, "awq unpack"));
  int pf = 32 / bits, stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(| : stopped) \
    if (s.groups * s.k * pf > SERIAL_CODES)
  for (int64_t k = 0; k < s.k; k += K_TILE) {
    if (nb_stop_requested()) stopped = 1;
    for (int64_t g = 0; g < s.groups && !stopped; g++)
      unpack_group(s.codes + g * pf * s.k + k, s.k, s.words + k * s.step + g, s.step, NB_MIN(K_TILE, s.k - k), bits);
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_awq_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0) {
  return nb_awq_pack(words, zeros, bits, n0);
}

int nb_awq_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0) {
  return nb_awq_unpack(zeros, words, bits, n0);
}
