/* given_grid.c - codes of weights on a grid that is given: scales and zero-points
 * come from a quantizer that leaves its result as floats, as AutoAWQ, GPTQModel
 * and AutoRound do before they pack. */
#include "groups.h"

#include <math.h>

static const char what[] = "grid_codes";

typedef struct given {
  const nb_tensor *scales, *zeros;
  int bits;
} given;

static bool is_float(const nb_tensor *t) {
  return t->dtype == NB_F32 || t->dtype == NB_BF16 || t->dtype == NB_F16;
}

static int expect_float(const nb_tensor *t, const char *name, int64_t rows, int64_t cols) {
  NB_TRY(nb_expect(t, name, -1, 2, NB_SHAPE(rows, cols)));
  if (is_float(t)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: expected f32, bf16 or f16, found %s", name, nb_dtype_name(t->dtype));
}

static float zero_at(const given *g, int64_t i) {
  if (!g->zeros) return (float)(1 << (g->bits - 1));
  if (g->zeros->dtype == NB_U8) return (float)((const uint8_t *)g->zeros->data)[i];
  return nb_load(g->zeros->data, i, g->zeros->dtype);
}

/* clamp(round((w + s*z) / s)), each operation in float32: GPTQModel's own order. NaN
 * where the grid has no place for w. */
static float code_of(const given *g, float w, int64_t at) {
  float s = nb_load(g->scales->data, at, g->scales->dtype);
  float sz = s * zero_at(g, at);
  float u = rintf((w + sz) / s), top = (float)((1 << g->bits) - 1);
  if (isnan(u)) return u;
  return u < 0 ? 0 : u > top ? top : u;
}

int nb_grid_codes(nb_tensor *codes, const nb_tensor *w, const nb_tensor *scales, const nb_tensor *zeros,
                  const nb_tensor *g_idx, int bits) {
  if (bits < 1 || bits > 8) return nb_fail(NB_EINVAL, "%s: %d bits, expected 1 to 8", what, bits);
  NB_TRY(nb_expect(codes, "grid_codes: codes", NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t n = codes->shape[0], k = codes->shape[1];
  NB_TRY(expect_float(w, "grid_codes: weight", n, k));
  NB_TRY(expect_float(scales, "grid_codes: scales", n, -1));
  int64_t groups = scales->shape[1];
  if (zeros && zeros->dtype == NB_U8)
    NB_TRY(nb_expect(zeros, "grid_codes: zeros", NB_U8, 2, NB_SHAPE(n, groups)));
  else if (zeros) NB_TRY(expect_float(zeros, "grid_codes: zeros", n, groups));
  if (g_idx) NB_TRY(nb_expect_groups(g_idx, what, k, groups));
  else if (groups == 0 ? k > 0 : k % groups)
    return nb_fail(NB_EINVAL, "%s: K = %lld does not divide into the %lld groups of the scales", what,
                   (long long)k, (long long)groups);
  given grid = {scales, zeros, bits};
  int64_t group = groups ? k / groups : 1, bad = -1;
  const int32_t *idx = g_idx ? g_idx->data : NULL;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (n * k > 1 << 14) \
    reduction(| \
              : stopped) reduction(max \
                                   : bad)
  for (int64_t r = 0; r < n; r++) {
    if (nb_stop_requested()) stopped = 1;
    for (int64_t i = 0; i < k && !stopped; i++) {
      float u =
          code_of(&grid, nb_load(w->data, r * k + i, w->dtype), r * groups + (idx ? idx[i] : i / group));
      if (isnan(u)) bad = NB_MAX(bad, r * k + i);
      else ((uint8_t *)codes->data)[r * k + i] = (uint8_t)u;
    }
  }
  if (stopped) return nb_fail_stopped();
  if (bad >= 0)
    return nb_fail(NB_EFORMAT,
                   "%s: the weight at row %lld, column %lld (from 0) has no code: it, its scale or its "
                   "zero-point is NaN, or the scale is 0",
                   what, (long long)(bad / k), (long long)(bad % k));
  return NB_OK;
}
