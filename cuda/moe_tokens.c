/* moe_tokens.c - where a mixture's tokens go, on a device: kernels/moe_route.cu and moe_align.cu, launched. The checks
 * and the sentences are the CPU's. */
#include "device.h"

#include "compute/moe.h"

#include "kernels/moe_align.h"
#include "kernels/moe_route.h"

/* ---- the router ------------------------------------------------------------------------ */

int nb_device_moe_route(nb_tensor *experts, nb_tensor *weights, const nb_tensor *logits,
                        const nb_tensor *bias, const nb_moe_router *o) {
  enum { EXPERTS, WEIGHTS, LOGITS, BIAS, COUNT };
  nb_tensor seen[COUNT];
  NB_TRY(nb_cuda_operands(seen, NULL, (const nb_tensor *[]){experts, weights, logits, bias}, COUNT,
                          "moe route"));
  /* The CPU's sentences are of f32. */
  if (nb_cuda_is_plain(logits->dtype)) seen[LOGITS].dtype = NB_F32;
  if (bias && nb_cuda_is_plain(bias->dtype)) seen[BIAS].dtype = NB_F32;
  NB_TRY(nb_moe_route_check(&seen[EXPERTS], &seen[WEIGHTS], &seen[LOGITS], bias ? &seen[BIAS] : NULL, o));
  int64_t m = logits->shape[0], e = logits->shape[1], groups = NB_MAX(o->groups, 0);
  if (m > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "moe route: %lld rows are more than 2^31-1", (long long)m);
  if (m == 0) return NB_OK;
  nb_moe_routing r = {.rows = (int)m,
                      .experts = (int)e,
                      .top = (int)experts->shape[1],
                      .dtype = nb_cuda_kernel_dtype(logits->dtype),
                      .bias_dtype = bias ? nb_cuda_kernel_dtype(bias->dtype) : 0,
                      .sigmoid = o->scoring == NB_ROUTE_SIGMOID,
                      .normalize = o->normalize != 0,
                      .groups = (int)groups,
                      .top_groups = (int)o->top_groups,
                      .scale = o->scale};
  int shared = nb_moe_route_shared(r.experts, r.groups);
  int warps = NB_MOE_ROUTE_WARPS * shared <= NB_MOE_ROUTE_SHARED ? NB_MOE_ROUTE_WARPS : 1;
  nb_launch at = {{(int32_t)NB_CEIL(m, warps), 1, 1}, {32 * warps, 1, 1}, shared * warps};
  const void *from = logits->data, *correction = bias ? bias->data : NULL;
  return nb_device_launch(logits->device, "nb_moe_route", &at,
                          (void *[]){&from, &correction, &experts->data, &weights->data, &r});
}

/* ---- pairs by expert --------------------------------------------------------------------- */

/* How many experts a map has on the device, or the kernels hold. */
static int check_experts(int64_t experts, const char *what) {
  if (experts <= NB_MOE_ALIGN_EXPERTS) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "%s: %lld experts, expected at most %d on a device", what,
                 (long long)experts, NB_MOE_ALIGN_EXPERTS);
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
  NB_TRY(check_experts(e, "moe group"));
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
  nb_tensor seen[2], to[3] = {{0}};
  NB_TRY(nb_cuda_operands(seen, &d, (const nb_tensor *[]){ids, map}, 2, what));
  NB_TRY(nb_moe_align_check(&seen[0], block, experts, map ? &seen[1] : NULL));
  NB_TRY(check_experts(experts, what));
  int64_t n = nb_tensor_numel(ids), capacity = nb_moe_align_capacity(n, experts, block);
  nb_tensor *out[] = {sorted, block_experts, total};
  const int64_t places[] = {capacity, NB_CEIL(capacity, block), 1};
  int made = 0, rc = NB_OK;
  for (; rc == NB_OK && made < 3; made += rc == NB_OK)
    rc = nb_cuda_result(&to[made], out[made], d, NB_I32, 1, &places[made], what);
  if (rc == NB_OK) {
    nb_moe_pairs p = {.pairs = (int)n,
                      .top = 1,
                      .experts = (int)experts,
                      .known = (int)experts,
                      .block = (int)block,
                      .places = (int)capacity,
                      .marked = map && !ignore};
    const void *id = ids->data, *local = map ? map->data : NULL;
    rc = launch_sort(d->number, "nb_moe_align", &p,
                     (void *[]){&id, &local, &to[0].data, &to[1].data, &to[2].data, &p});
  }
  for (int i = 0; i < made; i++) nb_cuda_finish(out[i], &to[i], rc);
  return rc;
}
