/* activations.c - activations as a quantized layer sees them: quantized by row, group or
 * tensor and dequantized again, all in float32, as compressed-tensors' fake quantization
 * computes it (its own order of operations, not that of any kernel: act_quant.c has those). */
#include "activations.h"

static const char what[] = "activations";

const nb_act_kernels nb_act_portable = {absmax, range, apply};

static const nb_act_kernels *kernels_here(void) {
  return (nb_cpu() & NB_CPU_AVX2) ? &nb_act_avx2 : &nb_act_portable;
}

/* ---- the grid ------------------------------------------------------------------ */

static int make_grid(nb_act_grid *g, const nb_act_options *o) {
  *g = (nb_act_grid){.is_float = o->is_float != 0};
  if (!o->is_float) {
    if (o->bits < 2 || o->bits > 8)
      return nb_fail(NB_EINVAL, "%s: integers of %d bits, expected 2 to 8", what, o->bits);
    g->min = -(float)(1 << (o->bits - 1));
    g->max = -g->min - 1;
    return NB_OK;
  }
  const nb_small_float *s = o->bits == 4 ? nb_small_of(NB_F4) : o->bits == 8 ? nb_small_of(NB_F8_E4M3) : NULL;
  if (!s) return nb_fail(NB_EINVAL, "%s: floats of %d bits, expected 4 (f4) or 8 (f8_e4m3)", what, o->bits);
  if (!o->symmetric) return nb_fail(NB_EINVAL, "%s: float elements have no zero-point", what);
  g->shift = 23 - s->mbits;
  g->normal = (uint32_t)(128 - s->bias) << 23;
  g->magic = nb_f32_from_bits((uint32_t)(128 + g->shift - s->bias) << 23);
  g->max = s->max;
  g->min = -s->max;
  return NB_OK;
}

/* ---- scales -------------------------------------------------------------------- */

typedef struct job {
  const nb_act_options *o;
  const nb_act_kernels *kernels;
  nb_act_grid grid;
  const nb_small_float *small; /* e4m3, of scales, and its values */
  const float *e4m3;
} job;

/* What one scale is made of: the largest magnitude, or smallest and largest. */
typedef struct extent {
  uint32_t absmax;
  int32_t lohi[2];
} extent;

static void widen(extent *e, const job *j, const float *x, int64_t n) {
  if (j->o->symmetric) {
    uint32_t a = j->kernels->absmax(x, n);
    e->absmax = NB_MAX(e->absmax, a);
  } else {
    j->kernels->range(e->lohi, x, n);
  }
}

static float ordered(int32_t s) { return nb_f32_from_bits((uint32_t)(s ^ ((s >> 31) & 0x7fffffff))); }

static float to_e4m3(float f, const job *j) {
  return j->e4m3[nb_f32_to_small(f < -448 ? -448 : f > 448 ? 448 : f, j->small)];
}

static float symmetric_scale(const job *j, uint32_t absmax_bits) {
  const nb_act_options *o = j->o;
  float max = nb_f32_from_bits(absmax_bits), s;
  if (absmax_bits >= 0x7f800000u) return NAN; /* what shares the scale is NaN */
  if (o->scale_dtype == NB_F8_E8M0) {
    /* As nb_mx_scales: from 1.75 * 2^e up, the next power of two. */
    int e = (int)((absmax_bits + 0x00200000u) >> 23) - (o->bits == 4 ? 2 : 8);
    return nb_e8m0_to_f32((uint8_t)NB_MAX(e, 0));
  }
  s = max / ((j->grid.max - j->grid.min) / 2);
  if (o->scale_dtype == NB_F8_E4M3) {
    s = to_e4m3(o->global * s, j);
    return (s == 0 ? 0.125f : s) / o->global;
  }
  return s == 0 ? 0x1p-23f : s;
}

static void scale_of(float *scale, float *zero, const job *j, const extent *e) {
  *zero = 0;
  if (j->o->symmetric) {
    *scale = symmetric_scale(j, e->absmax);
    return;
  }
  float lo = ordered(e->lohi[0]), hi = ordered(e->lohi[1]), min = j->grid.min, max = j->grid.max;
  float s = (hi - lo) / (max - min), z = min - lo / s;
  if (!(fabsf(lo) < INFINITY && fabsf(hi) < INFINITY)) {
    *scale = NAN;
    return;
  }
  /* 0 / 0 where all is 0: any zero-point serves, the peer's is 0. */
  *zero = z != z ? 0 : (float)(int)rintf(z < min ? min : z > max ? max : z); /* an int has no -0 */
  *scale = s == 0 ? 0x1p-23f : s;
}

/* ---- rows ---------------------------------------------------------------------- */

static void round_row(float *out, const float *x, int64_t n, int dtype) {
  if (dtype == NB_BF16)
    for (int64_t i = 0; i < n; i++) out[i] = nb_bf16_to_f32(nb_f32_to_bf16(x[i]));
  else
    for (int64_t i = 0; i < n; i++) out[i] = nb_f16_to_f32(nb_f32_to_f16(x[i]));
}

static void quantize_dynamic(const job *j, float *out, const float *x, int64_t n) {
  float scale, zero;
  extent e = {0};
  widen(&e, j, x, n);
  scale_of(&scale, &zero, j, &e);
  j->kernels->apply(out, x, n, scale, zero, &j->grid);
}

/* One scale for each `span` rows: their extents first. */
static int quantize_tensors(const job *j, float *out, const float *x, int64_t m, int64_t k) {
  int64_t span = j->o->span > 0 ? j->o->span : m, spans = NB_CEIL(m, span);
  extent *rows = nb_alloc(m, sizeof *rows);
  float *scales = nb_alloc(2 * spans, sizeof *scales);
  if (!rows || !scales) {
    free(rows);
    free(scales);
    return NB_ENOMEM;
  }
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 16384)
  for (int64_t r = 0; r < m; r++) widen(&rows[r], j, x + r * k, k);
  for (int64_t s = 0; s < spans; s++) {
    extent e = {0};
    for (int64_t r = s * span; r < NB_MIN(m, (s + 1) * span); r++) {
      e.absmax = NB_MAX(e.absmax, rows[r].absmax);
      e.lohi[0] = NB_MIN(e.lohi[0], rows[r].lohi[0]);
      e.lohi[1] = NB_MAX(e.lohi[1], rows[r].lohi[1]);
    }
    scale_of(&scales[2 * s], &scales[2 * s + 1], j, &e);
  }
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 16384)
  for (int64_t r = 0; r < m; r++) {
    const float *s = scales + 2 * (r / span);
    j->kernels->apply(out + r * k, x + r * k, k, s[0], s[1], &j->grid);
  }
  free(rows);
  free(scales);
  return NB_OK;
}

static int check(const nb_act_grid *g, const nb_act_options *o, int64_t k) {
  if (o->dtype != NB_F32 && o->dtype != NB_BF16 && o->dtype != NB_F16)
    return nb_fail(NB_EINVAL, "%s: rounded first to %s, expected f32, bf16 or f16", what,
                   nb_dtype_name(o->dtype) ? nb_dtype_name(o->dtype) : "an unknown dtype");
  if (o->group > 0 && k % o->group)
    return nb_fail(NB_EINVAL, "%s: %lld columns are not a multiple of the group size %lld", what,
                   (long long)k, (long long)o->group);
  if (!o->dynamic) {
    if (!(o->scale > 0 && o->scale < INFINITY))
      return nb_fail(NB_EFORMAT, "%s: the static scale is %g, expected a finite number above 0", what,
                     (double)o->scale);
    if (o->zero_point != 0 && (o->symmetric || !(o->zero_point >= g->min && o->zero_point <= g->max)))
      return nb_fail(NB_EFORMAT, "%s: the zero-point %g does not fit %s integers of %d bits", what,
                     (double)o->zero_point, o->symmetric ? "symmetric" : "asymmetric", o->bits);
    return NB_OK;
  }
  if (o->scale_dtype != NB_F32 &&
      !(o->is_float && (o->scale_dtype == NB_F8_E4M3 || o->scale_dtype == NB_F8_E8M0)))
    return nb_fail(NB_EINVAL, "%s: scales of %s, expected f32, or f8_e4m3 or f8_e8m0 for float elements",
                   what, nb_dtype_name(o->scale_dtype) ? nb_dtype_name(o->scale_dtype) : "an unknown dtype");
  if (o->scale_dtype == NB_F8_E4M3 && !(o->global > 0 && o->global < INFINITY))
    return nb_fail(NB_EFORMAT, "%s: the global scale is %g, expected a finite number above 0", what,
                   (double)o->global);
  return NB_OK;
}

int nb_act_fake_quant_check(nb_act_grid *grid, const nb_tensor *out, const nb_tensor *x,
                            const nb_act_options *o) {
  NB_TRY(nb_expect(x, what, NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(out, what, NB_F32, 2, x->shape));
  NB_TRY(make_grid(grid, o));
  return check(grid, o, x->shape[1]);
}

int nb_act_fake_quant(nb_tensor *out, const nb_tensor *x, const nb_act_options *o) {
  job j = {.o = o, .small = nb_small_of(NB_F8_E4M3), .e4m3 = nb_code_values(NB_F8_E4M3)};
  j.kernels = kernels_here();
  NB_TRY(nb_act_fake_quant_check(&j.grid, out, x, o));
  int64_t m = x->shape[0], k = x->shape[1];
  if (m == 0 || k == 0) return NB_OK;
  float *to = out->data;
  const float *from = x->data;
  if (o->dtype != NB_F32) {
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 16384)
    for (int64_t r = 0; r < m; r++) round_row(to + r * k, from + r * k, k, o->dtype);
    from = to;
  }
  if (o->dynamic && o->group == 0) return quantize_tensors(&j, to, from, m, k);
  int64_t width = o->group > 0 ? o->group : k;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 16384)
  for (int64_t r = 0; r < m; r++)
    for (int64_t c = 0; c < k; c += width) {
      int64_t at = r * k + c;
      if (o->dynamic) quantize_dynamic(&j, to + at, from + at, width);
      else j.kernels->apply(to + at, from + at, width, o->scale, o->zero_point, &j.grid);
    }
  return NB_OK;
}

/* ---- codes ---------------------------------------------------------------------- */

int nb_act_quantize_check(nb_act_grid *grid, const nb_tensor *codes, const nb_tensor *scales,
                          const nb_tensor *x, const nb_act_options *o) {
  nb_tensor floats = *x;
  NB_TRY(nb_act_fake_quant_check(grid, &floats, x, o));
  if (o->group > 0 || !o->symmetric || (o->is_float && o->bits != 8))
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: codes are integers or f8_e4m3 without zero-points, and a scale a row or a tensor; "
                   "found %s of %d bits, %ssymmetric, groups of %lld",
                   what, o->is_float ? "floats" : "integers", o->bits, o->symmetric ? "" : "not ",
                   (long long)o->group);
  NB_TRY(nb_expect(codes, what, o->is_float ? NB_F8_E4M3 : NB_I8, 2, x->shape));
  return nb_expect(scales, what, NB_F32, 2, NB_SHAPE(x->shape[0], 1));
}

/* A row's codes as floats in x, then as bytes. NaN, which makes the row's scale one: 0. */
static void quantize_row(const job *j, void *codes, float *x, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) x[i] /= scale;
  j->kernels->apply(x, x, n, 1, 0, &j->grid);
  for (int64_t i = 0; i < n; i++)
    if (j->o->is_float) ((uint8_t *)codes)[i] = nb_f32_to_small(x[i] == x[i] ? x[i] : 0, j->small);
    else ((int8_t *)codes)[i] = (int8_t)(x[i] == x[i] ? x[i] : 0);
}

int nb_act_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *x, const nb_act_options *o) {
  job j = {.o = o, .kernels = kernels_here(), .small = nb_small_of(NB_F8_E4M3)};
  NB_TRY(nb_act_quantize_check(&j.grid, codes, scales, x, o));
  int64_t m = x->shape[0], k = x->shape[1], span = o->group < 0 ? 1 : o->span > 0 ? o->span : m;
  if (m == 0 || k == 0) return NB_OK;
  float *values = nb_alloc(m * k, sizeof *values);
  if (!values) return NB_ENOMEM;
  memcpy(values, x->data, (size_t)(m * k) * sizeof *values);
  if (o->dtype != NB_F32) round_row(values, values, m * k, o->dtype);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 16384)
  for (int64_t first = 0; first < m; first += span) {
    const int64_t end = NB_MIN(m, first + span);
    extent all = {0};
    float scale = o->scale, zero;
    if (o->dynamic) {
      for (int64_t r = first; r < end; r++) widen(&all, &j, values + r * k, k);
      scale_of(&scale, &zero, &j, &all);
    }
    for (int64_t r = first; r < end; r++) {
      extent e = all; /* of this row, where it is alone */
      if (!o->dynamic || span > 1) e = (extent){0}, widen(&e, &j, values + r * k, k);
      ((float *)scales->data)[r] = e.absmax > 0x7f800000u ? NAN : scale;
      quantize_row(&j, (uint8_t *)codes->data + r * k, values + r * k, k, scale);
    }
  }
  free(values);
  return NB_OK;
}

int nb_act_extent(float lohi[2], const nb_tensor *x) {
  NB_TRY(nb_expect(x, what, NB_F32, 2, NB_SHAPE(-1, -1)));
  int64_t m = x->shape[0], k = x->shape[1];
  const nb_act_kernels *kernels = kernels_here();
  int32_t lo = INT32_MAX, hi = INT32_MIN;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * k > 16384) reduction(min \
                                                                                                 : lo) \
    reduction(max \
              : hi)
  for (int64_t r = 0; r < m; r++) {
    int32_t both[2] = {lo, hi};
    kernels->range(both, (const float *)x->data + r * k, k);
    lo = both[0];
    hi = both[1];
  }
  if (m == 0 || k == 0) return NB_OK;
  if (!(fabsf(ordered(lo)) < INFINITY && fabsf(ordered(hi)) < INFINITY))
    return nb_fail(NB_EFORMAT, "%s: they hold NaN or infinite values", what);
  lohi[0] = fminf(lohi[0], ordered(lo));
  lohi[1] = fmaxf(lohi[1], ordered(hi));
  return NB_OK;
}
