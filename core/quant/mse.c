/* mse.c - clipping ranges by search: for each group the shrunken range whose
 * codes have the least sum of |w - dequantized|^norm. Round to nearest's own
 * range is among the candidates, so the result is never worse than it. */
#include "mse.h"

#include <math.h>

static const char what[] = "mse";

static double error_portable(const float *x, int64_t len, const nb_mse_candidate *c) {
  double sum = 0;
  float inverse = 1.0f / c->scale;
  for (int64_t b = 0; b < len; b += NB_MSE_BLOCK) {
    float lane[8] = {0};
    for (int64_t i = b; i < NB_MIN(len, b + NB_MSE_BLOCK); i++) {
      float v = c->exact ? x[i] / c->scale : x[i] * inverse;
      v = v < c->lo ? c->lo : v;
      v = v > c->hi ? c->hi : v;
      v = (v + 0x1.8p23f) - 0x1.8p23f;
      lane[i % 8] += nb_mse_pow(fabsf(x[i] - v * c->scale), c->norm);
    }
    for (int j = 0; j < 4; j++) lane[j] += lane[j + 4];
    sum += (double)((lane[0] + lane[2]) + (lane[1] + lane[3]));
    if (sum > c->limit) return INFINITY;
  }
  return sum;
}

/* ---- one group ------------------------------------------------------------ */

typedef struct search {
  nb_groups q;
  nb_mse_options o;
  nb_group_kernels kernels;
  nb_mse_error_fn *error;
} search;

/* Values by a power of two such that the largest lies in [1/2, 1): exact, and
 * the powers stay far from float32's limits. Padded with zeros to 8. */
static float normalize(float *x, const char *w, const nb_groups *q, float absmax) {
  int e;
  frexpf(absmax, &e);
  float factor = ldexpf(1.0f, NB_MIN(-e, 127)); /* only subnormals would want more */
  for (int64_t i = 0; i < q->group; i++) x[i] = nb_load(w, i, q->w_dtype) * factor;
  for (int64_t i = q->group; i % 8; i++) x[i] = 0;
  return factor;
}

static double error_of(const search *s, const float *x, const nb_grid *g, float factor, bool exact,
                       double limit) {
  nb_mse_candidate c = {.scale = g->scale * factor,
                        .lo = g->lo,
                        .hi = g->hi,
                        .norm = s->o.norm,
                        .limit = limit,
                        .exact = exact};
  return s->error(x, (s->q.group + 7) / 8 * 8, &c);
}

/* The error that the largest value alone has by being clipped. */
static double clip_error(const search *s, const nb_grid *g, float pos, float neg, float factor) {
  float scale = g->scale * factor;
  float above = pos * factor - g->hi * scale, below = neg * factor + g->lo * scale;
  return (double)nb_mse_pow(NB_MAX(NB_MAX(above, below), 0.0f), s->o.norm);
}

typedef struct attempt {
  nb_rtn_options o;
  const float *x;
  float pos, neg, factor;
  nb_grid best;
  double limit; /* the error of best */
  int step;     /* that gave best; -1: the start */
} attempt;

/* Tries the range shrunk by i steps. False when no smaller range can be better. */
static bool try_step(const search *s, attempt *a, int i) {
  float p = 1.0f - (float)i / (float)s->o.grid;
  nb_grid g;
  if (!nb_grid_make(&g, p * a->pos, p * a->neg, &a->o, s->q.w_dtype, s->q.s_dtype)) return true;
  if (g.scale == a->best.scale && g.zero == a->best.zero) return true;
  /* the clipping alone; on a symmetric grid it only grows from here */
  if (clip_error(s, &g, a->pos, a->neg, a->factor) >= a->limit) return !a->o.symmetric;
  double e = error_of(s, a->x, &g, a->factor, false, a->limit);
  if (e < a->limit) {
    a->limit = e;
    a->best = g;
    a->step = i;
  }
  return true;
}

/* Every fourth step over the whole range, then the steps around the best: what
 * trying all of them would find, but for a hair, at a third of the time. */
static nb_grid best_grid(const search *s, const float *x, const nb_grid *start, float pos, float neg,
                         float factor) {
  enum { STRIDE = 4 };
  attempt a = {.o = s->o.rtn, .x = x, .pos = pos, .neg = neg, .factor = factor, .best = *start, .step = -1};
  a.o.range = NB_RANGE_NARROW; /* shrinking starts where nothing is clipped */
  a.limit = error_of(s, x, start, factor, false, INFINITY);
  int steps = (int)(s->o.max_shrink * (float)s->o.grid);
  for (int i = 0; i <= steps; i += STRIDE)
    if (!try_step(s, &a, i)) break;
  int middle = a.step;
  if (middle >= 0)
    for (int i = NB_MAX(0, middle - STRIDE + 1); i <= NB_MIN(steps, middle + STRIDE - 1); i++)
      if (i != middle) try_step(s, &a, i);
  /* The codes divide; so does the comparison that decides. */
  double rtn = error_of(s, x, start, factor, true, INFINITY);
  return error_of(s, x, &a.best, factor, true, INFINITY) < rtn ? a.best : *start;
}

static bool quantize_group(const search *s, float *x, int64_t index) {
  const nb_groups *q = &s->q;
  const char *w = q->w + index * q->group * nb_elem_bytes(q->w_dtype);
  nb_span span = s->kernels.span(w, q->group);
  if (NB_MAX(span.pos, span.neg) >= nb_inf_bits(q->w_dtype)) return false;
  float pos = nb_from_bits(span.pos, q->w_dtype), neg = nb_from_bits(span.neg, q->w_dtype);
  nb_grid grid;
  if (!nb_grid_make(&grid, pos, neg, &s->o.rtn, q->w_dtype, q->s_dtype)) return false;
  if (pos > 0 || neg > 0) {
    float factor = normalize(x, w, q, NB_MAX(pos, neg));
    grid = best_grid(s, x, &grid, pos, neg, factor);
  }
  nb_store(q->scales, index, grid.scale, q->s_dtype);
  if (q->zeros) q->zeros[index] = (uint8_t)grid.zero;
  s->kernels.codes(q->codes + index * q->group, w, q->group, &grid);
  return true;
}

/* ---- groups over threads --------------------------------------------------- */

static int check_options(const nb_mse_options *o) {
  if (o->rtn.group == 0)
    return nb_fail(NB_EUNSUPPORTED, "%s: one scale for the whole tensor is not searched; use groups, or -1",
                   what);
  if (o->rtn.range < NB_RANGE_FULL || o->rtn.range > NB_RANGE_TIGHT)
    return nb_fail(NB_EINVAL, "%s: unknown range %d, expected full, narrow or tight", what, o->rtn.range);
  if (o->rtn.arithmetic != NB_ARITHMETIC_F32)
    return nb_fail(NB_EINVAL, "%s: arithmetic must be float32", what);
  if (o->grid < 1 || o->grid > 10000)
    return nb_fail(NB_EINVAL, "%s: grid = %d, expected 1 to 10000", what, o->grid);
  if (!(o->max_shrink >= 0 && o->max_shrink < 1))
    return nb_fail(NB_EINVAL, "%s: max_shrink = %g, expected 0 or more and less than 1", what,
                   (double)o->max_shrink);
  if (!(o->norm >= 1 && o->norm <= 4))
    return nb_fail(NB_EINVAL, "%s: norm = %g, expected 1 to 4", what, (double)o->norm);
  return NB_OK;
}

int nb_mse_quantize(nb_tensor *codes, nb_tensor *scales, nb_tensor *zeros, const nb_tensor *w,
                    const nb_mse_options *o) {
  search s = {.o = *o};
  NB_TRY(check_options(o));
  NB_TRY(nb_groups_check(&s.q, what, codes, scales, zeros, w, o->rtn.bits, o->rtn.symmetric, o->rtn.group));
  s.kernels = nb_group_kernels_of(s.q.w_dtype, NB_ARITHMETIC_F32);
  s.error = nb_cpu() & NB_CPU_AVX2 ? nb_mse_error_avx2 : error_portable;
  int64_t groups = s.q.n * s.q.per_row, bad = INT64_MAX;
  int64_t block = NB_MAX(1, 8192 / NB_MAX(s.q.group, 1)), blocks = NB_CEIL(groups, block);
  int stopped = 0, no_memory = 0;
#pragma omp parallel num_threads(nb_threads()) if (blocks > 1) reduction(min \
                                                                         : bad) \
    reduction(| \
              : stopped, no_memory)
  {
    float *x = nb_alloc(s.q.group + 8, sizeof *x);
    no_memory |= !x;
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; b++) {
      if (nb_stop_requested()) stopped |= 1;
      if (stopped || !x) continue;
      for (int64_t i = b * block; i < NB_MIN(groups, (b + 1) * block); i++)
        if (!quantize_group(&s, x, i)) {
          bad = NB_MIN(bad, i);
          break;
        }
    }
    free(x);
  }
  if (no_memory) return nb_fail(NB_ENOMEM, "%s: out of memory", what);
  if (stopped) return nb_fail_stopped();
  return bad == INT64_MAX ? NB_OK : nb_groups_fail(&s.q, what, bad);
}
