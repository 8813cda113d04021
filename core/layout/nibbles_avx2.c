/* nibbles_avx2.c - between column-packed (AWQ) and row-packed (GPTQ, compressed-
 * tensors) words: transposes of 8x8 nibbles and of words.
 *
 * The large ones are bound by memory, and the order of their accesses decides: read
 * whole cache lines, write runs of 256 bytes (streamed runs of one line cost four
 * times as much), and ask for the next strip's lines while the last one is stored. */
#include "nibbles_avx2.h"
#include "simd.h"

/* Eight rows of eight words of nibbles: lo[c] and hi[c] hold words of eight rows,
 * the columns of the words c (lower lane) and c+4 (upper lane) at their nibbles
 * 0 2 4 6 and 1 3 5 7. Nibble r of such a word is row[r]'s. */
static inline __attribute__((always_inline)) void octet(v8 *lo, v8 *hi, const uint32_t *in, int64_t ld,
                                                        const int *row) {
  v8 l[4], h[4];
  const uint32_t *up = in + 4 * ld,
                 *at[8] = {in, in + ld, in + 2 * ld, in + 3 * ld, up, up + ld, up + 2 * ld, up + 3 * ld};
  UNROLL for (int p = 0; p < 4; p++) {
    l[p] = nb_v8_load(at[row[2 * p]]);
    h[p] = nb_v8_load(at[row[2 * p + 1]]);
    nb_swap_nibbles(&l[p], &h[p]);
  }
  nb_bytes_to_words(lo, l[0], l[1], l[2], l[3]);
  nb_bytes_to_words(hi, h[0], h[1], h[2], h[3]);
}

static const int plain[8] = {0, 1, 2, 3, 4, 5, 6, 7}, awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

/* ---- one row of words along k <-> eight rows of AWQ ----------------------------- */

static inline void eight_words(uint32_t *gptq, const uint32_t *awq, int64_t ld) {
  v8 lo[4], hi[4];
  octet(lo, hi, awq, ld, plain);
  UNROLL for (int c = 0; c < 4; c++) { /* lo: columns 0 4 1 5, hi: 2 6 3 7 */
    __m256 l = _mm256_castsi256_ps(lo[c]), h = _mm256_castsi256_ps(hi[c]);
    v8 a = _mm256_castps_si256(_mm256_shuffle_ps(l, h, 0x88)),
       b = _mm256_castps_si256(_mm256_shuffle_ps(l, h, 0xdd));
    nb_v8_store(gptq + 8 * c, nb_lower(a, b));
    nb_v8_store(gptq + 8 * c + 32, nb_upper(a, b));
  }
}

void nb_awq4_to_gptq_row_avx2(uint32_t *gptq, const uint32_t *awq, int64_t ld, int64_t nw) {
  int64_t n = 0;
  for (; n + 8 <= nw; n += 8) eight_words(gptq + 8 * n, awq + n, ld);
  if (n == nw) return;
  uint32_t in[8 * 8] = {0}, out[8 * 8]; /* the rest must not be read past its end */
  for (int r = 0; r < 8; r++) memcpy(in + 8 * r, awq + r * ld + n, (size_t)(nw - n) * sizeof *in);
  eight_words(out, in, 8);
  memcpy(gptq + 8 * n, out, (size_t)(8 * (nw - n)) * sizeof *out);
}

void nb_awq8_to_gptq_row_avx2(uint32_t *gptq, const uint32_t *awq, int64_t ld, int64_t nw) {
  v8 w[4]; /* word c: columns 0 2 1 3 */
  for (int64_t n = 0; n < nw; n += 8) {
    nb_bytes_to_words(w, nb_v8_load(awq + n), nb_v8_load(awq + ld + n), nb_v8_load(awq + 2 * ld + n),
                      nb_v8_load(awq + 3 * ld + n));
    UNROLL for (int c = 0; c < 4; c++) w[c] = _mm256_shuffle_epi32(w[c], 0xd8);
    UNROLL for (int c = 0; c < 4; c += 2) {
      nb_v8_store(gptq + 4 * (n + c), nb_lower(w[c], w[c + 1]));
      nb_v8_store(gptq + 4 * (n + c + 4), nb_upper(w[c], w[c + 1]));
    }
  }
}

void nb_gptq_to_awq4_rows_avx2(uint32_t *awq, int64_t ld, const uint32_t *gptq, int64_t nw) {
  uint32_t turned[8 * 8]; /* [column of eight][word] */
  v8 lo[4], hi[4];
  for (int64_t n = 0; n < nw; n += 8) {
    nb_words_transpose_avx2(turned, 8, gptq + 8 * n, 8, 8, 8, false);
    octet(lo, hi, turned, 8, awq_order);
    nb_words_4x4(lo);
    nb_words_4x4(hi);
    UNROLL for (int i = 0; i < 4; i++) {
      nb_v8_store(awq + 2 * i * ld + n, lo[i]);
      nb_v8_store(awq + (2 * i + 1) * ld + n, hi[i]);
    }
  }
}

/* ---- words -------------------------------------------------------------------- */

/* Columns 0 to 3 of `rows` rows of words, into rows order[0..3] of `to`. Each row's
 * run is stored at once, or the write-combining buffers spill. */
static inline __attribute__((always_inline)) void columns(uint32_t *to, int64_t to_ld, const uint32_t *from,
                                                          int64_t from_ld, int64_t rows, const int *order,
                                                          bool stream) {
  v8 b[4][NB_STRIP / 8];
  UNROLL for (int64_t k = 0; k < rows; k += 8) {
    v8 x[4];
    UNROLL for (int i = 0; i < 4; i++) x[i] =
        nb_v8_load2(from + (k + i) * from_ld, from + (k + i + 4) * from_ld);
    nb_words_4x4(x);
    UNROLL for (int i = 0; i < 4; i++) b[i][k / 8] = x[i];
  }
  for (int i = 0; i < 4; i++) {
    uint32_t *run = to + order[i] * to_ld;
    UNROLL for (int64_t k = 0; k < rows; k += 8) nb_v8_put(run + k, b[i][k / 8], stream);
  }
}

/* The same through the caches, where nothing is gained by whole runs. */
static inline __attribute__((always_inline)) void columns_cached(uint32_t *to, int64_t to_ld,
                                                                 const uint32_t *from, int64_t from_ld,
                                                                 int64_t rows, const int *order) {
  for (int64_t k = 0; k < rows; k += 8) {
    v8 x[4];
    UNROLL for (int i = 0; i < 4; i++) x[i] =
        nb_v8_load2(from + (k + i) * from_ld, from + (k + i + 4) * from_ld);
    nb_words_4x4(x);
    UNROLL for (int i = 0; i < 4; i++) nb_v8_store(to + order[i] * to_ld + k, x[i]);
  }
}

/* The bits in which what is there differs from what columns_cached would store. */
static v8 columns_differ(const uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld,
                         int64_t rows, const int *order) {
  v8 bits = _mm256_setzero_si256();
  for (int64_t k = 0; k < rows; k += 8) {
    v8 x[4];
    UNROLL for (int i = 0; i < 4; i++) x[i] =
        nb_v8_load2(from + (k + i) * from_ld, from + (k + i + 4) * from_ld);
    nb_words_4x4(x);
    UNROLL for (int i = 0; i < 4; i++) {
      v8 there = nb_v8_load(to + order[i] * to_ld + k);
      bits = _mm256_or_si256(bits, _mm256_xor_si256(there, x[i]));
    }
  }
  return bits;
}

/* The full strip is worth a copy of its own, with nothing left to decide inside. */
static void four_columns(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld, int64_t rows,
                         const int *order, bool stream) {
  if (!stream) columns_cached(to, to_ld, from, from_ld, rows, order);
  else if (rows == NB_STRIP) columns(to, to_ld, from, from_ld, NB_STRIP, order, true);
  else columns(to, to_ld, from, from_ld, rows, order, stream);
}

void nb_words_transpose_avx2(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld, int64_t rows,
                             int64_t cols, bool stream) {
  enum { WIDTH = 16, PAD = 4 }; /* whole cache lines, copied for the reason below */
  uint32_t tmp[NB_STRIP * (WIDTH + PAD)];
  int64_t n = 0;
  for (; n + WIDTH <= cols; n += WIDTH) {
    for (int64_t k = 0; k < rows; k++) {
      nb_v8_store(tmp + k * (WIDTH + PAD), nb_v8_load(from + k * from_ld + n));
      nb_v8_store(tmp + k * (WIDTH + PAD) + 8, nb_v8_load(from + k * from_ld + n + 8));
      _mm_prefetch((const char *)(from + k * from_ld + n + WIDTH), _MM_HINT_T1);
    }
    for (int64_t i = 0; i < WIDTH; i += 4)
      four_columns(to + (n + i) * to_ld, to_ld, tmp + i, WIDTH + PAD, rows, plain, stream);
  }
  for (; n < cols; n += 4) four_columns(to + n * to_ld, to_ld, from + n, from_ld, rows, plain, stream);
  if (stream) _mm_sfence();
}

/* ---- halves of words ------------------------------------------------------------ */

void nb_halves_transpose_avx2(uint16_t *to, int64_t to_ld, const uint16_t *from, int64_t from_ld,
                              int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += 8, to += 8 * to_ld)
    for (int64_t r = 0; r < rows; r += 16) {
      const uint16_t *at = from + r * from_ld + c;
      v8 x[8], y[8];
      UNROLL for (int i = 0; i < 8; i++) x[i] = nb_v8_load2(at + i * from_ld, at + (i + 8) * from_ld);
      UNROLL for (int i = 0; i < 4; i++) { /* words of two rows: columns 0 to 3, then 4 to 7 */
        y[i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
        y[i + 4] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
      }
      nb_words_4x4(y);
      nb_words_4x4(y + 4);
      UNROLL for (int i = 0; i < 8; i++) nb_v8_store(to + i * to_ld + r, y[i]);
    }
}

/* ---- nibbles: `octets` times eight rows of `words` words, turned ------------------ */

enum {
  LINE = 16,
  ROW = 8 * LINE + 16
}; /* words of a cache line; a row of tmp, padded to spread over the sets */

/* One cache line of each of eight rows, copied at once: where the rows lie a power of
 * two apart, the eight fill their set of the cache, and what comes next evicts them. */
static inline void copy_lines(uint32_t *to, const uint32_t *from, int64_t ld) {
  UNROLL for (int i = 0; i < 8; i++) {
    nb_v8_store(to + LINE * i, nb_v8_load(from + i * ld));
    nb_v8_store(to + LINE * i + 8, nb_v8_load(from + i * ld + 8));
  }
  UNROLL for (int i = 16; i < 24; i++) _mm_prefetch((const char *)(from + i * ld), _MM_HINT_T0);
}

/* How the result meets its place; turn() returns the bits that differ where they are compared. */
enum { CACHED, STREAMED, COMPARED };

static inline __attribute__((always_inline)) v8 turn(uint32_t *to, int64_t to_ld, const uint32_t *from,
                                                     int64_t from_ld, int64_t octets, int64_t words,
                                                     const int *row, const int order[2][4], int put) {
  uint32_t tmp[NB_STRIP * ROW] __attribute__((aligned(64))), lines[8 * LINE] __attribute__((aligned(64)));
  v8 bits = _mm256_setzero_si256();
  for (int64_t w = 0; w < words; w += LINE, to += 8 * LINE * to_ld) {
    const uint32_t *in = from + w, *ahead = in + LINE;
    for (int64_t k = 0; k < octets; k++, in += 8 * from_ld) {
      copy_lines(lines, in, from_ld);
      UNROLL for (int half = 0; half < 2; half++) {
        v8 lo[4], hi[4];
        octet(lo, hi, lines + 8 * half, LINE, row);
        UNROLL for (int c = 0; c < 4; c++) {
          nb_v8_store(tmp + k * ROW + 64 * half + 16 * c, lo[c]);
          nb_v8_store(tmp + k * ROW + 64 * half + 16 * c + 8, hi[c]);
        }
      }
    }
    for (int g = 0; g < 2 * LINE;
         g++) { /* four words of tmp each: half, then c, then lo or hi, then the lane */
      int64_t c = g / 16 * 8 + g / 4 % 4 + 4 * (g % 2);
      for (int64_t i = 0; i < octets / 4 && w + LINE < words; i++, ahead += from_ld)
        _mm_prefetch((const char *)ahead, _MM_HINT_T1);
      uint32_t *at = to + 8 * c * to_ld;
      const int *columns_of = order[g / 2 % 2];
      if (put == COMPARED)
        bits = _mm256_or_si256(bits, columns_differ(at, to_ld, tmp + 4 * g, ROW, octets, columns_of));
      else four_columns(at, to_ld, tmp + 4 * g, ROW, octets, columns_of, put == STREAMED);
    }
  }
  if (put == STREAMED) _mm_sfence();
  return bits;
}

static const int awq_columns[2][4] = {{0, 4, 1, 5}, {2, 6, 3, 7}},
                 plain_columns[2][4] = {{0, 2, 4, 6}, {1, 3, 5, 7}};

void nb_awq4_to_ct_avx2(uint32_t *ct, int64_t ct_ld, const uint32_t *awq, int64_t awq_ld, int64_t kw,
                        int64_t nw, bool stream) {
  if (stream) turn(ct, ct_ld, awq, awq_ld, kw, nw, plain, awq_columns, STREAMED);
  else turn(ct, ct_ld, awq, awq_ld, kw, nw, plain, awq_columns, CACHED);
}

void nb_ct_to_awq4_avx2(uint32_t *awq, int64_t awq_ld, const uint32_t *ct, int64_t ct_ld, int64_t kw,
                        int64_t nw, bool stream) {
  if (stream) turn(awq, awq_ld, ct, ct_ld, nw, kw, awq_order, plain_columns, STREAMED);
  else turn(awq, awq_ld, ct, ct_ld, nw, kw, awq_order, plain_columns, CACHED);
}

bool nb_ct_is_awq4_avx2(const uint32_t *awq, int64_t awq_ld, const uint32_t *ct, int64_t ct_ld, int64_t kw,
                        int64_t nw) {
  v8 bits = turn((uint32_t *)awq, awq_ld, ct, ct_ld, nw, kw, awq_order, plain_columns, COMPARED);
  return _mm256_testz_si256(bits, bits);
}

/* ---- codes ---------------------------------------------------------------------- */

void nb_nibbles_unpack_avx2(uint8_t *codes, const uint32_t *words, int64_t count) {
  const v8 low = _mm256_set1_epi8(0x0f);
  for (int64_t i = 0; i < count; i += 64) {
    v8 w = nb_v8_load((const uint8_t *)words + i / 2);
    v8 even = _mm256_and_si256(w, low), odd = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
    v8 a = _mm256_unpacklo_epi8(even, odd), b = _mm256_unpackhi_epi8(even, odd);
    nb_v8_store(codes + i, nb_lower(a, b));
    nb_v8_store(codes + i + 32, nb_upper(a, b));
  }
}

void nb_nibbles_turn_avx2(uint8_t *codes, int64_t ld, const uint32_t *words, int64_t words_ld,
                          const uint8_t *order, int plus) {
  const __m128i low = _mm_set1_epi8(0x0f), add = _mm_set1_epi8((char)plus);
  __m128i x[16], y[16];
  UNROLL for (int i = 0; i < 16; i++) x[i] = _mm_loadu_si128((const __m128i *)(words + i * words_ld));
  UNROLL for (int turn = 0; turn < 4; turn++) { /* four times every other one: bytes in columns */
    UNROLL for (int i = 0; i < 8; i++) {
      y[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
      y[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
    }
    UNROLL for (int i = 0; i < 16; i++) x[i] = y[i];
  }
  UNROLL for (int i = 0; i < 16; i++) {
    uint8_t *at = codes + i / 4 * 8 * ld;
    __m128i even = _mm_and_si128(_mm_add_epi8(x[i], add), low);
    __m128i odd = _mm_and_si128(_mm_add_epi8(_mm_srli_epi16(x[i], 4), add), low);
    _mm_storeu_si128((__m128i *)(at + order[i % 4 * 2] * ld), even);
    _mm_storeu_si128((__m128i *)(at + order[i % 4 * 2 + 1] * ld), odd);
  }
}

unsigned nb_nibbles_pack_avx2(uint32_t *words, const uint8_t *codes, int64_t count) {
  const v8 weigh = _mm256_set1_epi16(0x1001); /* even code + 16 * odd code */
  const v8 low = _mm256_set1_epi8(0x0f);
  v8 seen = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 64) {
    v8 a = nb_v8_load(codes + i), b = nb_v8_load(codes + i + 32);
    seen = _mm256_or_si256(seen, _mm256_or_si256(a, b));
    a = _mm256_maddubs_epi16(_mm256_and_si256(a, low), weigh);
    b = _mm256_maddubs_epi16(_mm256_and_si256(b, low), weigh);
    nb_v8_store((uint8_t *)words + i / 2, _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8));
  }
  return _mm256_testz_si256(seen, _mm256_andnot_si256(low, _mm256_set1_epi8(-1))) ? 0x0f : 0xff;
}
