/* difference.c - how far one weight is from another, whatever form each is in: floats,
 * codes, packed words. Both are decoded a segment of a row at a time and compared in the
 * first-level cache; no dequantized tile is ever in memory.
 *
 * A strip of rows is one thread's. Words that lie along the rows (AWQ, GPTQ) are unpacked
 * in windows of rows and columns, so that whole cache lines are used; the others a few
 * rows at a time. Sums run in float32 over a segment, then in double in one order. */
#include "difference.h"

#include "blocks.h"
#include "dequant.h"
#include "dequant_float.h"
#include "layout/simd.h"

static const char what[] = "weight compare";

float nb_segment_portable(nb_segment_sums *sums, float *a, float *b, int64_t n) {
  return nb_segment_of_floats(sums, a, b, n);
}

/* Bytes of a window's codes, which stay in the second-level cache; its rows where words lie along n: as many as fill two
 * lines of AWQ's, or as leave GPTQ's room for whole rows. */
enum { WINDOW = 1 << 18, AWQ_ROWS = 256, GPTQ_ROWS = 128, MOST_ROWS = 512 };
/* Words beside a row of 4-bit words or a run of GPTQ's: rows a power of two apart share a few sets of the cache. */
enum { GAP = 16 };
/* How many runs of words along n are turned at once, and the words that this takes. */
enum { AWQ_RUNS = 256, GPTQ_RUNS = 64, PIECE = GPTQ_RUNS * (AWQ_ROWS + GAP) };

/* One of the two weights, as its rows are decoded. */
typedef struct side {
  const nb_weight *w;
  int64_t group, groups; /* columns of a group, groups of a row */
  nb_load_fn *load, *load_scale;
  nb_dequant_row_fn *by_group, *by_index;
  const nb_dequant_float_kernels *kernels;
  float divisor; /* of the scales; 0: none */
  bool packed, nibbles, single;
} side;

/* What a thread works with, and the largest difference that it has seen. */
typedef struct scratch {
  void *tile[2];   /* a window's codes: bytes, or (4 bits) words along the rows */
  uint32_t *words; /* a piece of words that lie along n, as they come from the file */
  float *scale;
  int32_t *zero;
  double *row_error;
  int fused;            /* as codes_in_registers() says */
  nb_segment_sums sums; /* of the strip, as far as float32 could sum */
  double max_abs;
  int64_t max_at;
} scratch;

typedef struct window {
  int64_t row, rows, column, columns;
} window;

/* ---- decoding -------------------------------------------------------------------- */

/* Words from one row of 4-bit codes in a tile to the next. */
static int64_t tile_ld(const window *at) { return NB_CEIL(at->columns, 8) + GAP; }

/* A window of 4-bit words along n, turned into the tile a piece at a time. First whole runs of them are copied: turning
 * them where they lie takes a line of each run at a time, which memory answers at a third of its speed. */
static void turn(const side *s, scratch *x, uint32_t *tile, const window *at) {
  enum { AHEAD = 16, LINE = 16, SECOND_LEVEL = 2 };
  bool awq = s->w->packing == NB_PACKING_AWQ;
  int64_t width = s->w->values->shape[1], per_run = awq ? 1 : 8, piece = awq ? AWQ_RUNS : 8 * GPTQ_RUNS;
  int64_t first = awq ? at->row / 8 : at->row, words = awq ? at->rows / 8 : at->rows,
          ld = words + (awq ? 0 : GAP);
  const uint32_t *from = (const uint32_t *)s->w->values->data + at->column / per_run * width + first;
  for (int64_t c = 0; c < at->columns; c += piece) {
    int64_t runs = NB_CEIL(NB_MIN(piece, at->columns - c), per_run);
    for (int64_t r = 0; r < runs; r++, from += width) {
      const uint32_t *next = from + AHEAD * width;
      for (int64_t i = 0; i < words; i += LINE) __builtin_prefetch(next + i, 0, SECOND_LEVEL);
      __builtin_prefetch(next + words - 1, 0, SECOND_LEVEL); /* the line that the run ends in */
      uint32_t *to = x->words + r * ld;
      int64_t i = 0;
      for (; i + 8 <= words; i += 8) memcpy(to + i, from + i, 8 * sizeof *to); /* no call for a line or two */
      for (; i < words; i++) to[i] = from[i];
    }
    nb_repack_alone(tile + c / 8, tile_ld(at), x->words, ld, awq ? NB_AWQ_TO_CT : NB_GPTQ_TO_CT,
                    runs * per_run, at->rows);
  }
}

/* Into the tile: 4-bit words along n become words along the rows, others bytes. */
static int unpack(const side *s, scratch *x, void *tile, const window *at) {
  const nb_weight *w = s->w;
  uint32_t *words = w->values->data;
  int64_t width = w->values->shape[1], first = at->column * w->bits / 32;
  bool awq = w->packing == NB_PACKING_AWQ, along_n = w->packing == NB_PACKING_GPTQ;
  if (s->nibbles) {
    if (along_n || awq) turn(s, x, tile, at); /* the others as they lie in the file */
    return NB_OK;
  }
  if (awq) {
    nb_tensor out, part;
    NB_TRY(nb_shape_set(&out, NB_U8, 2, NB_SHAPE(at->rows, at->columns), what));
    NB_TRY(nb_shape_set(&part, NB_I32, 2, NB_SHAPE(at->columns, width), what));
    out.data = tile;
    part.data = words + at->column * width;
    return nb_awq_unpack(&out, &part, w->bits, at->row);
  }
  return nb_plane_unpack(
      &(nb_plane){.words = words + (along_n ? first * width + at->row : at->row * width + first),
                  .codes = tile,
                  .bits = w->bits,
                  .total = at->columns,
                  .count = at->columns,
                  .streams = at->rows,
                  .word_step = along_n ? width : 1,
                  .word_stream = along_n ? 1 : width,
                  .code_step = 1,
                  .code_stream = at->columns});
}

/* Row r's codes of 4 bits from column c on, two a byte. */
static const void *nibbles_at(const side *s, const void *tile, const window *at, int64_t r, int64_t c) {
  const nb_weight *w = s->w;
  int64_t width = w->values->shape[1];
  if (w->packing == NB_PACKING_FP4) return (const uint8_t *)w->values->data + r * width + c / 2;
  if (w->packing == NB_PACKING_CT) return (const uint32_t *)w->values->data + r * width + c / 8;
  return (const uint32_t *)tile + (r - at->row) * tile_ld(at) + (c - at->column) / 8;
}

/* Scales of groups g0 to g1 of row r as float, and zero-points. */
static void load_groups(const side *s, scratch *x, int64_t r, int64_t g0, int64_t g1) {
  const nb_weight *w = s->w;
  int64_t at = s->single ? 0 : r / w->rows * s->groups + g0, count = s->single ? 1 : g1 - g0;
  s->load_scale(x->scale, (const char *)w->scales->data + at * nb_dtype_bits(w->scales->dtype) / 8, count);
  for (int64_t i = 1; s->single && i < g1 - g0; i++) x->scale[i] = x->scale[0];
  if (s->divisor != 0)
    for (int64_t i = 0; i < g1 - g0; i++) x->scale[i] /= s->divisor;
  if (!w->bits) return;
  const uint8_t *zeros = w->zeros ? (const uint8_t *)w->zeros->data + at : NULL;
  if (zeros && !s->single)
    for (int64_t i = 0; i < g1 - g0; i++) x->zero[i] = zeros[i];
  else
    for (int64_t i = 0; i < g1 - g0; i++) x->zero[i] = zeros ? *zeros : 1 << (w->bits - 1);
}

/* Whole groups together, a group that the segment cuts by itself. */
static void decode_ints(const side *s, scratch *x, float *out, const uint8_t *codes, int64_t r, int64_t c,
                        int64_t n) {
  if (s->w->g_idx) {
    load_groups(s, x, r, 0, s->groups);
    nb_dequant d = {.k = n, .dtype = NB_F32, .g_idx = (const int32_t *)s->w->g_idx->data + c};
    s->by_index(out, codes, &d, x->scale, x->zero);
    return;
  }
  int64_t g0 = c / s->group;
  load_groups(s, x, r, g0, (c + n - 1) / s->group + 1);
  for (int64_t done = 0, size; done < n; done += size) {
    int64_t g = (c + done) / s->group, left = NB_MIN(n - done, (g + 1) * s->group - c - done);
    bool whole = left == s->group;
    size = whole ? (n - done) / s->group * s->group : left;
    nb_dequant d = {
        .per_row = whole ? size / s->group : 1, .group = whole ? s->group : left, .dtype = NB_F32};
    s->by_group(out + done, codes + done, &d, x->scale + g - g0, x->zero + g - g0);
  }
}

/* Floats, or float codes with their scales. */
static void decode_floats(const side *s, scratch *x, float *out, const void *values, int64_t r, int64_t c,
                          int64_t n) {
  const nb_weight *w = s->w;
  if (w->scales && w->values->dtype == NB_U8) s->kernels->e2m1(out, values, n);
  else s->load(out, values, n);
  if (!w->scales) return;
  int64_t g0 = c / s->group;
  load_groups(s, x, r, g0, (c + n - 1) / s->group + 1);
  s->kernels->multiply(out, n, c - g0 * s->group, s->group, x->scale);
  if (w->factor != 0)
    for (int64_t i = 0; i < n; i++) out[i] *= w->factor;
}

static void unpack_nibbles(uint8_t *codes, const void *words, int64_t n) {
  int64_t i = nb_cpu() & NB_CPU_AVX2 ? n / 64 * 64 : 0;
  if (i) nb_nibbles_unpack_avx2(codes, words, i);
  for (; i < n; i++) codes[i] = ((const uint8_t *)words)[i / 2] >> i % 2 * 4 & 15;
}

static void decode(const side *s, scratch *x, const void *tile, float *out, const window *at, int64_t r,
                   int64_t c, int64_t n) {
  uint8_t bytes[NB_SEGMENT];
  int64_t first = (r * s->w->k + c) * nb_dtype_bits(s->w->values->dtype) / 8;
  const void *values = (const char *)s->w->values->data + first;
  if (s->nibbles) {
    unpack_nibbles(bytes, nibbles_at(s, tile, at, r, c), n);
    values = bytes;
  } else if (s->packed) {
    values = (const uint8_t *)tile + (r - at->row) * at->columns + c - at->column;
  }
  if (s->w->bits) decode_ints(s, x, out, values, r, c, n);
  else decode_floats(s, x, out, values, r, c, n);
}

/* ---- asking for memory ahead of time ------------------------------------------------ */

static void ask_for(const void *from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

/* Bytes from a segment of floats to what will be wanted soon: behind it where rows follow each other,
 * else the next row. */
static int64_t ahead_of(const side *s, const window *at) {
  return (at->columns == s->w->k ? 2 * NB_SEGMENT : s->w->k) * nb_dtype_bits(s->w->values->dtype) / 8;
}

static void ask_for_floats(const side *s, const window *at, int64_t r, int64_t c, int64_t n) {
  int64_t bits = nb_dtype_bits(s->w->values->dtype);
  if (!s->packed)
    ask_for((const char *)s->w->values->data + (r * s->w->k + c) * bits / 8 + ahead_of(s, at), n * bits / 8);
}

/* ---- sums ------------------------------------------------------------------------ */

/* What float32 cannot sum; as compare.c does it, in doubles. */
static double in_doubles(nb_comparison *c, const float *a, const float *b, int64_t n, double *error2) {
  _Static_assert((int)NB_SEGMENT <= (int)NB_BLOCK, "a segment fits");
  _Alignas(64) double x[NB_BLOCK], y[NB_BLOCK];
  for (int64_t i = 0; i < n; i++) {
    x[i] = (double)a[i], y[i] = (double)b[i];
    if (isfinite(x[i]) && isfinite(y[i])) continue;
    c->odd += !(x[i] == y[i] || (x[i] != x[i] && y[i] != y[i]));
    x[i] = y[i] = 0;
  }
  nb_difference d;
  nb_blocks_get()->difference(&d, x, y, n);
  *error2 += d.error2;
  c->a2 += d.a2;
  c->b2 += d.b2;
  c->dot += d.dot;
  return d.max_abs;
}

static double distance(float a, float b) {
  return isfinite(a) && isfinite(b) ? fabs((double)b - (double)a) : 0;
}

/* Which of the two are codes that the registers' kernel takes, in whole steps beside floats: e4m3, or 4 bits in
 * order with scales of 16 bits; -1: neither. */
static int codes_in_registers(const side *sides) {
  if (!(nb_cpu() & NB_CPU_AVX2) || sides->w->k % NB_SEGMENT_STEP != 0) return -1;
  for (int i = 0; i < 2; i++) {
    const side *s = &sides[i];
    const nb_weight *w = s->w;
    if (sides[!i].w->scales || !w->scales || s->group % NB_SEGMENT_STEP != 0) continue;
    bool ints = s->nibbles && w->bits && !w->g_idx && w->scales->dtype != NB_F32;
    if (ints || (w->values->dtype == NB_F8_E4M3 && w->factor == 0)) return i;
  }
  return -1;
}

enum { NOT_IN_REGISTERS = -2 };

/* What a nb_segment_fn returns, or NOT_IN_REGISTERS. */
static float segment_in_registers(const side *sides, scratch *x, const window *at, int64_t r, int64_t c,
                                  int64_t n) {
  if (x->fused < 0) return NOT_IN_REGISTERS;
  const side *s = &sides[x->fused];
  const nb_weight *w = sides[!x->fused].w;
  int64_t g0 = c / s->group, groups = (c + n - 1) / s->group + 1 - g0;
  load_groups(s, x, r, g0, g0 + groups);
  for (int64_t i = 0; !s->w->bits && i < groups; i++)
    if (fabsf(x->scale[i]) >= NB_SEGMENT_SCALE) return NOT_IN_REGISTERS;
  nb_segment_codes q = {.codes = s->w->bits ? nibbles_at(s, x->tile[x->fused], at, r, c)
                                            : (const uint8_t *)s->w->values->data + r * s->w->k + c,
                        .scale = x->scale,
                        .zero = s->w->bits ? x->zero : NULL,
                        .group = s->group,
                        .first = c - g0 * s->group,
                        .ahead = ahead_of(&sides[!x->fused], at)};
  const char *floats = (const char *)w->values->data + (r * w->k + c) * nb_elem_bytes(w->values->dtype);
  return nb_segment_codes_avx2(&x->sums, floats, w->values->dtype, &q, n, x->fused == 0);
}

/* n columns of row r from c on; -> the squared error that is not in the sums. */
static double compare_segment(nb_comparison *out, const side *sides, scratch *x, const window *at, int64_t r,
                              int64_t c, int64_t n) {
  _Alignas(64) float a[NB_SEGMENT], b[NB_SEGMENT];
  double max = (double)segment_in_registers(sides, x, at, r, c, n), error2 = 0;
  bool fused = max > NOT_IN_REGISTERS;
  int64_t first = r * sides->w->k + c;
  bool farther = max > x->max_abs || (max == x->max_abs && max > 0 && first < x->max_at);
  if (fused && max >= 0 && !farther) return 0;
  for (int i = 0; i < 2 && !fused; i++) ask_for_floats(&sides[i], at, r, c, n);
  decode(&sides[0], x, x->tile[0], a, at, r, c, n);
  decode(&sides[1], x, x->tile[1], b, at, r, c, n);
  if (!fused)
    max = (double)(nb_cpu() & NB_CPU_AVX2 ? nb_segment_avx2 : nb_segment_portable)(&x->sums, a, b, n);
  bool doubles = max < 0;
  if (doubles) max = in_doubles(out, a, b, n, &error2);
  if (max > x->max_abs || (max == x->max_abs && max > 0 && first < x->max_at)) { /* seldom: the first one */
    int64_t i = 0;
    while (i < n - 1 && !((doubles ? distance(a[i], b[i]) : (double)fabsf(b[i] - a[i])) >= max)) i++;
    if (max > x->max_abs || first + i < x->max_at) x->max_at = first + i;
    x->max_abs = max;
  }
  return error2;
}

/* Row r's columns of the window. */
static void compare_row(nb_comparison *out, const side *sides, scratch *x, const window *at, int64_t r) {
  double before = x->sums.error2, error2 = 0;
  for (int64_t c = at->column; c < at->column + at->columns; c += NB_SEGMENT) {
    int64_t n = NB_MIN((int64_t)NB_SEGMENT, at->column + at->columns - c);
    error2 += compare_segment(out, sides, x, at, r, c, n);
  }
  x->row_error[r - at->row] += error2 + (x->sums.error2 - before);
}

/* Window by window; -> NB_OK or a failure. */
static int compare_strip(nb_comparison *c, const side *sides, scratch *x, int64_t row, int64_t rows,
                         int64_t columns) {
  memset(x->row_error, 0, (size_t)rows * sizeof *x->row_error);
  x->sums = (nb_segment_sums){0};
  window at = {.row = row, .rows = rows};
  for (; at.column < sides->w->k; at.column += columns) {
    if (nb_stop_requested()) return NB_EINTR;
    at.columns = NB_MIN(columns, sides->w->k - at.column);
    for (int i = 0; i < 2; i++)
      if (sides[i].packed) NB_TRY(unpack(&sides[i], x, x->tile[i], &at));
    for (int64_t r = row; r < row + rows; r++) compare_row(c, sides, x, &at, r);
  }
  c->a2 += x->sums.a2;
  c->b2 += x->sums.a2 + 2 * x->sums.dot + x->sums.error2;
  c->dot += x->sums.a2 + x->sums.dot;
  for (int64_t r = 0; r < rows; r++) {
    c->error2 += x->row_error[r];
    if (x->row_error[r] > c->worst_error2) c->worst_error2 = x->row_error[r], c->worst_row = row + r;
  }
  return NB_OK;
}

static void merge(nb_comparison *out, const nb_comparison *c) {
  out->error2 += c->error2;
  out->a2 += c->a2;
  out->b2 += c->b2;
  out->dot += c->dot;
  out->odd += c->odd;
  if (c->worst_error2 > out->worst_error2) out->worst_error2 = c->worst_error2, out->worst_row = c->worst_row;
}

/* ---- what is compared --------------------------------------------------------------- */

static bool is_plain(int dtype) { return dtype == NB_F32 || dtype == NB_BF16 || dtype == NB_F16; }

static int words_fit(const nb_weight *w) {
  if (w->packing == NB_PACKING_FP4)
    return nb_expect(w->values, "weight compare: bytes", NB_U8, 2, NB_SHAPE(w->n, NB_CEIL(w->k, 2)));
  int64_t height = w->n, width = nb_plane_width(w->k, w->bits, false);
  if (w->packing == NB_PACKING_GPTQ) height = width, width = w->n;
  if (w->packing == NB_PACKING_AWQ) {
    if (32 % w->bits || w->n % (32 / w->bits))
      return nb_fail(NB_EINVAL, "%s: AWQ's words hold rows by the word, found %lld of %d bits", what,
                     (long long)w->n, w->bits);
    height = w->k, width = w->n * w->bits / 32;
  }
  return nb_expect_words(w->values, "weight compare: words", 2, NB_SHAPE(height, width));
}

static int side_of(side *s, const nb_weight *w) {
  bool avx2 = nb_cpu() & NB_CPU_AVX2;
  *s = (side){.w = w, .group = w->k, .groups = 1, .packed = w->packing != NB_PACKING_NONE};
  bool fp4 = w->packing == NB_PACKING_FP4;
  if (w->bits < 0 || w->bits > 8 || (s->packed && fp4 == (w->bits > 0)) || (s->packed && !w->scales))
    return nb_fail(NB_EINVAL, "%s: %d bits in packing %d", what, w->bits, w->packing);
  if (s->packed) NB_TRY(words_fit(w));
  else NB_TRY(nb_expect(w->values, "weight compare: values", w->bits ? NB_U8 : -1, 2, NB_SHAPE(w->n, w->k)));
  if (!w->scales) {
    if (w->bits || s->packed || !is_plain(w->values->dtype))
      return nb_fail(NB_EINVAL, "%s: %s without scales, expected f32, bf16 or f16", what,
                     nb_dtype_name(w->values->dtype));
    s->load = nb_load_of(w->values->dtype);
    return NB_OK;
  }
  if (w->rows < 1 || w->columns < 1)
    return nb_fail(NB_EINVAL, "%s: blocks of %lldx%lld", what, (long long)w->rows, (long long)w->columns);
  s->single = nb_tensor_numel(w->scales) == 1;
  s->group = w->columns;
  s->groups = NB_CEIL(w->k, w->columns);
  s->nibbles = s->packed && (w->bits == 4 || w->packing == NB_PACKING_FP4);
  int64_t rows = NB_CEIL(w->n, w->rows);
  if (!s->single) NB_TRY(nb_expect(w->scales, "weight compare: scales", -1, 2, NB_SHAPE(rows, s->groups)));
  s->load_scale = nb_load_of(w->scales->dtype);
  if (!w->bits) s->load = nb_load_of(w->values->dtype == NB_U8 ? NB_F8_E4M3 : w->values->dtype);
  if (!s->load_scale || (!w->bits && !s->load))
    return nb_fail(NB_EINVAL, "%s: codes are %s and scales %s, which float32 does not hold", what,
                   nb_dtype_name(w->values->dtype), nb_dtype_name(w->scales->dtype));
  if (w->zeros && !s->single)
    NB_TRY(nb_expect(w->zeros, "weight compare: zeros", NB_U8, 2, NB_SHAPE(rows, s->groups)));
  if (w->g_idx) NB_TRY(nb_expect_groups(w->g_idx, what, w->k, s->groups));
  if (w->global && !w->factor) {
    NB_TRY(nb_expect(w->global, "weight compare: global scale", NB_F32, 1, NB_SHAPE(1)));
    s->divisor = *(const float *)w->global->data;
  }
  s->by_group = nb_dequant_row_of(false);
  s->by_index = nb_dequant_row_of(true);
  s->kernels = avx2 ? &nb_dequant_float_avx2 : &nb_dequant_float_portable;
  return NB_OK;
}

static void scratch_free(scratch *x) {
  free(x->tile[0]);
  free(x->tile[1]);
  free(x->words);
  free(x->scale);
  free(x->zero);
  free(x->row_error);
}

static bool scratch_make(scratch *x, const side *sides) {
  int64_t groups = NB_MAX(sides[0].groups, sides[1].groups) + 1;
  *x = (scratch){.scale = nb_alloc(groups, sizeof(float)),
                 .zero = nb_alloc(groups, sizeof(int32_t)),
                 .row_error = nb_alloc(MOST_ROWS, sizeof(double)),
                 .fused = codes_in_registers(sides)};
  bool ok = x->scale && x->zero && x->row_error;
  for (int i = 0; ok && i < 2; i++)
    if (sides[i].packed) ok = (x->tile[i] = nb_alloc(WINDOW + MOST_ROWS * GAP * 4, 1)) != NULL;
  if (ok && (sides[0].packed || sides[1].packed)) ok = (x->words = nb_alloc(PIECE, sizeof *x->words)) != NULL;
  if (!ok) scratch_free(x);
  return ok;
}

/* Rows of a strip and columns of its windows. */
static void shape_of_work(int64_t *rows, int64_t *columns, const side *sides) {
  bool awq = false, gptq = false, bytes = false;
  for (int i = 0; i < 2; i++) {
    awq |= sides[i].w->packing == NB_PACKING_AWQ;
    gptq |= sides[i].w->packing == NB_PACKING_GPTQ;
    bytes |= sides[i].packed && !sides[i].nibbles;
  }
  int64_t k = sides->w->k, codes = bytes ? WINDOW : 2 * WINDOW;
  *rows = awq    ? AWQ_ROWS
          : gptq ? GPTQ_ROWS
                 : NB_MAX(1, NB_MIN((int64_t)MOST_ROWS, WINDOW / 8 / NB_MAX(1, k)));
  *columns = NB_MIN(k, codes / *rows / 32 * 32);
}

int nb_weight_compare(nb_comparison *sums, const nb_weight *a, const nb_weight *b) {
  side sides[2];
  if (a->n != b->n || a->k != b->k)
    return nb_fail(NB_EINVAL, "%s: [%lldx%lld] and [%lldx%lld]", what, (long long)a->n, (long long)a->k,
                   (long long)b->n, (long long)b->k);
  NB_TRY(side_of(&sides[0], a));
  NB_TRY(side_of(&sides[1], b));
  memset(sums, 0, sizeof *sums);
  sums->numel = a->n * a->k;
  if (sums->numel == 0) return NB_OK;
  int64_t rows, columns;
  shape_of_work(&rows, &columns, sides);
  int64_t strips = NB_CEIL(a->n, rows);
  nb_comparison *part = nb_alloc(strips, sizeof *part);
  if (!part) return NB_ENOMEM;
  int stopped = 0, no_memory = 0;
#pragma omp parallel num_threads(nb_threads()) if (strips > 1 && sums->numel > 65536) \
    reduction(| \
              : stopped, no_memory)
  {
    scratch x;
    int rc = scratch_make(&x, sides) ? NB_OK : NB_ENOMEM;
    bool made = rc == NB_OK;
#pragma omp for schedule(dynamic, 2)
    for (int64_t i = 0; i < strips; i++)
      if (rc == NB_OK)
        rc = compare_strip(&part[i], sides, &x, i * rows, NB_MIN(rows, a->n - i * rows), columns);
#pragma omp critical
    if (made && (x.max_abs > sums->max_abs || (x.max_abs == sums->max_abs && x.max_at < sums->max_at)))
      sums->max_abs = x.max_abs, sums->max_at = x.max_at;
    if (made) scratch_free(&x);
    stopped |= rc == NB_EINTR;
    no_memory |= rc == NB_ENOMEM;
  }
  for (int64_t i = 0; i < strips; i++) merge(sums, &part[i]);
  free(part);
  if (no_memory) return nb_fail(NB_ENOMEM, "%s: out of memory", what);
  return stopped ? nb_fail_stopped() : NB_OK;
}
