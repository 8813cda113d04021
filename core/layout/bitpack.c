/* bitpack.c - planes of LSB-first bit streams, any width from 1 to 8 bits: the
 * portable engine under the packings along K and along N. */
#include "simd.h"

enum { STREAM_TILE = 64, BLOCK_TILE = 16, SERIAL_CODES = 1 << 15 };

/* ---- checks that every layout shares --------------------------------------- */

int nb_expect_words(const nb_tensor *t, const char *what, int ndim, const int64_t *shape) {
  return nb_expect(t, what, t->dtype == NB_U32 ? NB_U32 : NB_I32, ndim, shape);
}

int nb_expect_rows(const char *what, int64_t n0, int64_t r, int64_t n, int64_t unit) {
  if (n0 < 0 || r > n - n0)
    return nb_fail(NB_EINVAL, "%s: rows [%lld, %lld) lie outside the %lld rows of the weight", what,
                   (long long)n0, (long long)(n0 + r), (long long)n);
  if (n0 % unit || ((n0 + r) % unit && n0 + r != n))
    return nb_fail(NB_EINVAL, "%s: rows [%lld, %lld) must begin and end on a multiple of %lld", what,
                   (long long)n0, (long long)(n0 + r), (long long)unit);
  return NB_OK;
}

int nb_expect_bits(const char *what, int bits, int lo, int hi) {
  if (bits < lo || bits > hi)
    return nb_fail(NB_EINVAL, "%s: bits must be from %d to %d, found %d", what, lo, hi, bits);
  return NB_OK;
}

int nb_codes_check(const nb_tensor *codes, int bits, const char *what) {
  const uint8_t *c = codes->data;
  int64_t count = nb_tensor_numel(codes), cols = codes->shape[codes->ndim - 1];
  for (int64_t i = 0; i < count; i++)
    if (c[i] >> bits)
      return nb_fail(NB_EINVAL,
                     "%s: the code %d at row %lld, column %lld (from 0) is above %d, the largest of %d bits",
                     what, c[i], (long long)(i / cols), (long long)(i % cols), (1 << bits) - 1, bits);
  return NB_OK;
}

/* ---- one block: 32 codes in `bits` words, or one legacy word ---------------- */

static void pack_block(uint32_t *words, const uint8_t *codes, int count, int bits) {
  if (bits == 8) {
    memcpy(words, codes, (size_t)count);
    return;
  }
  uint64_t acc = 0;
  int have = 0;
  for (int i = 0; i < count; i++) {
    acc |= (uint64_t)codes[i] << have;
    have += bits;
    if (have >= 32) {
      *words++ = (uint32_t)acc;
      acc >>= 32;
      have -= 32;
    }
  }
  if (have > 0) *words = (uint32_t)acc;
}

static void unpack_block(uint8_t *codes, const uint32_t *words, int count, int bits) {
  if (bits == 8) {
    memcpy(codes, words, (size_t)count);
    return;
  }
  uint32_t mask = (1u << bits) - 1;
  uint64_t acc = 0;
  int have = 0;
  for (int i = 0; i < count; i++) {
    if (have < bits) {
      acc |= (uint64_t)*words++ << have;
      have += 32;
    }
    codes[i] = (uint8_t)(acc & mask);
    acc >>= bits;
    have -= bits;
  }
}

/* ---- planes ----------------------------------------------------------------- */

static int block_codes(const nb_plane *p) { return p->legacy ? 32 / p->bits : 32; }
static int block_words(const nb_plane *p) { return p->legacy ? 1 : p->bits; }

int64_t nb_plane_width(int64_t total, int bits, bool legacy) {
  return legacy ? NB_CEIL(total, 32 / bits) : NB_CEIL(total * bits, 32);
}

/* The part of block b that the window covers, and the words it has. */
typedef struct span {
  int64_t from, to, lo;
  int words;
  uint32_t *at;
} span;

static span span_of(const nb_plane *p, int64_t s, int64_t b) {
  int64_t lo = b * block_codes(p), width = nb_plane_width(p->total, p->bits, p->legacy);
  span v = {.lo = lo, .from = NB_MAX(lo, p->first), .to = NB_MIN(lo + block_codes(p), p->first + p->count)};
  v.words = (int)NB_MIN((int64_t)block_words(p), width - b * block_words(p));
  v.at = p->words + s * p->word_stream + b * block_words(p) * p->word_step;
  return v;
}

static void load_block(uint8_t *codes, const nb_plane *p, const span *v) {
  uint32_t w[8] = {0};
  for (int j = 0; j < v->words; j++) w[j] = v->at[j * p->word_step];
  unpack_block(codes, w, block_codes(p), p->bits);
}

/* Returns the bits of the codes, or-ed, before they are cut to size. */
static unsigned pack_span(const nb_plane *p, int64_t s, int64_t b) {
  span v = span_of(p, s, b);
  uint8_t c[32] = {0}, mask = (uint8_t)((1u << p->bits) - 1);
  uint32_t w[8];
  if (v.from > v.lo || v.to < NB_MIN(v.lo + block_codes(p), p->total)) load_block(c, p, &v);
  for (int64_t i = p->total - v.lo; i < block_codes(p); i++) c[i] = 0; /* past the end */
  const uint8_t *src = p->codes + s * p->code_stream + (v.from - p->first) * p->code_step;
  uint8_t *dst = c + (v.from - v.lo);
  unsigned seen = 0;
  int minus = p->minus_one;
  for (int64_t i = 0; i < v.to - v.from; i++) {
    uint8_t code = src[i * p->code_step];
    seen |= code;
    dst[i] = (uint8_t)((code - minus) & mask);
  }
  pack_block(w, c, block_codes(p), p->bits);
  for (int j = 0; j < v.words; j++) v.at[j * p->word_step] = w[j];
  return seen;
}

static void unpack_span(const nb_plane *p, int64_t s, int64_t b) {
  span v = span_of(p, s, b);
  uint8_t c[32], mask = (uint8_t)((1u << p->bits) - 1);
  load_block(c, p, &v);
  uint8_t *dst = p->codes + s * p->code_stream + (v.from - p->first) * p->code_step;
  const uint8_t *src = c + (v.from - v.lo);
  int plus = p->minus_one;
  for (int64_t i = 0; i < v.to - v.from; i++) dst[i * p->code_step] = (uint8_t)((src[i] + plus) & mask);
}

/* Whether the window holds all of block b. */
static bool holds(const nb_plane *p, int64_t b) {
  int64_t lo = b * block_codes(p), hi = lo + block_codes(p);
  return lo >= p->first && hi <= p->first + p->count && hi <= p->total;
}

/* ---- streams that lie side by side, word by word: zero-points along n -------------- */

static bool lies_side_by_side(const nb_plane *p) {
  return p->word_stream == 1 && p->word_step > 1 && p->code_stream == 1 && 32 % p->bits == 0;
}

/* Streams s0.. of one word, whose codes all lie in the window. */
static unsigned pack_side_by_side(const nb_plane *p, uint32_t *words, const uint8_t *codes, int64_t streams) {
  uint32_t acc[STREAM_TILE] = {0}, mask = (1u << p->bits) - 1, minus = p->minus_one, seen = 0;
  for (int at = 0; at < 32; at += p->bits, codes += p->code_step) {
#pragma omp simd reduction(| : seen)
    for (int64_t s = 0; s < streams; s++) {
      seen |= codes[s];
      acc[s] |= ((codes[s] - minus) & mask) << at;
    }
  }
  memcpy(words, acc, (size_t)streams * sizeof *words);
  return seen;
}

static void unpack_side_by_side(const nb_plane *p, uint8_t *codes, const uint32_t *words, int64_t streams) {
  uint32_t mask = (1u << p->bits) - 1, plus = p->minus_one;
  for (int at = 0; at < 32; at += p->bits, codes += p->code_step) {
#pragma omp simd
    for (int64_t s = 0; s < streams; s++) codes[s] = (uint8_t)(((words[s] >> at) + plus) & mask);
  }
}

/* The words of block b that the window holds as a whole; false: there are others. */
static bool block_side_by_side(const nb_plane *p, bool packing, int64_t s0, int64_t s1, int64_t b,
                               unsigned *seen) {
  int64_t lo = b * block_codes(p), hi = lo + block_codes(p), pf = 32 / p->bits;
  if (!holds(p, b)) return false;
  for (int64_t i = lo; i < hi; i += pf) {
    uint32_t *words = p->words + i / pf * p->word_step + s0;
    uint8_t *codes = p->codes + (i - p->first) * p->code_step + s0;
    if (packing) *seen |= pack_side_by_side(p, words, codes, s1 - s0);
    else unpack_side_by_side(p, codes, words, s1 - s0);
  }
  return true;
}

/* Whether the vector kernels know this plane: whole streams of 4 or 8 bits whose
 * codes lie side by side, and so do the words, either of a stream or of a block. */
static bool is_fast(const nb_plane *p) {
  return (nb_cpu() & NB_CPU_AVX2) &&
         (p->bits == 4 || (p->bits == 8 && (p->word_step == 1 || p->code_stream % 4 == 0))) && !p->legacy &&
         !p->minus_one && p->code_step == 1 && (p->word_step == 1 || p->word_stream == 1) && p->first == 0 &&
         p->count == p->total;
}

/* The tile's streams x blocks: how many of the streams were done. */
static int64_t fast_tile(const nb_plane *p, bool packing, int64_t s0, int64_t s1, int64_t b0, int64_t b1,
                         unsigned *seen) {
  uint32_t turned[STREAM_TILE * BLOCK_TILE * 4];
  int64_t count = (b1 - b0) * 32, width = count * p->bits / 32, streams = s1 - s0;
  uint32_t *words = p->words + s0 * p->word_stream + b0 * p->bits * p->word_step;
  uint8_t *codes = p->codes + s0 * p->code_stream + b0 * 32;
  if (b1 * 32 > p->total || count % 64) return 0;
  if (p->word_step == 1) {
    for (int64_t s = 0; s < streams; s++) {
      uint32_t *w = words + s * p->word_stream;
      uint8_t *c = codes + s * p->code_stream;
      if (p->bits == 8) memcpy(packing ? (void *)w : c, packing ? (void *)c : w, (size_t)count);
      else if (packing) *seen |= nb_nibbles_pack_avx2(w, c, count);
      else nb_nibbles_unpack_avx2(c, w, count);
    }
    return streams;
  }
  streams -= streams % 8;
  if (p->bits == 8) { /* a word is four codes as they lie */
    uint32_t *rows = (uint32_t *)(void *)codes;
    for (int64_t w = 0; w < width; w += NB_STRIP) {
      int64_t part = NB_MIN(NB_STRIP, width - w), ld = p->code_stream / 4;
      if (packing)
        nb_words_transpose_avx2(words + w * p->word_step, p->word_step, rows + w, ld, streams, part, false);
      else
        nb_words_transpose_avx2(rows + w, ld, words + w * p->word_step, p->word_step, part, streams, false);
    }
    return streams;
  }
  for (int64_t s = 0; packing && s < streams; s++)
    *seen |= nb_nibbles_pack_avx2(turned + s * width, codes + s * p->code_stream, count);
  if (packing) nb_words_transpose_avx2(words, p->word_step, turned, width, streams, width, false);
  else nb_words_transpose_avx2(turned, width, words, p->word_step, width, streams, false);
  for (int64_t s = 0; !packing && s < streams; s++)
    nb_nibbles_unpack_avx2(codes + s * p->code_stream, turned + s * width, count);
  return streams;
}

/* Words along the codes, whose codes lie side by side from stream to stream: zero-points of 4 bits, which 16 streams
 * turn in registers; the last sixteen may be some again. */
static bool turns(const nb_plane *p, int64_t streams) {
  return (nb_cpu() & NB_CPU_AVX2) && p->bits == 4 && !p->legacy && p->word_step == 1 && p->code_stream == 1 &&
         streams >= 16;
}

static void turn_block(const nb_plane *p, int64_t s0, int64_t s1, int64_t b) {
  static const uint8_t plain[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  uint8_t *codes = p->codes + (b * 32 - p->first) * p->code_step;
  for (int64_t s = s0; s < s1; s += 16) {
    int64_t at = NB_MIN(s, s1 - 16);
    nb_nibbles_turn_avx2(codes + at, p->code_step, p->words + at * p->word_stream + b * 4, p->word_stream,
                         plain, p->minus_one);
  }
}

/* One tile of streams x blocks, in the order in which the words lie in memory. */
static unsigned run_tile(const nb_plane *p, bool packing, bool fast, int64_t s0, int64_t s1, int64_t b0,
                         int64_t b1) {
  unsigned seen = 0;
  if (fast) s0 += fast_tile(p, packing, s0, s1, b0, b1, &seen);
  bool by_stream = p->word_step == 1, beside = lies_side_by_side(p);
  if (!packing && turns(p, s1 - s0)) {
    for (int64_t b = b0; b < b1; b++) {
      if (holds(p, b)) turn_block(p, s0, s1, b);
      else
        for (int64_t s = s0; s < s1; s++) unpack_span(p, s, b);
    }
    return 0;
  }
  int64_t outer0 = by_stream ? s0 : b0, outer1 = by_stream ? s1 : b1;
  int64_t inner0 = by_stream ? b0 : s0, inner1 = by_stream ? b1 : s1;
  for (int64_t i = outer0; i < outer1; i++) {
    if (beside && block_side_by_side(p, packing, s0, s1, i, &seen)) continue;
    for (int64_t j = inner0; j < inner1; j++) {
      int64_t s = by_stream ? i : j, b = by_stream ? j : i;
      if (packing) seen |= pack_span(p, s, b);
      else unpack_span(p, s, b);
    }
  }
  return seen;
}

/* NB_OK, NB_EINTR, or 1: a code to be packed was out of range. */
static int run(const nb_plane *p, bool packing) {
  if (p->count <= 0 || p->streams <= 0) return NB_OK;
  int64_t b0 = p->first / block_codes(p), b1 = NB_CEIL(p->first + p->count, (int64_t)block_codes(p));
  bool fast = is_fast(p);
  unsigned seen = 0;
  int stopped = 0;
#pragma omp parallel for collapse(2) schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : seen, stopped) if (p->streams * p->count > SERIAL_CODES)
  for (int64_t s = 0; s < p->streams; s += STREAM_TILE)
    for (int64_t b = b0; b < b1; b += BLOCK_TILE) {
      if (nb_stop_requested()) stopped = 1;
      else
        seen |=
            run_tile(p, packing, fast, s, NB_MIN(s + STREAM_TILE, p->streams), b, NB_MIN(b + BLOCK_TILE, b1));
    }
  if (stopped) return nb_fail_stopped();
  return seen >> p->bits ? 1 : NB_OK;
}

int nb_plane_pack(const nb_plane *p, const nb_tensor *codes, const char *what) {
  int rc = run(p, true);
  return rc == 1 ? nb_codes_check(codes, p->bits, what) : rc;
}

int nb_plane_unpack(const nb_plane *p) { return run(p, false); }

/* ---- along an axis of a matrix (MRL-10, MRL-11) ------------------------------ */

static int axis_plane(nb_plane *p, const nb_tensor *words, const nb_tensor *codes, int bits, int axis,
                      const char *what) {
  NB_TRY(nb_expect_bits(what, bits, 1, 8));
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  if (axis != 0 && axis != 1) return nb_fail(NB_EINVAL, "%s: axis must be 0 or 1, found %d", what, axis);
  int64_t rows = codes->shape[0], cols = codes->shape[1], total = axis ? cols : rows;
  int64_t width = nb_plane_width(total, bits, false);
  NB_TRY(nb_expect_words(words, what, 2, axis ? NB_SHAPE(rows, width) : NB_SHAPE(width, cols)));
  *p = (nb_plane){.words = words->data,
                  .codes = codes->data,
                  .bits = bits,
                  .total = total,
                  .count = total,
                  .streams = axis ? rows : cols,
                  .word_step = axis ? 1 : cols,
                  .word_stream = axis ? width : 1,
                  .code_step = axis ? 1 : cols,
                  .code_stream = axis ? cols : 1};
  return NB_OK;
}

int nb_bits_pack(nb_tensor *words, const nb_tensor *codes, int bits, int axis) {
  nb_plane p;
  NB_TRY(axis_plane(&p, words, codes, bits, axis, "pack"));
  return nb_plane_pack(&p, codes, "pack");
}

int nb_bits_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int axis) {
  nb_plane p;
  NB_TRY(axis_plane(&p, words, codes, bits, axis, "unpack"));
  return nb_plane_unpack(&p);
}
