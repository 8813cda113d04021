/* float.c - round to nearest onto small floats: FP8 (e4m3) under float scales by row,
 * group or block, NVFP4 (e2m1 under e4m3 scales of 16 and one of the tensor), MXFP4 and
 * MXFP8 (under powers of two). */
#include "float.h"

#include <math.h>

static const char what[] = "float quantization";

const nb_float_kernels nb_float_portable = NB_FLOAT_KERNELS;

/* Elements that are done at a time: they stay in the first-level cache as float32. */
enum { CHUNK = 2048 };

typedef struct job {
  const nb_float_options *o;
  const nb_float_kernels *kernels;
  nb_span_fn *span;
  nb_load_fn *load;
  nb_float_scales rule;
  bool e2m1;
  const float *e4m3;
  int64_t n, k, rows, columns, per_row, w_bytes;
  int w_dtype, s_dtype;
  int quotient;  /* the dtype that weights over scales are rounded to */
  bool multiply; /* by scales, which are reciprocals then */
  const char *w;
  uint8_t *codes;
  char *scales;
} job;

/* ---- scales -------------------------------------------------------------------- */

float nb_fp8_scale(float absmax, int w_dtype, int s_dtype, int arithmetic) {
  int dtype = arithmetic == NB_ARITHMETIC_DTYPE ? w_dtype : s_dtype;
  float s = nb_round_to(absmax / 448, dtype);
  if (s > 0) return s;
  return absmax > 0 && arithmetic == NB_ARITHMETIC_F32 ? nb_from_bits(1, dtype) : nb_epsilon(dtype);
}

/* In the weight's dtype as torch divides a number by a tensor: by the rounded reciprocal. */
float nb_nvfp4_global(float absmax, int w_dtype, int arithmetic) {
  float most = NB_MAX(absmax, 0x1p-126f), g = 448.0f * 6 / most;
  if (arithmetic == NB_ARITHMETIC_DTYPE)
    g = nb_round_to(nb_round_to(1 / most, w_dtype) * (448.0f * 6), w_dtype);
  return isinf(g) ? 1 : g;
}

/* An e8m0 byte is the exponent of the largest magnitude less that of the element's largest.
 * By compressed-tensors' rule magnitudes from 1.75 * 2^e up count as 2^(e+1); by vLLM's
 * those beyond the element's largest do (1.75 * 2^8, 1.5 * 2^2), so that nothing is clipped. */
static nb_float_scales rule_of(const nb_float_options *o, bool e2m1, int round_to) {
  return (nb_float_scales){.global = o->global,
                           .round_to = round_to,
                           .nudge = o->rule == NB_FLOAT_CT ? 0x00200000
                                    : e2m1                 ? 0x003fffff
                                                           : 0x001fffff,
                           .top = e2m1 ? 2 : 8};
}

/* 1/(x + (x==0)*1e8), each operation in float32. */
static float reciprocal(float x) { return 1 / (x == 0 ? 1e8f : x); }

/* An e4m3 byte under the global scale and what weights are multiplied with, as vLLM does it. */
static float vllm_scale(const job *j, float absmax, uint8_t *byte) {
  float global = j->o->global;
  *byte = nb_f32_to_small(NB_MIN(global * (absmax * (1.0f / 6)), 448), nb_small_of(NB_F8_E4M3));
  return reciprocal(j->e4m3[*byte] * reciprocal(global));
}

static float given_scale(const job *j, int64_t at) {
  if (j->s_dtype == NB_F8_E8M0) return nb_e8m0_to_f32(((const uint8_t *)j->scales)[at]);
  if (j->s_dtype == NB_F8_E4M3) return j->e4m3[((const uint8_t *)j->scales)[at]] / j->o->global;
  return nb_load(j->scales, at, j->s_dtype);
}

static float float_scale(const job *j, int64_t at, uint32_t bits) {
  float s = nb_fp8_scale(nb_f32_from_bits(bits), j->w_dtype, j->s_dtype, j->o->arithmetic);
  nb_store(j->scales, at, s, j->s_dtype);
  return s;
}

/* Scales at.. of `groups` groups, stored, and what their weights are divided by. False where
 * one can't be: a magnitude that isn't finite, a scale too large for its dtype. bits and
 * divisors have room for a multiple of 8. */
static bool make_scales(const job *j, int64_t at, int64_t groups, uint32_t *bits, float *divisors) {
  uint8_t bytes[CHUNK];
  bool whole = true, small = j->s_dtype == NB_F8_E4M3 || j->s_dtype == NB_F8_E8M0;
  for (int64_t g = 0; g < groups; g++) whole &= bits[g] < 0x7f800000u;
  if (!whole) return false;
  if (j->o->given || !small) {
    for (int64_t g = 0; g < groups; g++) {
      divisors[g] = j->o->given ? given_scale(j, at + g) : float_scale(j, at + g, bits[g]);
      whole &= !isinf(divisors[g]);
    }
    return whole;
  }
  if (j->s_dtype == NB_F8_E4M3 && j->o->rule == NB_FLOAT_VLLM) {
    for (int64_t g = 0; g < groups; g++)
      divisors[g] = vllm_scale(j, nb_f32_from_bits(bits[g]), (uint8_t *)j->scales + at + g);
    return true;
  }
  int64_t padded = NB_CEIL(groups, LANES) * LANES;
  for (int64_t g = groups; g < padded; g++) bits[g] = 0;
  if (j->s_dtype == NB_F8_E4M3) j->kernels->nvfp4(bytes, divisors, bits, padded, &j->rule);
  else j->kernels->mx(bytes, divisors, bits, padded, &j->rule);
  memcpy(j->scales + at, bytes, (size_t)groups);
  return true;
}

/* ---- rows ---------------------------------------------------------------------- */

static const char *weight_at(const job *j, int64_t i) { return j->w + i * j->w_bytes; }

/* Groups that fit a chunk: magnitudes, scales and codes while they are in the cache. */
static bool short_groups_row(const job *j, int64_t r, float *x) {
  uint32_t bits[CHUNK];
  float scale[CHUNK];
  int64_t chunk = CHUNK / j->columns * j->columns;
  for (int64_t at = 0; at < j->k; at += chunk) {
    int64_t len = NB_MIN(chunk, j->k - at), groups = NB_CEIL(len, j->columns);
    j->load(x, weight_at(j, r * j->k + at), len);
    j->kernels->absmax(bits, x, len, j->columns);
    if (!make_scales(j, r * j->per_row + at / j->columns, groups, bits, scale)) return false;
    j->kernels->encode(j->codes + r * j->k + at, x, len, j->columns, scale, j->multiply, j->quotient,
                       j->e2m1);
  }
  return true;
}

/* Magnitudes and scales of block row b, whatever its blocks' size. */
static bool block_scales(const job *j, int64_t b, float *scale) {
  int64_t end = NB_MIN(j->n, (b + 1) * j->rows);
  for (int64_t g = 0; g < j->per_row; g++) {
    nb_span span = {0, 0};
    int64_t at = g * j->columns, len = NB_MIN(j->columns, j->k - at);
    for (int64_t r = b * j->rows; r < end; r++)
      span = nb_span_max(span, j->span(weight_at(j, r * j->k + at), len));
    uint32_t bits[LANES] = {nb_f32_bits(nb_from_bits(NB_MAX(span.pos, span.neg), j->w_dtype))};
    float divisor[LANES];
    if (!make_scales(j, b * j->per_row + g, 1, bits, divisor)) return false;
    scale[g] = divisor[0];
  }
  return true;
}

static bool block_row(const job *j, int64_t b, float *x, float *scale) {
  if (!block_scales(j, b, scale)) return false;
  for (int64_t r = b * j->rows; r < NB_MIN(j->n, (b + 1) * j->rows); r++)
    for (int64_t at = 0; at < j->k;) {
      int64_t g = at / j->columns, end = NB_MIN(j->k, (g + 1) * j->columns), len = NB_MIN(end - at, CHUNK);
      j->load(x, weight_at(j, r * j->k + at), len);
      j->kernels->encode(j->codes + r * j->k + at, x, len, len, &scale[g], j->multiply, j->quotient, j->e2m1);
      at += len;
    }
  return true;
}

int nb_float_quantize_fail(const nb_tensor *w, int s_dtype) {
  int64_t k = w->ndim > 0 ? NB_MAX(w->shape[w->ndim - 1], 1) : 1;
  for (int64_t i = 0; i < nb_tensor_numel(w); i++) {
    float v = nb_load(w->data, i, w->dtype);
    if (isfinite(v)) continue;
    return nb_fail(NB_EFORMAT,
                   "%s: the weight has %s in row %lld, column %lld (counted from 0); expected finite values",
                   what, isnan(v) ? "NaN" : "Inf", (long long)(i / k), (long long)(i % k));
  }
  return nb_fail(NB_EUNSUPPORTED, "%s: a scale is too large for %s; store the scales as bf16 or f32", what,
                 nb_dtype_name(s_dtype));
}

static int run(const job *j, const nb_tensor *w) {
  bool short_groups = j->rows == 1 && j->columns <= CHUNK;
  /* a task: whole rows of blocks */
  int64_t step = NB_MAX(1, 65536 / NB_MAX(j->k * j->rows, 1)), blocks = NB_CEIL(j->n, j->rows);
  int64_t tasks = NB_CEIL(blocks, step);
  int stopped = 0, no_memory = 0, bad = 0;
#pragma omp parallel num_threads(nb_threads()) if (tasks > 1) reduction(| : stopped, no_memory, bad)
  {
    float x[CHUNK];
    float *scale = nb_alloc(short_groups ? 1 : j->per_row, (int64_t)sizeof *scale);
    no_memory |= !scale;
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tasks; t++) {
      if (nb_stop_requested()) stopped |= 1;
      if (stopped || bad || !scale) continue;
      for (int64_t b = t * step; b < NB_MIN(blocks, (t + 1) * step); b++)
        bad |= !(short_groups ? short_groups_row(j, b, x) : block_row(j, b, x, scale));
    }
    free(scale);
  }
  if (no_memory) return nb_fail(NB_ENOMEM, "%s: out of memory", what);
  if (stopped) return nb_fail_stopped();
  return bad ? nb_float_quantize_fail(w, j->s_dtype) : NB_OK;
}

/* ---- checks -------------------------------------------------------------------- */

static bool is_float(int dtype) { return dtype == NB_F32 || dtype == NB_BF16 || dtype == NB_F16; }

int nb_float_quantize_check(const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *w,
                            const nb_float_options *o) {
  NB_TRY(nb_expect(w, "float quantization: weight", -1, 2, NB_SHAPE(-1, -1)));
  if (!is_float(w->dtype))
    return nb_fail(NB_EINVAL, "%s: weight: expected f32, bf16 or f16, found %s", what,
                   nb_dtype_name(w->dtype));
  if (codes->dtype != NB_F8_E4M3 && codes->dtype != NB_U8)
    return nb_fail(NB_EINVAL, "%s: codes: expected f8_e4m3, or u8 for e2m1 codes one a byte, found %s", what,
                   nb_dtype_name(codes->dtype));
  NB_TRY(nb_expect(codes, "float quantization: codes", -1, 2, w->shape));
  if (o->rows < 1 || o->columns < 1)
    return nb_fail(NB_EINVAL, "%s: blocks of %lldx%lld, expected at least 1x1", what, (long long)o->rows,
                   (long long)o->columns);
  NB_TRY(nb_expect(scales, "float quantization: scales", -1, 2,
                   NB_SHAPE(NB_CEIL(w->shape[0], o->rows), NB_CEIL(w->shape[1], o->columns))));
  bool e2m1 = codes->dtype == NB_U8, e4m3_scales = scales->dtype == NB_F8_E4M3;
  if (e2m1 ? !e4m3_scales && scales->dtype != NB_F8_E8M0
           : !is_float(scales->dtype) && scales->dtype != NB_F8_E8M0)
    return nb_fail(NB_EINVAL, "%s: %s codes under scales of %s; expected %s", what, e2m1 ? "e2m1" : "e4m3",
                   nb_dtype_name(scales->dtype), e2m1 ? "f8_e4m3 or f8_e8m0" : "f32, bf16, f16 or f8_e8m0");
  if (e4m3_scales && !(o->global > 0 && isfinite(o->global)))
    return nb_fail(NB_EINVAL, "%s: the global scale is %g, expected a finite number above 0", what,
                   (double)o->global);
  if (o->arithmetic != NB_ARITHMETIC_F32 && o->arithmetic != NB_ARITHMETIC_DTYPE)
    return nb_fail(NB_EINVAL, "%s: unknown arithmetic %d, expected float32 or dtype", what, o->arithmetic);
  if (o->rule == NB_FLOAT_VLLM && is_float(scales->dtype))
    return nb_fail(NB_EINVAL, "%s: vLLM's rule is for f8_e4m3 and f8_e8m0 scales, found %s", what,
                   nb_dtype_name(scales->dtype));
  if (o->arithmetic == NB_ARITHMETIC_DTYPE && is_float(scales->dtype) && scales->dtype != w->dtype)
    return nb_fail(
        NB_EINVAL,
        "%s: arithmetic in the weight's dtype stores scales in it too: expected %s scales, found %s", what,
        nb_dtype_name(w->dtype), nb_dtype_name(scales->dtype));
  return NB_OK;
}

int nb_float_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *w, const nb_float_options *o) {
  NB_TRY(nb_float_quantize_check(codes, scales, w, o));
  if (nb_tensor_numel(w) == 0) return NB_OK;
  bool in_dtype = o->arithmetic == NB_ARITHMETIC_DTYPE;
  job j = {.o = o,
           .kernels = nb_cpu() & NB_CPU_AVX2 ? &nb_float_avx2 : &nb_float_portable,
           .span = nb_group_kernels_of(w->dtype, o->arithmetic).span,
           .load = nb_load_of(w->dtype),
           .rule = rule_of(o, codes->dtype == NB_U8, in_dtype ? w->dtype : NB_F32),
           .e2m1 = codes->dtype == NB_U8,
           .e4m3 = nb_code_values(NB_F8_E4M3),
           .n = w->shape[0],
           .k = w->shape[1],
           .rows = o->rows,
           .columns = o->columns,
           .per_row = NB_CEIL(w->shape[1], o->columns),
           .w_bytes = nb_elem_bytes(w->dtype),
           .w_dtype = w->dtype,
           .s_dtype = scales->dtype,
           .quotient = in_dtype && is_float(scales->dtype) ? w->dtype : NB_F32,
           .multiply = o->rule == NB_FLOAT_VLLM && scales->dtype == NB_F8_E4M3,
           .w = w->data,
           .codes = codes->data,
           .scales = scales->data};
  return run(&j, w);
}

int nb_absmax(float *out, const nb_tensor *w) {
  if (!is_float(w->dtype))
    return nb_fail(NB_EINVAL, "absmax: expected f32, bf16 or f16, found %s", nb_dtype_name(w->dtype));
  nb_span_fn *span = nb_group_kernels_of(w->dtype, NB_ARITHMETIC_F32).span;
  int64_t numel = nb_tensor_numel(w), block = 65536, blocks = NB_CEIL(numel, block);
  uint32_t most = 0;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (blocks > 1) reduction(max \
                                                                                              : most) \
    reduction(| \
              : stopped)
  for (int64_t b = 0; b < blocks; b++) {
    if (nb_stop_requested()) stopped |= 1;
    if (stopped) continue;
    nb_span s =
        span((const char *)w->data + b * block * nb_elem_bytes(w->dtype), NB_MIN(block, numel - b * block));
    most = NB_MAX(most, NB_MAX(s.pos, s.neg));
  }
  if (stopped) return nb_fail_stopped();
  *out = nb_from_bits(most, w->dtype);
  if (most < nb_inf_bits(w->dtype)) return NB_OK;
  return nb_float_quantize_fail(w, w->dtype);
}
