/* rtn.c - round to nearest: the scale from a group's largest magnitude, each
 * code the nearest point of that grid. */
#include "groups.h"

static const char what[] = "round to nearest";

static bool span_ok(nb_span s, int dtype) { return NB_MAX(s.pos, s.neg) < nb_inf_bits(dtype); }

static bool quantize_group(const nb_groups *q, nb_group_kernels kernels, const nb_rtn_options *o,
                           int64_t index) {
  const char *w = q->w + index * q->group * nb_elem_bytes(q->w_dtype);
  nb_span span = kernels.span(w, q->group);
  nb_grid grid;
  if (!span_ok(span, q->w_dtype) ||
      !nb_grid_make(&grid, nb_from_bits(span.pos, q->w_dtype), nb_from_bits(span.neg, q->w_dtype), o,
                    q->w_dtype, q->s_dtype))
    return false;
  nb_store(q->scales, index, grid.scale, q->s_dtype);
  if (q->zeros) q->zeros[index] = (uint8_t)grid.zero;
  kernels.codes(q->codes + index * q->group, w, q->group, &grid);
  return true;
}

/* Blocks of whole rows over the threads. The first group that fails is reported,
 * whichever thread met it. */
static int quantize_rows(const nb_groups *q, nb_group_kernels kernels, const nb_rtn_options *o) {
  int64_t rows = NB_MAX(1, 65536 / NB_MAX(q->k, 1)), blocks = NB_CEIL(q->n, rows), bad = INT64_MAX;
  int stopped = 0;
#pragma omp parallel for schedule(dynamic) num_threads(nb_threads()) if (blocks > 1) reduction(min \
                                                                                               : bad) \
    reduction(| \
              : stopped)
  for (int64_t b = 0; b < blocks; b++) {
    if (nb_stop_requested()) {
      stopped |= 1;
      continue;
    }
    int64_t end = NB_MIN(q->n, (b + 1) * rows) * q->per_row;
    for (int64_t i = b * rows * q->per_row; i < end; i++)
      if (!quantize_group(q, kernels, o, i)) {
        bad = NB_MIN(bad, i);
        break;
      }
  }
  if (stopped) return nb_fail_stopped();
  return bad == INT64_MAX ? NB_OK : nb_rtn_fail(q, bad);
}

static int quantize_whole(const nb_groups *q, nb_group_kernels kernels, const nb_rtn_options *o) {
  int64_t numel = q->n * q->k, block = 65536, blocks = NB_CEIL(numel, block),
          size = nb_elem_bytes(q->w_dtype);
  uint32_t pos = 0, neg = 0;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (blocks > 1) reduction(max \
                                                                                              : pos, neg) \
    reduction(| \
              : stopped)
  for (int64_t b = 0; b < blocks; b++) {
    if (nb_stop_requested()) stopped |= 1;
    if (stopped) continue;
    nb_span s = kernels.span(q->w + b * block * size, NB_MIN(block, numel - b * block));
    pos = NB_MAX(pos, s.pos);
    neg = NB_MAX(neg, s.neg);
  }
  if (stopped) return nb_fail_stopped();
  nb_grid grid;
  if (!span_ok((nb_span){pos, neg}, q->w_dtype) ||
      !nb_grid_make(&grid, nb_from_bits(pos, q->w_dtype), nb_from_bits(neg, q->w_dtype), o, q->w_dtype,
                    q->s_dtype))
    return nb_rtn_fail(q, 0);
  for (int64_t r = 0; r < q->n; r++) nb_store(q->scales, r, grid.scale, q->s_dtype);
  if (q->zeros) memset(q->zeros, grid.zero, (size_t)q->n);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (blocks > 1)
  for (int64_t b = 0; b < blocks; b++)
    kernels.codes(q->codes + b * block, q->w + b * block * size, NB_MIN(block, numel - b * block), &grid);
  return NB_OK;
}

int nb_rtn_check(nb_groups *q, const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros,
                 const nb_tensor *w, const nb_rtn_options *o) {
  NB_TRY(nb_groups_check(q, what, codes, scales, zeros, w, o->bits, o->symmetric, o->group));
  if (o->range < NB_RANGE_FULL || o->range > NB_RANGE_TIGHT)
    return nb_fail(NB_EINVAL, "%s: unknown range %d, expected full, narrow or tight", what, o->range);
  if (o->arithmetic != NB_ARITHMETIC_F32 && o->arithmetic != NB_ARITHMETIC_DTYPE)
    return nb_fail(NB_EINVAL, "%s: unknown arithmetic %d, expected float32 or dtype", what, o->arithmetic);
  if (o->arithmetic == NB_ARITHMETIC_DTYPE && q->s_dtype != q->w_dtype)
    return nb_fail(NB_EINVAL,
                   "%s: arithmetic in the weight's dtype stores scales in it too: expected %s scales, "
                   "found %s",
                   what, nb_dtype_name(q->w_dtype), nb_dtype_name(q->s_dtype));
  return NB_OK;
}

int nb_rtn_fail(const nb_groups *q, int64_t index) { return nb_groups_fail(q, what, index); }

int nb_rtn_quantize(nb_tensor *codes, nb_tensor *scales, nb_tensor *zeros, const nb_tensor *w,
                    const nb_rtn_options *o) {
  nb_groups q;
  NB_TRY(nb_rtn_check(&q, codes, scales, zeros, w, o));
  nb_group_kernels kernels = nb_group_kernels_of(q.w_dtype, o->arithmetic);
  if (q.n == 0 || q.k == 0) return NB_OK;
  return q.per_tensor ? quantize_whole(&q, kernels, o) : quantize_rows(&q, kernels, o);
}
