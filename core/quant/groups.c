/* groups.c - grids and checks that the integer methods share, and the portable
 * inner loops. */
#include "groups.h"

#include <math.h>
#include <stdio.h>

float nb_round_scale(float x, int dtype) { return nb_round_to(x, dtype); }

/* ---- grids ---------------------------------------------------------------- */

/* What the largest magnitude is divided by. */
static float raw_scale(float pos, float neg, int bits, int range) {
  float qmax = (float)((1 << (bits - 1)) - 1), qmin = (float)(1 << (bits - 1));
  if (range == NB_RANGE_TIGHT) return NB_MAX(pos / qmax, neg / qmin);
  return NB_MAX(pos, neg) / (range == NB_RANGE_NARROW ? qmax : (qmax + qmin) / 2);
}

/* float32: everything in float32; the scale is rounded to its stored dtype first
 * and everything after uses the stored scale. */
static bool grid_float32(nb_grid *g, float pos, float neg, const nb_rtn_options *o, int s_dtype) {
  int levels = (1 << o->bits) - 1, half = 1 << (o->bits - 1);
  float raw = o->symmetric ? raw_scale(pos, neg, o->bits, o->range) : (pos + neg) / (float)levels;
  float s = nb_round_to(raw, s_dtype);
  if (isinf(s)) return false;
  if (s == 0) s = pos == 0 && neg == 0 ? nb_epsilon(s_dtype) : nb_from_bits(1, s_dtype);
  int zero = half;
  if (!o->symmetric) {
    float z = NB_MIN(neg / s, (float)levels);
    zero = (int)((z + 0x1.8p23f) - 0x1.8p23f); /* half to even, without a call */
  }
  *g = (nb_grid){.scale = s, .lo = (float)-zero, .hi = (float)(levels - zero), .offset = zero, .zero = zero};
  return true;
}

/* dtype: each operation rounded to the weights' dtype; a scale of zero becomes the
 * dtype's eps, after the zero-point was found with it. */
static bool grid_dtype(nb_grid *g, float pos, float neg, const nb_rtn_options *o, int dtype) {
  int levels = (1 << o->bits) - 1, half = 1 << (o->bits - 1);
  float raw =
      o->symmetric ? raw_scale(pos, neg, o->bits, o->range) : nb_round_to(pos + neg, dtype) / (float)levels;
  float s = nb_round_to(raw, dtype), z = 0; /* z: the signed zero-point; 0 / 0 counts as 0 */
  if (isinf(s)) return false;
  bool tight = o->range == NB_RANGE_TIGHT;
  if (!o->symmetric && (neg > 0 || s > 0)) {
    float down = nb_round_to(neg / s, dtype); /* infinite where s is 0: ends at the upper bound */
    if (tight) down = rintf(NB_MIN(down, (float)levels));
    z = nb_round_to(down - (float)half, dtype);
    z = rintf(NB_MIN(NB_MAX(z, (float)-half), (float)(half - 1)));
  }
  int zero = (int)z + half;
  *g = (nb_grid){.scale = s > 0 ? s : nb_epsilon(dtype),
                 .add = z,
                 .lo = (float)-half,
                 .hi = (float)(half - 1),
                 .offset = half,
                 .zero = zero};
  if (tight) { /* the zero-point is added to the rounded value */
    g->add = 0;
    g->lo = (float)-zero;
    g->hi = (float)(levels - zero);
    g->offset = zero;
  }
  return true;
}

bool nb_grid_make(nb_grid *out, float pos, float neg, const nb_rtn_options *o, int w_dtype, int s_dtype) {
  if (o->arithmetic == NB_ARITHMETIC_DTYPE) return grid_dtype(out, pos, neg, o, w_dtype);
  return grid_float32(out, pos, neg, o, s_dtype);
}

/* ---- checks --------------------------------------------------------------- */

static bool is_float(int dtype) { return dtype == NB_F32 || dtype == NB_BF16 || dtype == NB_F16; }

static int check_float(const nb_tensor *t, const char *what, const char *name) {
  if (is_float(t->dtype)) return NB_OK;
  char found[160];
  return nb_fail(NB_EINVAL, "%s: %s: expected f32, bf16 or f16, found %s", what, name,
                 nb_tensor_describe(t, found, sizeof found));
}

int nb_groups_check(nb_groups *q, const char *what, const nb_tensor *codes, const nb_tensor *scales,
                    const nb_tensor *zeros, const nb_tensor *w, int bits, int symmetric, int64_t group) {
  char name[96];
  if (bits < 2 || bits > 8) return nb_fail(NB_EUNSUPPORTED, "%s: %d bits, expected 2 to 8", what, bits);
  NB_TRY(check_float(w, what, "weight"));
  NB_TRY(check_float(scales, what, "scales"));
  snprintf(name, sizeof name, "%s: weight", what);
  NB_TRY(nb_expect(w, name, -1, 2, NB_SHAPE(-1, -1)));
  int64_t n = w->shape[0], k = w->shape[1], per_row;
  if (group < -1)
    return nb_fail(NB_EINVAL,
                   "%s: group size %lld, expected a size, -1 (the whole row) or 0 (the whole tensor)", what,
                   (long long)group);
  bool per_tensor = group == 0;
  if (group <= 0) group = k;
  if (group > 0 && k % group)
    return nb_fail(NB_EINVAL,
                   "%s: K = %lld is not a multiple of the group size %lld; choose a group size that "
                   "divides K, or -1 for one scale a row",
                   what, (long long)k, (long long)group);
  per_row = k ? k / group : 0;
  snprintf(name, sizeof name, "%s: codes", what);
  NB_TRY(nb_expect(codes, name, NB_U8, 2, NB_SHAPE(n, k)));
  int64_t sg = per_tensor ? 1 : per_row;
  snprintf(name, sizeof name, "%s: scales", what);
  NB_TRY(nb_expect(scales, name, -1, 2, NB_SHAPE(n, sg)));
  snprintf(name, sizeof name, "%s: zeros", what);
  if (!symmetric && !zeros)
    return nb_fail(NB_EINVAL, "%s: an asymmetric grid needs a tensor u8 [%lldx%lld] for its zero-points",
                   what, (long long)n, (long long)sg);
  if (symmetric && zeros)
    return nb_fail(NB_EINVAL, "%s: a symmetric grid has no zero-points; pass none", what);
  if (zeros) NB_TRY(nb_expect(zeros, name, NB_U8, 2, NB_SHAPE(n, sg)));
  *q = (nb_groups){.n = n,
                   .k = k,
                   .group = group,
                   .per_row = per_row,
                   .w_dtype = w->dtype,
                   .s_dtype = scales->dtype,
                   .bits = bits,
                   .symmetric = symmetric != 0,
                   .per_tensor = per_tensor,
                   .w = w->data,
                   .codes = codes->data,
                   .zeros = zeros ? zeros->data : NULL,
                   .scales = scales->data};
  return NB_OK;
}

int nb_groups_fail(const nb_groups *q, const char *what, int64_t index) {
  int64_t row = q->per_tensor ? 0 : index / q->per_row;
  int64_t first = q->per_tensor ? 0 : index % q->per_row * q->group;
  int64_t len = q->per_tensor ? q->n * q->k : q->group, at = row * q->k + first;
  for (int64_t i = at; i < at + len; i++) {
    float v = nb_load(q->w, i, q->w_dtype);
    if (isfinite(v)) continue;
    const char *found = isnan(v) ? "NaN" : "Inf";
    return nb_fail(NB_EFORMAT,
                   "%s: the weight has %s in row %lld, column %lld (counted from 0); expected finite values",
                   what, found, (long long)(i / q->k), (long long)(i % q->k));
  }
  const char *s_dtype = nb_dtype_name(q->s_dtype);
  long long last = (long long)(first + NB_MIN(len, q->k) - 1);
  const char *cure = "the values span more than float32 holds";
  if (q->s_dtype == NB_F16) cure = "store the scales as bf16 or f32";
  return nb_fail(NB_EUNSUPPORTED,
                 "%s: the scale of row %lld, columns %lld to %lld (counted from 0) is too large for %s; %s",
                 what, (long long)row, (long long)first, last, s_dtype, cure);
}

int nb_expect_groups(const nb_tensor *g_idx, const char *what, int64_t k, int64_t groups) {
  char name[64];
  snprintf(name, sizeof name, "%s: g_idx", what);
  NB_TRY(nb_expect(g_idx, name, NB_I32, 1, NB_SHAPE(k)));
  const int32_t *p = g_idx->data;
  for (int64_t i = 0; i < k; i++)
    if (p[i] < 0 || p[i] >= groups)
      return nb_fail(NB_EFORMAT, "%s: g_idx[%lld] is %d, expected 0 to %lld, the groups that the scales have",
                     what, (long long)i, p[i], (long long)groups - 1);
  return NB_OK;
}

/* ---- portable inner loops ------------------------------------------------- */

static nb_span span16(const void *w, int64_t len) { return nb_span16(w, len); }
static nb_span span32(const void *w, int64_t len) { return nb_span32(w, len); }

NB_GROUP_KERNELS(portable, nb_codes_scalar)

nb_group_kernels nb_group_kernels_of(int dtype, int arithmetic) {
  return nb_cpu() & NB_CPU_AVX2 ? nb_group_kernels_avx2(dtype, arithmetic) : portable(dtype, arithmetic);
}
