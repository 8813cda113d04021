/* scan.c - what a tensor's values must not be: NaN, infinity, zero, negative, subnormal;
 * how many there are and where the first is, in one pass at the rate of memory.
 *
 * Blocks are counted by their bits; only those with a NaN or an infinity in them are
 * looked at one value at a time. Counts add up to the same whatever the threads. */
#define SCAN nb_count_portable
#include "scan_body.h"

#include "dtype.h"

enum { CHUNK = 256 * NB_SCAN_BLOCK }; /* bytes that a thread takes at a time */

#define INT_KIND(b, type_max) \
  { b, 0, -1, -(type_max)-1, type_max }

static const nb_value_kind kinds[NB_NDTYPES] = {
    [NB_F16] = {16, 0, 0x7fff, 0x400, 0x7bff},
    [NB_BF16] = {16, 0, 0x7fff, 0x80, 0x7f7f},
    [NB_F32] = {32, 0, 0x7fffffff, 0x800000, 0x7f7fffff},
    [NB_F64] = {64, 0, INT64_MAX, INT64_C(1) << 52, INT64_C(0x7fefffffffffffff)},
    [NB_F8_E4M3] = {8, 0, 0x7f, 0x08, 0x7e},
    [NB_F8_E5M2] = {8, 0, 0x7f, 0x04, 0x7b},
    [NB_F8_E8M0] = {8, 0x80, 0xff, -128, 126}, /* 255, NaN, turns into the greatest int8 */
    [NB_F8_E4M3FNUZ] = {8, 0, 0x7f, 0x08, 0x7f},
    [NB_F8_E5M2FNUZ] = {8, 0, 0x7f, 0x04, 0x7f},
    [NB_BOOL] = INT_KIND(8, INT8_MAX),
    [NB_U8] = INT_KIND(8, INT8_MAX),
    [NB_I8] = INT_KIND(8, INT8_MAX),
    [NB_U16] = INT_KIND(16, INT16_MAX),
    [NB_I16] = INT_KIND(16, INT16_MAX),
    [NB_U32] = INT_KIND(32, INT32_MAX),
    [NB_I32] = INT_KIND(32, INT32_MAX),
    [NB_U64] = INT_KIND(64, INT64_MAX),
    [NB_I64] = INT_KIND(64, INT64_MAX),
};

static bool has_sign(int dtype) {
  return dtype != NB_F8_E8M0 && dtype != NB_BOOL && dtype != NB_U8 && dtype != NB_U16 && dtype != NB_U32 &&
         dtype != NB_U64;
}

/* Formats whose NaN looks like a negative zero: told from it one value at a time. */
static bool is_fnuz(int dtype) { return dtype == NB_F8_E4M3FNUZ || dtype == NB_F8_E5M2FNUZ; }

typedef struct job {
  const char *data;
  int64_t numel, bytes; /* bytes of an element */
  int dtype;
  const nb_value_kind *kind;
  nb_count_fn *count;
} job;

/* The one with the sign; a NaN's may be lost on the way to a double. */
static uint8_t last_byte(const job *j, int64_t i) { return (uint8_t)j->data[(i + 1) * j->bytes - 1]; }

/* The block at element `at` again, NaN and infinities apart. */
static void sort_out(nb_value_scan *s, nb_bit_counts *c, const job *j, int64_t at, int64_t n) {
  double x[NB_SCAN_BLOCK];
  nb_load_f64(x, j->data + at * j->bytes, j->dtype, n);
  for (int64_t i = 0; i < n; i++) {
    if (isfinite(x[i])) continue;
    if (isnan(x[i])) {
      s->nan++;
      if (is_fnuz(j->dtype)) c->zeros--, c->small--;
      else c->negative -= last_byte(j, at + i) >> 7;
    } else s->inf++;
    if (s->first_odd < 0) s->first_odd = at + i;
  }
}

/* Where the first of a kind is, to the block; found() then looks for the element. */
static void scan_block(nb_value_scan *s, const job *j, int64_t at, int64_t n) {
  nb_bit_counts c;
  j->count(&c, j->data + at * j->bytes, n, j->kind);
  if (c.odd > 0 || (is_fnuz(j->dtype) && c.zeros > 0)) sort_out(s, &c, j, at, n);
  if (j->dtype == NB_F8_E8M0) c.zeros = 0; /* it has none */
  if (!has_sign(j->dtype)) c.negative = 0;
  if (c.zeros > 0 && s->first_zero < 0) s->first_zero = at;
  if (c.negative > 0 && s->first_negative < 0) s->first_negative = at;
  s->zeros += c.zeros;
  s->negative += c.negative;
  if (j->kind->normal > 0) s->subnormal += c.small - c.zeros;
}

static int64_t found(const job *j, int64_t at, bool negative) {
  if (at < 0) return -1;
  double x[NB_SCAN_BLOCK];
  int64_t n = NB_MIN(NB_SCAN_BLOCK / j->bytes, j->numel - at), i = 0;
  nb_load_f64(x, j->data + at * j->bytes, j->dtype, n);
  while (i < n && !(negative ? x[i] < 0 : x[i] == 0)) i++;
  return at + i;
}

static int64_t first_of(int64_t a, int64_t b) { return a < 0 ? b : a; }

static void merge(nb_value_scan *a, const nb_value_scan *b) {
  a->nan += b->nan;
  a->inf += b->inf;
  a->zeros += b->zeros;
  a->negative += b->negative;
  a->subnormal += b->subnormal;
  a->first_odd = first_of(a->first_odd, b->first_odd);
  a->first_zero = first_of(a->first_zero, b->first_zero);
  a->first_negative = first_of(a->first_negative, b->first_negative);
}

static const nb_value_scan nothing = {
    .first_odd = -1, .first_zero = -1, .first_negative = -1, .first_zero_row = -1};

/* Rows (the last dimension's elements) that are zeros and nothing else. */
static int zero_rows(nb_value_scan *out, const job *j, int64_t cols) {
  int64_t rows = j->numel / cols, count = 0, first = rows, step = NB_SCAN_BLOCK / j->bytes;
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (j->numel > CHUNK) \
    reduction(+ : count) reduction(min : first) reduction(|| : stopped)
  for (int64_t r = 0; r < rows; r++) {
    if ((stopped = stopped || nb_stop_requested())) continue;
    bool all = true;
    /* a few elements first: most rows end there */
    for (int64_t at = 0, n = NB_MIN(cols, 16); all && at < cols; at += n, n = NB_MIN(step, cols - at)) {
      nb_value_scan s = nothing;
      scan_block(&s, j, r * cols + at, n);
      all = s.zeros == n;
    }
    count += all;
    if (all) first = NB_MIN(first, r);
  }
  if (stopped) return nb_fail_stopped();
  out->zero_rows = count;
  if (count) out->first_zero_row = first;
  return NB_OK;
}

int nb_tensor_scan(nb_value_scan *out, const nb_tensor *t) {
  *out = nothing;
  NB_TRY(nb_real_only(t, "a scan"));
  if (!kinds[t->dtype].bits)
    return nb_fail(NB_EUNSUPPORTED, "scan: %s is packed; its codes have no NaN", nb_dtype_name(t->dtype));
  job j = {.data = t->data,
           .numel = nb_tensor_numel(t),
           .bytes = kinds[t->dtype].bits / 8,
           .dtype = t->dtype,
           .kind = &kinds[t->dtype],
           .count = nb_cpu() & NB_CPU_AVX2 ? nb_count_avx2 : nb_count_portable};
  int64_t step = NB_SCAN_BLOCK / j.bytes, large = CHUNK / j.bytes, chunks = NB_CEIL(j.numel, large);
  nb_value_scan one = nothing, *part = chunks > 1 ? nb_alloc(chunks, sizeof *part) : &one;
  if (!part) return NB_ENOMEM;
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (chunks > 1) reduction(|| : stopped)
  for (int64_t c = 0; c < chunks; c++) {
    part[c] = nothing;
    int64_t end = NB_MIN(j.numel, (c + 1) * large);
    for (int64_t at = c * large; at < end; at += step) {
      if ((stopped = stopped || nb_stop_requested())) break;
      scan_block(&part[c], &j, at, NB_MIN(step, end - at));
    }
  }
  for (int64_t c = 0; c < chunks; c++) merge(out, &part[c]);
  if (part != &one) free(part);
  if (stopped) return nb_fail_stopped();
  out->numel = j.numel;
  out->first_zero = found(&j, out->first_zero, false);
  out->first_negative = found(&j, out->first_negative, true);
  int64_t cols = t->ndim ? t->shape[t->ndim - 1] : 1;
  return out->zeros > 0 && out->zeros >= cols ? zero_rows(out, &j, cols) : NB_OK;
}
