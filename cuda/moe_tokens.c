/* moe_tokens.c - where a mixture's tokens go, on a device: kernels/moe_route.cu and moe_align.cu, launched. The checks
 * and the sentences are the CPU's where it has such a function. */
#include "device.h"

#include "compute/moe.h"

#include "kernels/forward.h"
#include "kernels/moe_align.h"
#include "kernels/moe_route.h"

/* ---- results ------------------------------------------------------------------------------ */

/* An output and the shape that it has, or is made with. */
typedef struct result {
  nb_tensor *out;
  int dtype, ndim;
  int64_t shape[3];
} result;

static int finish(nb_tensor *to, const result *r, int count, int rc) {
  for (int i = 0; i < count; i++) nb_cuda_finish(r[i].out, &to[i], rc);
  return rc;
}
static int results(nb_tensor *to, const result *r, int count, nb_cuda_device *d, const char *what) {
  for (int i = 0; i < count; i++) {
    int rc = nb_cuda_result(&to[i], r[i].out, d, r[i].dtype, r[i].ndim, r[i].shape, what);
    if (rc < 0) return finish(to, r, i, rc);
  }
  return NB_OK;
}

/* ---- the router ------------------------------------------------------------------------ */

static int launch_route(const nb_tensor *experts, const nb_tensor *weights, const nb_tensor *logits,
                        const nb_tensor *bias, const nb_moe_router *o) {
  int64_t m = logits->shape[0];
  if (m > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "moe route: %lld rows are more than 2^31-1", (long long)m);
  if (m == 0) return NB_OK;
  nb_moe_routing r = {.rows = (int)m,
                      .experts = (int)logits->shape[1],
                      .top = (int)experts->shape[1],
                      .dtype = nb_cuda_kernel_dtype(logits->dtype),
                      .bias_dtype = bias ? nb_cuda_kernel_dtype(bias->dtype) : 0,
                      .sigmoid = o->scoring == NB_ROUTE_SIGMOID,
                      .normalize = o->normalize != 0,
                      .groups = (int)o->groups,
                      .top_groups = (int)o->top_groups,
                      .scale = o->scale};
  int shared = nb_moe_route_shared(r.experts, r.groups);
  int warps = NB_MOE_ROUTE_WARPS * shared <= NB_MOE_ROUTE_SHARED ? NB_MOE_ROUTE_WARPS : 1;
  nb_launch at = {{(int32_t)NB_CEIL(m, warps), 1, 1}, {32 * warps, 1, 1}, shared * warps};
  const void *from = logits->data, *correction = bias ? bias->data : NULL, *to = experts->data,
             *w = weights->data;
  return nb_device_launch(logits->device, "nb_moe_route", &at, (void *[]){&from, &correction, &to, &w, &r});
}

/* t for the CPU's checks, whose sentences are of f32. */
static nb_tensor wide(const nb_tensor *t) {
  nb_tensor seen = *t;
  seen.device = 0;
  if (nb_cuda_is_plain(t->dtype)) seen.dtype = NB_F32;
  return seen;
}

int nb_device_moe_route(nb_tensor *experts, nb_tensor *weights, const nb_tensor *logits,
                        const nb_tensor *bias, const nb_moe_router *o) {
  const char *what = "moe route";
  nb_cuda_device *d = NULL;
  nb_tensor seen[2], to[2];
  NB_TRY(nb_cuda_operands(seen, &d, (const nb_tensor *[]){logits, bias}, 2, what));
  nb_tensor scores = wide(logits), correction = bias ? wide(bias) : scores;
  NB_TRY(nb_expect(&scores, "moe route: logits", NB_F32, 2, NB_SHAPE(-1, -1)));
  int64_t m = logits->shape[0], top = experts->ndim == 2 ? experts->shape[1] : -1;
  const result r[] = {{experts, NB_I32, 2, {m, top}}, {weights, NB_F32, 2, {m, top}}};
  NB_TRY(results(to, r, 2, d, what));
  seen[0] = wide(&to[0]);
  seen[1] = wide(&to[1]);
  int rc = nb_moe_route_check(&seen[0], &seen[1], &scores, bias ? &correction : NULL, o);
  if (rc == NB_OK) rc = launch_route(&to[0], &to[1], logits, bias, o);
  return finish(to, r, 2, rc);
}

/* ---- pairs by expert --------------------------------------------------------------------- */

/* What the kernels hold: counts of so many experts, and pairs that an int counts with room to spare. */
static int check_size(int64_t experts, int64_t pairs, const char *what) {
  if (experts <= NB_MOE_ALIGN_EXPERTS && pairs <= 1 << 30) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "%s: %lld experts and %lld pairs, expected at most %d and 2^30 on a device",
                 what, (long long)experts, (long long)pairs, NB_MOE_ALIGN_EXPERTS);
}

/* One block, whose warps have work and room for a count of each expert, and a word. */
static int launch_sort(int device, const char *kernel, const nb_moe_pairs *p, void **arguments) {
  int64_t experts = NB_MAX(p->experts, 1), warps = NB_CEIL((int64_t)p->pairs, NB_MOE_ALIGN_PAIRS);
  warps = NB_MAX(4, NB_MIN(warps, NB_MIN(NB_MOE_ALIGN_WARPS, (NB_MOE_ALIGN_SHARED - 4) / (4 * experts))));
  nb_launch at = {{1, 1, 1}, {(int32_t)(32 * warps), 1, 1}, (int32_t)(4 * experts * warps + 4)};
  return nb_device_launch(device, kernel, &at, arguments);
}

int nb_device_moe_group(nb_tensor *rows, nb_tensor *row_weights, nb_tensor *offsets, const nb_tensor *ids,
                        const nb_tensor *weights, const nb_tensor *map, int skip) {
  enum { ROWS, ROW_WEIGHTS, OFFSETS, IDS, WEIGHTS, MAP, COUNT };
  nb_cuda_device *d = NULL;
  nb_tensor seen[COUNT], notes = {0};
  NB_TRY(nb_cuda_operands(seen, &d, (const nb_tensor *[]){rows, row_weights, offsets, ids, weights, map},
                          COUNT, "moe group"));
  NB_TRY(nb_moe_group_check(&seen[ROWS], &seen[ROW_WEIGHTS], &seen[OFFSETS], &seen[IDS], &seen[WEIGHTS],
                            map ? &seen[MAP] : NULL));
  int64_t e = offsets->shape[0] - 1;
  NB_TRY(check_size(e, nb_tensor_numel(ids), "moe group"));
  if (!skip)
    NB_TRY(nb_cuda_notes_new(&notes, d, 1, "nothing can be grouped: an expert outside could not be told"));
  nb_moe_pairs p = {.pairs = (int)nb_tensor_numel(ids),
                    .top = (int)ids->shape[1],
                    .experts = (int)e,
                    .known = (int)(map ? map->shape[0] : e)};
  const void *id = ids->data, *to = map ? map->data : NULL, *w = weights->data;
  uint32_t outside = 0;
  int rc =
      launch_sort(d->number, "nb_moe_group", &p,
                  (void *[]){&id, &to, &w, &rows->data, &row_weights->data, &offsets->data, &notes.data, &p});
  if (rc == NB_OK && !skip) rc = nb_cuda_notes_read(&outside, &notes);
  nb_tensor_release(&notes);
  if (rc < 0 || !outside) return rc;
  nb_tensor here;
  NB_TRY(nb_tensor_to(&here, ids, 0));
  int64_t place = p.pairs - (int64_t)outside;
  rc = nb_moe_group_outside(((const int32_t *)here.data)[place], place, e);
  nb_tensor_release(&here);
  return rc;
}

int nb_device_moe_align(nb_tensor *sorted, nb_tensor *block_experts, nb_tensor *total, const nb_tensor *ids,
                        int64_t block, int64_t experts, const nb_tensor *map, int ignore) {
  const char *what = "moe align";
  nb_cuda_device *d = NULL;
  nb_tensor seen[2], to[3];
  NB_TRY(nb_cuda_operands(seen, &d, (const nb_tensor *[]){ids, map}, 2, what));
  NB_TRY(nb_moe_align_check(&seen[0], block, experts, map ? &seen[1] : NULL));
  NB_TRY(check_size(experts, nb_tensor_numel(ids), what));
  int64_t n = nb_tensor_numel(ids), capacity = nb_moe_align_capacity(n, experts, block);
  const result r[] = {{sorted, NB_I32, 1, {capacity}},
                      {block_experts, NB_I32, 1, {NB_CEIL(capacity, block)}},
                      {total, NB_I32, 1, {1}}};
  NB_TRY(results(to, r, 3, d, what));
  nb_moe_pairs p = {.pairs = (int)n,
                    .top = 1,
                    .experts = (int)experts,
                    .known = (int)experts,
                    .block = (int)block,
                    .places = (int)capacity,
                    .marked = map && !ignore};
  const void *id = ids->data, *local = map ? map->data : NULL;
  return finish(to, r, 3,
                launch_sort(d->number, "nb_moe_align", &p,
                            (void *[]){&id, &local, &to[0].data, &to[1].data, &to[2].data, &p}));
}

/* ---- batches ------------------------------------------------------------------------------- */

/* The sentence for the first expert with more rows than there is room for; waits for the counts. */
static int check_counts(const nb_tensor *counts, int64_t room) {
  nb_tensor here;
  int rc = NB_OK;
  NB_TRY(nb_tensor_to(&here, counts, 0));
  const int32_t *n = here.data;
  for (int64_t e = 0; rc == NB_OK && e < counts->shape[0]; e++)
    if (n[e] > room)
      rc = nb_fail(NB_EINVAL, "moe dispatch: expert %lld gets %d rows, and there is room for %lld",
                   (long long)e, n[e], (long long)room);
  nb_tensor_release(&here);
  return rc;
}

/* x's rows into the batch: 16 bytes at a time, or 2. */
static int launch_dispatch(nb_tensor *batch, const nb_tensor *x, const nb_tensor *tokens,
                           const nb_tensor *counts) {
  int64_t bytes = x->shape[1] * (nb_dtype_bits(x->dtype) / 8), places = nb_tensor_numel(tokens);
  bool odd = (bytes | (int64_t)(uintptr_t)x->data | (int64_t)(uintptr_t)batch->data) % 16 != 0;
  int64_t units = bytes / (odd ? 2 : 16), threads = NB_MIN(NB_CEIL(units, 32) * 32, NB_FORWARD_THREADS);
  int room = (int)batch->shape[1];
  if (!units || !places) return NB_OK;
  const void *from = x->data;
  nb_launch at = {
      {(int32_t)places, (int32_t)NB_MIN(NB_CEIL(units, threads), 64), 1}, {(int32_t)threads, 1, 1}, 0};
  return nb_device_launch(
      x->device, odd ? "nb_moe_dispatch_odd" : "nb_moe_dispatch", &at,
      (void *[]){&batch->data, &from, (void *)&tokens->data, (void *)&counts->data, &room, &units});
}

/* The token in each place of the batch, the pairs' places and the counts, then the rows themselves. */
static int dispatch(nb_cuda_device *d, nb_tensor *batch, nb_tensor *counts, nb_tensor *places,
                    const nb_tensor *x, const nb_tensor *ids, const nb_tensor *map) {
  int64_t experts = batch->shape[0], room = batch->shape[1], rows = experts * room;
  nb_tensor tokens;
  NB_TRY(nb_cuda_tensor(&tokens, d, NB_I32, 1, &rows));
  nb_moe_pairs p = {.pairs = (int)nb_tensor_numel(ids),
                    .top = (int)NB_MAX(ids->shape[1], 1),
                    .experts = (int)experts,
                    .known = (int)(map ? map->shape[0] : experts),
                    .block = (int)room};
  const void *id = ids->data, *to = map ? map->data : NULL;
  int rc = launch_sort(d->number, "nb_moe_place", &p,
                       (void *[]){&id, &to, &tokens.data, &places->data, &counts->data, &p});
  if (rc == NB_OK) rc = launch_dispatch(batch, x, &tokens, counts);
  nb_tensor_release(&tokens);
  return rc == NB_OK && room < p.pairs ? check_counts(counts, room) : rc;
}

int nb_device_moe_dispatch(nb_tensor *batch, nb_tensor *counts, nb_tensor *places, const nb_tensor *x,
                           const nb_tensor *ids, const nb_tensor *map) {
  const char *what = "moe dispatch";
  nb_cuda_device *d = NULL;
  nb_tensor seen[3], to[3];
  NB_TRY(nb_cuda_operands(seen, &d, (const nb_tensor *[]){x, ids, map}, 3, what));
  NB_TRY(nb_expect(&seen[0], what, -1, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_cuda_expect_plain(x, what));
  NB_TRY(nb_expect(&seen[1], what, NB_I32, 2, NB_SHAPE(x->shape[0], -1)));
  if (map) NB_TRY(nb_expect(&seen[2], what, NB_I32, 1, NB_SHAPE(-1)));
  if (batch->ndim != 3)
    return nb_fail(NB_EINVAL, "%s: expected a batch [experts, rows, H], found %d dimensions", what,
                   batch->ndim);
  int64_t experts = batch->shape[0], room = batch->shape[1], n = nb_tensor_numel(ids);
  NB_TRY(check_size(experts, n, what));
  if (room > INT32_MAX / NB_MAX(experts, 1))
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld rows of each of %lld experts are more than 2^31-1", what,
                   (long long)room, (long long)experts);
  if (room < n)
    NB_TRY(nb_cuda_no_capture(d, "an expert with more rows than there is room for could not be told"));
  const result r[] = {{batch, x->dtype, 3, {experts, room, x->shape[1]}},
                      {counts, NB_I32, 1, {experts}},
                      {places, NB_I32, 2, {ids->shape[0], ids->shape[1]}}};
  NB_TRY(results(to, r, 3, d, what));
  return finish(to, r, 3, dispatch(d, &to[0], &to[1], &to[2], x, ids, map));
}
