/* awq.c - AutoAWQ's "gemm" packing: I32 [k, n/pf], pf = 32/b consecutive output
 * columns in a word, interleaved (FORMATS 2, MRL-12, MRL-13). Zero-points are the
 * same packing of [G, n].
 *
 *   b = 4   slot     7   6   5   4   3   2   1   0        b = 8   slot   3  2  1  0
 *           column   7   5   3   1   6   4   2   0                column 3  1  2  0
 */
#include "simd.h"

const uint8_t nb_awq_order4[8] = {0, 2, 4, 6, 1, 3, 5, 7}, nb_awq_order8[4] = {0, 2, 1, 3};
const uint8_t nb_awq_slot4[8] = {0, 4, 1, 5, 2, 6, 3, 7}, nb_awq_slot8[4] = {0, 2, 1, 3};

enum { K_TILE = 64, BLOCK_K = 8 * NB_STRIP, BLOCK_GROUPS = 64, SERIAL_CODES = 1 << 15 };

/* `count` words of one column group: word i, slot u = codes[order[u]*ld + i]. */
static unsigned pack_group(uint32_t *words, int64_t step, const uint8_t *codes, int64_t ld, int64_t count,
                           int bits) {
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

static void unpack_group(uint8_t *codes, int64_t ld, const uint32_t *words, int64_t step, int64_t count,
                         int bits) {
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
typedef struct strip {
  uint32_t *words;
  uint8_t *codes;
  int64_t step, groups, k;
  int bits;
  bool fast;
} strip;

static int strip_of(strip *s, const nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0,
                    const char *what) {
  if (bits != 4 && bits != 8) return nb_fail(NB_EINVAL, "%s: AWQ packs 4 or 8 bits, found %d", what, bits);
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t r = codes->shape[0], k = codes->shape[1], pf = 32 / bits;
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(k, -1)));
  int64_t width = words->shape[1];
  NB_TRY(nb_expect_rows(what, n0, r, width * pf, pf));
  *s = (strip){.words = (uint32_t *)words->data + n0 / pf,
               .codes = codes->data,
               .step = width,
               .groups = r / pf,
               .k = k,
               .bits = bits,
               .fast = bits == 4 && (nb_cpu() & NB_CPU_AVX2)};
  return NB_OK;
}

/* By way of compressed-tensors words: one matrix of nibbles turned in a small
 * buffer, whole cache lines of words at a time and then what is left of them.
 * Returns how many of the block's groups were done. */
enum { LINE_GROUPS = 16, TURN_GROUPS = 8 };

static int64_t fast_pack(const strip *s, int64_t k, int64_t count, int64_t g, int64_t groups,
                         unsigned *seen) {
  uint32_t ct[8 * LINE_GROUPS * NB_STRIP], turned[NB_STRIP * 8 * TURN_GROUPS];
  int64_t kw = count / 8, done = 0, step;
  if (!s->fast || count % 128) return 0;
  for (; done + TURN_GROUPS <= groups; done += step) {
    uint32_t *words = s->words + k * s->step + g + done;
    step = groups - done >= LINE_GROUPS ? LINE_GROUPS : TURN_GROUPS;
    for (int64_t i = 0; i < 8 * step; i++)
      *seen |= nb_nibbles_pack_avx2(ct + i * kw, s->codes + (8 * (g + done) + i) * s->k + k, count);
    if (step == LINE_GROUPS) nb_ct_to_awq4_avx2(words, s->step, ct, kw, kw, step, false);
    else {
      nb_words_transpose_avx2(turned, 8 * step, ct, kw, 8 * step, kw, false);
      for (int64_t r = 0; r < kw; r++)
        nb_gptq_to_awq4_rows_avx2(words + 8 * r * s->step, s->step, turned + r * 8 * step, step);
    }
  }
  return done;
}

static int64_t fast_unpack(const strip *s, int64_t k, int64_t count, int64_t g, int64_t groups) {
  uint32_t ct[8 * LINE_GROUPS * NB_STRIP], turned[NB_STRIP * 8 * LINE_GROUPS];
  int64_t kw = count / 8, step;
  if (!s->fast || count % 64) return 0;
  for (int64_t done = 0; done < groups; done += step) {
    const uint32_t *words = s->words + k * s->step + g + done;
    step = NB_MIN(LINE_GROUPS, groups - done);
    if (step == LINE_GROUPS) nb_awq4_to_ct_avx2(ct, kw, words, s->step, kw, step, false);
    else {
      for (int64_t r = 0; r < kw; r++)
        nb_awq4_to_gptq_row_avx2(turned + r * 8 * step, words + 8 * r * s->step, s->step, step);
      nb_words_transpose_avx2(ct, kw, turned, 8 * step, kw, 8 * step, false);
    }
    for (int64_t i = 0; i < 8 * step; i++)
      nb_nibbles_unpack_avx2(s->codes + (8 * (g + done) + i) * s->k + k, ct + i * kw, count);
  }
  return groups;
}

/* Of few k, zero-points above all: 16 of them and four words turn in registers; the last sixteen may be some again. */
static int64_t short_unpack(const strip *s, int64_t k0, int64_t count, int64_t g0, int64_t groups) {
  if (!s->fast || count < 16) return 0;
  for (int64_t g = g0; g < g0 + groups / 4 * 4; g += 4)
    for (int64_t k = k0; k < k0 + count; k += 16) {
      int64_t at = NB_MIN(k, k0 + count - 16);
      nb_nibbles_turn_avx2(s->codes + 8 * g * s->k + at, s->k, s->words + at * s->step + g, s->step,
                           nb_awq_order4, 0);
    }
  return groups / 4 * 4;
}

/* k outside, groups inside: the words of one k lie side by side. */
static unsigned block(const strip *s, bool packing, int64_t k0, int64_t g0) {
  int64_t count = NB_MIN(BLOCK_K, s->k - k0), groups = NB_MIN(BLOCK_GROUPS, s->groups - g0),
          pf = 32 / s->bits;
  unsigned seen = 0;
  int64_t done = packing ? fast_pack(s, k0, count, g0, groups, &seen) : fast_unpack(s, k0, count, g0, groups);
  if (!packing && done == 0) done = short_unpack(s, k0, count, g0, groups);
  for (int64_t k = k0; k < k0 + count; k += K_TILE)
    for (int64_t g = g0 + done; g < g0 + groups; g++) {
      uint32_t *words = s->words + k * s->step + g;
      uint8_t *codes = s->codes + g * pf * s->k + k;
      int64_t tile = NB_MIN(K_TILE, k0 + count - k);
      if (packing) seen |= pack_group(words, s->step, codes, s->k, tile, s->bits);
      else unpack_group(codes, s->k, words, s->step, tile, s->bits);
    }
  return seen;
}

static int run(const strip *s, bool packing, unsigned *seen_out) {
  unsigned seen = 0;
  int stopped = 0;
#pragma omp parallel for collapse(2) schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : seen, stopped) if (s->groups * s->k * 32 / s->bits > SERIAL_CODES)
  for (int64_t k = 0; k < s->k; k += BLOCK_K)
    for (int64_t g = 0; g < s->groups; g += BLOCK_GROUPS) {
      if (nb_stop_requested()) stopped = 1;
      else seen |= block(s, packing, k, g);
    }
  *seen_out = seen;
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_awq_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0) {
  strip s;
  unsigned seen;
  NB_TRY(strip_of(&s, words, codes, bits, n0, "awq pack"));
  NB_TRY(run(&s, true, &seen));
  return seen >> bits ? nb_codes_check(codes, bits, "awq pack") : NB_OK;
}

int nb_awq_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0) {
  strip s;
  unsigned seen;
  NB_TRY(strip_of(&s, words, codes, bits, n0, "awq unpack"));
  return run(&s, false, &seen);
}

int nb_awq_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0) {
  return nb_awq_pack(words, zeros, bits, n0);
}

int nb_awq_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0) {
  return nb_awq_unpack(zeros, words, bits, n0);
}
