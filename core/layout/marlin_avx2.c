/* marlin_avx2.c - a row of Marlin tiles (SYSTEMS 2.4) as transposes of bytes.
 *
 * Seen as bytes, the words of a tile belong to one column nn of eight and one lane
 * column a (the k of a word follow from a), over the tile's eights of columns:
 *
 *                       word index              word (nn, a, j)
 *   4 bits, 16-bit act  16*nn + 4*a + j         bytes: rows 2a|2a+8<<4 at n, at n+8, rows 2a+1|2a+9<<4
 *                                               at n, at n+8        n = 16j + nn
 *   8 bits, 16-bit act  32*nn + 8*a + j         rows 2a, 2a+8, 2a+1, 2a+9      n = 8j + nn
 *   4 bits, 8-bit act   16*nn + 4*a + j         rows 4a+b | 4a+b+16 << 4, b = 0..3
 *   8 bits, 8-bit act   32*nn + 8*a + 2j + x    rows 4a+16x .. 4a+16x+3
 *
 * All four start from GPTQ words, where a word is one column; what isn't is first
 * brought into that form, a tile at a time. AWQ's 4-bit words have a way of their own. */
#include "nibbles_avx2.h"
#include "simd.h"

/* ---- the last step: from columns to runs of a ------------------------------- */

/* t[j][p]: in the lanes, nn = p and p+4, the words a = 0..3. */
static inline void put_runs(uint32_t *out, v8 t[4][4], bool stream) {
  UNROLL for (int p = 0; p < 4; p++) {
    v8 w[4] = {t[0][p], t[1][p], t[2][p], t[3][p]};
    nb_words_4x4(w);
    nb_v8_put(out + 16 * p, nb_lower(w[0], w[1]), stream);
    nb_v8_put(out + 16 * p + 8, nb_lower(w[2], w[3]), stream);
    nb_v8_put(out + 16 * (p + 4), nb_upper(w[0], w[1]), stream);
    nb_v8_put(out + 16 * (p + 4) + 8, nb_upper(w[2], w[3]), stream);
  }
}

/* The same with eight j. */
static inline void put_long_runs(uint32_t *out, v8 t[8][4], bool stream) {
  UNROLL for (int p = 0; p < 4; p++) {
    v8 w[4] = {t[0][p], t[1][p], t[2][p], t[3][p]}, x[4] = {t[4][p], t[5][p], t[6][p], t[7][p]};
    nb_words_4x4(w);
    nb_words_4x4(x);
    UNROLL for (int a = 0; a < 4; a++) {
      nb_v8_put(out + 32 * p + 8 * a, nb_lower(w[a], x[a]), stream);
      nb_v8_put(out + 32 * (p + 4) + 8 * a, nb_upper(w[a], x[a]), stream);
    }
  }
}

/* Words a = 0..3 of eight columns: bytes of x and y interleaved give a = 0, 1,
 * those of z and t a = 2, 3. */
static inline void interleave(v8 *out, v8 x, v8 y, v8 z, v8 t) {
  v8 a = _mm256_unpacklo_epi8(x, y), b = _mm256_unpackhi_epi8(x, y);
  v8 c = _mm256_unpacklo_epi8(z, t), d = _mm256_unpackhi_epi8(z, t);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}

/* ---- one tile from GPTQ words, rows of which lie ld words apart --------------- */

static inline void tile_4(uint32_t *out, const uint32_t *in, int64_t ld, bool stream) {
  v8 t[4][4];
  UNROLL for (int j = 0; j < 4; j++) {
    v8 a = nb_v8_load(in + 16 * j), b = nb_v8_load(in + ld + 16 * j);
    v8 c = nb_v8_load(in + 16 * j + 8), d = nb_v8_load(in + ld + 16 * j + 8);
    nb_swap_nibbles(&a, &b);
    nb_swap_nibbles(&c, &d);
    nb_bytes_to_words(t[j], a, c, b, d);
  }
  put_runs(out, t, stream);
}

static inline void tile_8(uint32_t *out, const uint32_t *in, int64_t ld, bool stream) {
  v8 t[8][4];
  UNROLL for (int j = 0; j < 8; j++) interleave(t[j], nb_v8_load(in + 8 * j), nb_v8_load(in + 2 * ld + 8 * j),
                                                nb_v8_load(in + ld + 8 * j), nb_v8_load(in + 3 * ld + 8 * j));
  put_long_runs(out, t, stream);
}

static inline void tile_4_a8(uint32_t *out, const uint32_t *in, int64_t ld, bool stream) {
  v8 t[4][4];
  UNROLL for (int j = 0; j < 4; j++) {
    v8 a = nb_v8_load(in + 8 * j), b = nb_v8_load(in + 2 * ld + 8 * j);
    v8 c = nb_v8_load(in + ld + 8 * j), d = nb_v8_load(in + 3 * ld + 8 * j);
    nb_swap_nibbles(&a, &b);
    nb_swap_nibbles(&c, &d);
    interleave(t[j], a, b, c, d);
  }
  put_runs(out, t, stream);
}

static inline void tile_8_a8(uint32_t *out, const uint32_t *in, int64_t ld, bool stream) {
  UNROLL for (int a = 0; a < 4; a++) {
    v8 lo[4], hi[4]; /* per lane, x = 0, 1 of two columns: nn 0 1 | 4 5 and 2 3 | 6 7 */
    UNROLL for (int j = 0; j < 4; j++) {
      v8 x = nb_v8_load(in + a * ld + 8 * j), y = nb_v8_load(in + (a + 4) * ld + 8 * j);
      lo[j] = _mm256_unpacklo_epi32(x, y);
      hi[j] = _mm256_unpackhi_epi32(x, y);
    }
    UNROLL for (int p = 0; p < 4; p++) {
      v8 *s = p < 2 ? lo : hi, u, v;
      u = p % 2 ? _mm256_unpackhi_epi64(s[0], s[1]) : _mm256_unpacklo_epi64(s[0], s[1]);
      v = p % 2 ? _mm256_unpackhi_epi64(s[2], s[3]) : _mm256_unpacklo_epi64(s[2], s[3]);
      nb_v8_put(out + 32 * p + 8 * a, nb_lower(u, v), stream);
      nb_v8_put(out + 32 * (p + 4) + 8 * a, nb_upper(u, v), stream);
    }
  }
}

static inline void tile(uint32_t *out, const uint32_t *in, int64_t ld, int bits, bool a8, bool stream) {
  if (bits == 4) {
    if (a8) tile_4_a8(out, in, ld, stream);
    else tile_4(out, in, ld, stream);
  } else if (a8) tile_8_a8(out, in, ld, stream);
  else tile_8(out, in, ld, stream);
}

/* ---- one 4-bit tile from AWQ words, for 16-bit activations --------------------- */

/* The columns that p's bytes hold (nn[0..3] of every eight), for all 16 k: p[x]
 * pairs k = x and x+8. Writes the runs of those four nn. */
static inline void quarter_from_awq(uint32_t *out, const v8 *p, const int *nn, bool stream) {
  /* per lane, words c = 2j + h of four bytes nn: all c of one nn side by side */
  const v8 by_nn = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5,
                                    9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  v8 lo[4], hi[4]; /* [a]: in the lanes, two nn, the words j = 0..3 */
  UNROLL for (int a = 0; a < 4; a++) {
    v8 even = _mm256_shuffle_epi8(p[2 * a], by_nn), odd = _mm256_shuffle_epi8(p[2 * a + 1], by_nn);
    lo[a] = _mm256_permute4x64_epi64(_mm256_unpacklo_epi16(even, odd), 0xd8);
    hi[a] = _mm256_permute4x64_epi64(_mm256_unpackhi_epi16(even, odd), 0xd8);
  }
  UNROLL for (int half = 0; half < 2; half++) {
    v8 *w = half ? hi : lo;
    nb_v8_put(out + 16 * nn[2 * half], nb_lower(w[0], w[1]), stream);
    nb_v8_put(out + 16 * nn[2 * half] + 8, nb_lower(w[2], w[3]), stream);
    nb_v8_put(out + 16 * nn[2 * half + 1], nb_upper(w[0], w[1]), stream);
    nb_v8_put(out + 16 * nn[2 * half + 1] + 8, nb_upper(w[2], w[3]), stream);
  }
}

static inline void tile_4_awq(uint32_t *out, const uint32_t *in, int64_t ld, bool stream) {
  static const int low_nn[4] = {0, 4, 1, 5}, high_nn[4] = {2, 6, 3, 7}; /* slots 0 2 4 6 and 1 3 5 7 */
  v8 low[8], high[8];
  UNROLL for (int x = 0; x < 8; x++) {
    low[x] = nb_v8_load(in + x * ld);
    high[x] = nb_v8_load(in + (x + 8) * ld);
    nb_swap_nibbles(&low[x], &high[x]);
  }
  quarter_from_awq(out, low, low_nn, stream);
  quarter_from_awq(out, high, high_nn, stream);
}

static void row_4_awq(uint32_t *out, const uint32_t *in, int64_t ld, int64_t tiles, bool stream) {
  enum { AHEAD = 128 }; /* words: the rows lie too far apart for the hardware to see sixteen streams */
  for (int64_t t = 0; t < tiles; t++) {
    if (t % 2 == 0) /* a cache line of each row holds two tiles */
      UNROLL for (int x = 0; x < 16; x++)
          _mm_prefetch((const char *)(in + x * ld + 8 * t + AHEAD), _MM_HINT_T0);
    tile_4_awq(out + 128 * t, in + 8 * t, ld, stream);
  }
}

/* ---- one 4-bit tile from AWQ words, for 8-bit activations ---------------------- */

/* The columns nn[0..3] of every eight, for the rows of two a in the lanes: row[b] pairs
 * k = 4a+b and 4a+b+16. */
static inline void two_a_from_awq(uint32_t *out, const v8 *row, const int *nn, bool stream) {
  const v8 by_nn = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5,
                                    9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  v8 r[4];
  UNROLL for (int b = 0; b < 4; b++) r[b] = _mm256_shuffle_epi8(row[b], by_nn);
  v8 x = _mm256_unpacklo_epi8(r[0], r[1]), y = _mm256_unpacklo_epi8(r[2], r[3]);
  nb_v8_put(out + 16 * nn[0], _mm256_unpacklo_epi16(x, y), stream);
  nb_v8_put(out + 16 * nn[1], _mm256_unpackhi_epi16(x, y), stream);
  x = _mm256_unpackhi_epi8(r[0], r[1]), y = _mm256_unpackhi_epi8(r[2], r[3]);
  nb_v8_put(out + 16 * nn[2], _mm256_unpacklo_epi16(x, y), stream);
  nb_v8_put(out + 16 * nn[3], _mm256_unpackhi_epi16(x, y), stream);
}

static inline void tile_4_a8_awq(uint32_t *out, const uint32_t *in, int64_t ld, bool stream) {
  static const int low_nn[4] = {0, 4, 1, 5}, high_nn[4] = {2, 6, 3, 7}; /* slots 0 2 4 6 and 1 3 5 7 */
  UNROLL for (int a = 0; a < 4; a += 2) {
    v8 low[4], high[4];
    UNROLL for (int b = 0; b < 4; b++) {
      const uint32_t *p = in + (4 * a + b) * ld;
      low[b] = nb_v8_load2(p, p + 4 * ld);
      high[b] = nb_v8_load2(p + 16 * ld, p + 20 * ld);
      nb_swap_nibbles(&low[b], &high[b]);
    }
    two_a_from_awq(out + 4 * a, low, low_nn, stream);
    two_a_from_awq(out + 4 * a, high, high_nn, stream);
  }
}

static void row_4_a8_awq(uint32_t *out, const uint32_t *in, int64_t ld, int64_t tiles, bool stream) {
  for (int64_t t = 0; t < tiles; t++) tile_4_a8_awq(out + 128 * t, in + 4 * t, ld, stream);
}

/* ---- other sources: a strip of tiles of them as GPTQ words ----------------------------- */

enum { COLS = 256 }; /* of a strip of tiles */

/* Word row r, slot u: source row perm[k0 + r*pf + u]. */
static void strip_by_perm(uint32_t *to, const nb_marlin_matrix *x, int64_t k0, int64_t n0, int64_t cols) {
  int bits = x->tile->bits, pf = 32 / bits;
  uint32_t mask = (1u << bits) - 1;
  for (int r = 0; r < x->tile->k / pf; r++) {
    memset(to + r * COLS, 0, COLS * sizeof *to);
    for (int u = 0; u < pf; u++) {
      int64_t row = x->perm[k0 + r * pf + u];
      const uint32_t *from = x->source + row / pf * x->ld + n0;
      __m128i down = _mm_cvtsi32_si128((int)(row % pf) * bits), up = _mm_cvtsi32_si128(u * bits);
      for (int64_t n = 0; n < cols; n += 8) {
        v8 w = _mm256_and_si256(_mm256_srl_epi32(nb_v8_load(from + n), down), _mm256_set1_epi32((int)mask));
        nb_v8_store(to + r * COLS + n,
                    _mm256_or_si256(nb_v8_load(to + r * COLS + n), _mm256_sll_epi32(w, up)));
      }
    }
  }
}

/* AWQ words of 8 bits, four rows to a row of GPTQ words. */
static void strip_by_awq8(uint32_t *to, const nb_marlin_matrix *x, int64_t k0, int64_t n0, int64_t cols) {
  for (int r = 0; r < x->tile->k / 4; r++)
    nb_awq8_to_gptq_row_avx2(to + r * COLS, x->source + (k0 + r * 4) * x->ld + n0 / 4, x->ld, cols / 4);
}

void nb_marlin_tile_row_avx2(const nb_marlin_matrix *x, int64_t kt, bool stream) {
  uint32_t buf[8 * COLS];
  int bits = x->tile->bits;
  bool a8 = x->tile->k == 32, awq = x->order == NB_MARLIN_AWQ;
  int64_t tiles = x->n / x->tile->n, k0 = kt * x->tile->k, words = 32 * bits;
  uint32_t *out = x->marlin + kt * tiles * words;
  if (awq && bits == 4 && !a8) {
    const uint32_t *in = x->source + k0 * x->ld;
    if (stream) row_4_awq(out, in, x->ld, tiles, true);
    else row_4_awq(out, in, x->ld, tiles, false);
  } else if (awq && bits == 4) {
    if (stream) row_4_a8_awq(out, x->source + k0 * x->ld, x->ld, tiles, true);
    else row_4_a8_awq(out, x->source + k0 * x->ld, x->ld, tiles, false);
  } else if (awq || x->perm) {
    for (int64_t n0 = 0; n0 < x->n; n0 += COLS) {
      int64_t cols = NB_MIN(COLS, x->n - n0);
      if (awq) strip_by_awq8(buf, x, k0, n0, cols);
      else strip_by_perm(buf, x, k0, n0, cols);
      for (int64_t n = 0; n < cols; n += x->tile->n)
        tile(out + (n0 + n) / x->tile->n * words, buf + n, COLS, bits, a8, stream);
    }
  } else {
    for (int64_t t = 0; t < tiles; t++)
      tile(out + t * words, x->source + k0 * bits / 32 * x->ld + t * x->tile->n, x->ld, bits, a8, stream);
  }
  if (stream) _mm_sfence();
}

/* ---- codes for fp8 activations --------------------------------------------------- */

/* q - z, or 15 - q where q < z, of nibbles in bytes. */
static inline v8 fold(v8 q, v8 z) {
  v8 below = _mm256_cmpgt_epi8(z, q), flipped = _mm256_xor_si256(q, _mm256_set1_epi8(15));
  return _mm256_blendv_epi8(_mm256_sub_epi8(q, z), flipped, below);
}

int64_t nb_marlin_fold_avx2(uint32_t *to, const uint32_t *in, const uint32_t *z, int64_t n) {
  const v8 low = _mm256_set1_epi8(15);
  v8 zero = _mm256_set1_epi8((char)0x88);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    v8 q = nb_v8_load(in + i);
    if (z) zero = nb_v8_load(z + i);
    v8 a = fold(_mm256_and_si256(q, low), _mm256_and_si256(zero, low));
    v8 b = fold(_mm256_and_si256(_mm256_srli_epi16(q, 4), low),
                _mm256_and_si256(_mm256_srli_epi16(zero, 4), low));
    nb_v8_store(to + i, _mm256_or_si256(a, _mm256_slli_epi16(b, 4)));
  }
  return i;
}
