/* cast.c - a tensor's values in another dtype, rounded once.
 *
 * Narrow sources go through f32, which holds them exactly, a block at a time in
 * the first-level cache (or straight, where one side is f32). Wide sources (i32,
 * u32, i64, u64, f64) go to 64-bit destinations and f32 directly, and to shorter
 * floats through f32 rounded to odd, so that nothing is rounded twice.
 */
#include "dtype.h"

#include <math.h>

enum { CHUNK = 1 << 16, BLOCK = 2048 };

typedef struct cast_job {
  int from, to;
  nb_load_fn *load;
  nb_store_fn *store;
  float limit; /* saturate: the largest finite value of `to`; 0 = leave alone */
} cast_job;

static float largest_finite(int dtype) {
  const nb_small_float *s = nb_small_of(dtype);
  if (s) return s->max;
  switch (dtype) {
  case NB_F8_E8M0: return 0x1p127f;
  case NB_F16: return 65504.0f;
  case NB_BF16: return 0x1.fep127f;
  case NB_F32: return 0x1.fffffep127f;
  default: return 0;
  }
}

static void clamp(float *out, const float *in, int64_t n, float limit) {
  for (int64_t i = 0; i < n; i++) /* NaN fails both comparisons and stays */
    out[i] = in[i] > limit ? limit : in[i] < -limit ? -limit : in[i];
}

static void cast_narrow(const cast_job *job, char *dst, const char *src, int64_t n) {
  float block[BLOCK];
  int64_t from_bits = nb_dtype_bits(job->from), to_bits = nb_dtype_bits(job->to);
  for (int64_t i = 0; i < n; i += BLOCK) {
    int64_t m = NB_MIN(BLOCK, n - i);
    char *out = dst + i * to_bits / 8;
    const float *in = (const float *)(const void *)(src + i * from_bits / 8);
    if (job->from != NB_F32) {
      float *at = job->to == NB_F32 ? (float *)(void *)out : block;
      job->load(at, in, m);
      in = at;
    }
    if (job->limit > 0) {
      clamp(block, in, m, job->limit);
      in = block;
    }
    if ((const char *)in != out) job->store(out, in, m);
  }
}

/* One wide value: f64, or an integer of up to 64 bits with its sign. */
typedef __int128 wide_int;

static wide_int load_wide_int(const void *src, int dtype, int64_t i) {
  switch (dtype) {
  case NB_I32: return ((const int32_t *)src)[i];
  case NB_U32: return ((const uint32_t *)src)[i];
  case NB_I64: return ((const int64_t *)src)[i];
  default: return ((const uint64_t *)src)[i];
  }
}

static bool int_range(int dtype, wide_int *lo, wide_int *hi) {
  switch (dtype) {
  case NB_BOOL: *lo = 0, *hi = 1; return true;
  case NB_I4:
  case NB_I8:
  case NB_I16:
  case NB_I32:
  case NB_I64: *hi = ((wide_int)1 << (nb_dtype_bits(dtype) - 1)) - 1, *lo = -*hi - 1; return true;
  case NB_U4:
  case NB_U8:
  case NB_U16:
  case NB_U32:
  case NB_U64: *hi = ((wide_int)1 << nb_dtype_bits(dtype)) - 1, *lo = 0; return true;
  default: return false;
  }
}

static wide_int int_of_f64(double d) {
  if (d != d) return 0;
  if (fabs(d) >= 0x1p65) return d < 0 ? -((wide_int)1 << 65) : (wide_int)1 << 65;
  return (wide_int)rint(d);
}

/* Byte-wide and wider integers directly; two nibbles at a time. */
static void store_wide_int(char *dst, int dtype, int64_t i, wide_int v) {
  switch (nb_dtype_bits(dtype)) {
  case 4: {
    uint8_t *at = (uint8_t *)dst + i / 2, code = (uint8_t)(v & 15);
    *at = (uint8_t)(i % 2 ? *at | code << 4 : code);
    return;
  }
  case 8: ((uint8_t *)dst)[i] = (uint8_t)v; return;
  case 16: ((uint16_t *)(void *)dst)[i] = (uint16_t)v; return;
  case 32: ((uint32_t *)(void *)dst)[i] = (uint32_t)v; return;
  default: ((uint64_t *)(void *)dst)[i] = (uint64_t)v; return;
  }
}

static void wide_to_int(const cast_job *job, char *dst, const void *src, int64_t n) {
  wide_int lo = 0, hi = 0;
  int_range(job->to, &lo, &hi);
  for (int64_t i = 0; i < n; i++) {
    wide_int v;
    if (job->from == NB_F64) {
      double d = ((const double *)src)[i];
      v = job->to == NB_BOOL ? d != 0 : int_of_f64(d);
    } else {
      v = load_wide_int(src, job->from, i);
      if (job->to == NB_BOOL) v = v != 0;
    }
    store_wide_int(dst, job->to, i, v < lo ? lo : v > hi ? hi : v);
  }
}

/* An integer as f64 rounded to odd: see nb_f64_to_f32_odd. */
static double odd_f64(wide_int v) {
  wide_int mag = v < 0 ? -v : v, sticky = 0;
  int shift = 0;
  for (; mag >> shift >= ((wide_int)1 << 53); shift++) sticky |= mag >> shift & 1;
  double d = ldexp((double)((mag >> shift) | (sticky != 0)), shift);
  return v < 0 ? -d : d;
}

static void wide_to_float(const cast_job *job, char *dst, const void *src, int64_t n) {
  float block[BLOCK];
  int64_t to_bits = nb_dtype_bits(job->to);
  for (int64_t i = 0; i < n; i += BLOCK) {
    int64_t m = NB_MIN(BLOCK, n - i);
    for (int64_t j = 0; j < m; j++) {
      double d =
          job->from == NB_F64 ? ((const double *)src)[i + j] : odd_f64(load_wide_int(src, job->from, i + j));
      block[j] = job->to == NB_F32 ? (float)d : nb_f64_to_f32_odd(d);
    }
    if (job->limit > 0) clamp(block, block, m, job->limit);
    job->store(dst + i * to_bits / 8, block, m);
  }
}

static void cast_chunk(const cast_job *job, char *dst, const char *src, int64_t n) {
  wide_int lo, hi;
  if (job->load) cast_narrow(job, dst, src, n);
  else if (int_range(job->to, &lo, &hi)) wide_to_int(job, dst, src, n);
  else if (job->to == NB_F64) nb_load_f64((double *)(void *)dst, src, job->from, n);
  else wide_to_float(job, dst, src, n);
}

static cast_job job_of(int from, int to, int saturate) {
  float limit = saturate ? largest_finite(to) : 0;
  return (cast_job){
      .from = from, .to = to, .load = nb_load_of(from), .store = nb_store_of(to), .limit = limit};
}

void nb_cast_block(void *dst, int to, const void *src, int from, int64_t n) {
  cast_job job = job_of(from, to, 0);
  cast_chunk(&job, dst, src, n);
}

static int check_cast(const nb_tensor *dst, const nb_tensor *src) {
  char a[160], b[160];
  if (nb_tensor_numel(dst) != nb_tensor_numel(src))
    return nb_fail(NB_EINVAL, "cast: expected the %lld elements of %s, found %s",
                   (long long)nb_tensor_numel(src), nb_tensor_describe(src, a, sizeof a),
                   nb_tensor_describe(dst, b, sizeof b));
  if (dst->dtype == NB_C64 || src->dtype == NB_C64)
    return nb_fail(NB_EUNSUPPORTED, "cast: complex numbers (c64) have no cast; view them as f32 pairs");
  NB_TRY(nb_expect_here(src, "cast"));
  NB_TRY(nb_expect_here(dst, "cast"));
  return NB_OK;
}

int nb_cast(nb_tensor *dst, const nb_tensor *src, int saturate) {
  NB_TRY(check_cast(dst, src));
  if (dst->dtype == src->dtype && !saturate) return nb_tensor_copy(dst, src);
  cast_job job = job_of(src->dtype, dst->dtype, saturate);
  int64_t n = nb_tensor_numel(src), chunks = NB_CEIL(n, CHUNK);
  int64_t from_bits = nb_dtype_bits(src->dtype), to_bits = nb_dtype_bits(dst->dtype);
  bool stopped = false;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (chunks > 1) reduction(|| : stopped)
  for (int64_t c = 0; c < chunks; c++) {
    if (nb_stop_requested()) {
      stopped = true;
      continue;
    }
    int64_t at = c * CHUNK;
    cast_chunk(&job, (char *)dst->data + at * to_bits / 8, (const char *)src->data + at * from_bits / 8,
               NB_MIN(CHUNK, n - at));
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}
