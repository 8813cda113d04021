/* moe.c - the tokens of each expert in order: grouped for the expert loop, and padded
 * to blocks for kernels that take one expert a block (SYSTEMS FWD-03, FWD-08). */
#include "moe.h"

/* The local expert of a global id; -1: elsewhere or nowhere. */
static inline int64_t local_of(int32_t id, const nb_tensor *map, int64_t experts) {
  if (id < 0) return -1;
  if (!map) return id < experts ? id : -1;
  return id < map->shape[0] ? ((const int32_t *)map->data)[id] : -1;
}

static int check_map(const nb_tensor *map, int64_t experts, const char *what) {
  if (!map) return NB_OK;
  const int32_t *to = map->data;
  for (int64_t i = 0; i < map->shape[0]; i++)
    if (to[i] < -1 || to[i] >= experts)
      return nb_fail(NB_EINVAL, "%s: expert %lld is mapped to %d, expected -1 (elsewhere) to %lld", what,
                     (long long)i, to[i], (long long)experts - 1);
  return NB_OK;
}

int nb_moe_group_check(const nb_tensor *rows, const nb_tensor *row_weights, const nb_tensor *offsets,
                       const nb_tensor *ids, const nb_tensor *weights, const nb_tensor *map) {
  NB_TRY(nb_expect(ids, "moe group: experts", NB_I32, 2, NB_SHAPE(-1, -1)));
  int64_t m = ids->shape[0], top = ids->shape[1], n = m * top;
  NB_TRY(nb_expect(weights, "moe group: weights", NB_F32, 2, NB_SHAPE(m, top)));
  NB_TRY(nb_expect(rows, "moe group: rows", NB_I32, 1, NB_SHAPE(n)));
  NB_TRY(nb_expect(row_weights, "moe group: row weights", NB_F32, 1, NB_SHAPE(n)));
  NB_TRY(nb_expect(offsets, "moe group: offsets", NB_I32, 1, NB_SHAPE(-1)));
  if (offsets->shape[0] < 1)
    return nb_fail(NB_EINVAL, "moe group: no offsets; expected one more than experts");
  if (map) NB_TRY(nb_expect(map, "moe group: expert map", NB_I32, 1, NB_SHAPE(-1)));
  if (n > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "moe group: %lld pairs are more than 2^31-1", (long long)n);
  return NB_OK;
}

int nb_moe_group_outside(int32_t id, int64_t place, int64_t experts) {
  return nb_fail(NB_EINVAL, "moe group: expert %d at place %lld is outside the %lld experts", id,
                 (long long)place, (long long)experts);
}

int nb_moe_group(nb_tensor *rows, nb_tensor *row_weights, nb_tensor *offsets, const nb_tensor *ids,
                 const nb_tensor *weights, const nb_tensor *map, int skip) {
  NB_TRY(nb_moe_group_check(rows, row_weights, offsets, ids, weights, map));
  int64_t top = ids->shape[1], n = nb_tensor_numel(ids), e = offsets->shape[0] - 1;
  NB_TRY(check_map(map, e, "moe group: expert map"));
  const int32_t *id = ids->data;
  int32_t *at = offsets->data, *out = rows->data;
  memset(at, 0, (size_t)nb_tensor_bytes(offsets));
  for (int64_t i = 0; i < n; i++) {
    int64_t x = local_of(id[i], map, e);
    if (x >= 0) at[x + 1]++;
    else if (!skip) return nb_moe_group_outside(id[i], i, e);
  }
  for (int64_t i = 0; i < e; i++) at[i + 1] += at[i];
  /* at[x] runs to the end of expert x, which is the start of the next: shifted back below. */
  for (int64_t i = 0; i < n; i++) {
    int64_t x = local_of(id[i], map, e);
    if (x < 0) continue;
    int32_t place = at[x]++;
    out[place] = (int32_t)(i / top);
    ((float *)row_weights->data)[place] = ((const float *)weights->data)[i];
  }
  memmove(at + 1, at, (size_t)e * sizeof *at);
  at[0] = 0;
  return NB_OK;
}

int64_t nb_moe_align_capacity(int64_t pairs, int64_t experts, int64_t block) {
  int64_t most = pairs + experts * (block - 1);
  return pairs < experts ? NB_MIN(most, pairs * block) : most;
}

int nb_moe_align_check(const nb_tensor *ids, int64_t block, int64_t experts, const nb_tensor *map) {
  if (ids->dtype != NB_I32)
    return nb_fail(NB_EINVAL, "moe align: ids must be i32, found %s", nb_dtype_name(ids->dtype));
  if (block < 1 || block > 1 << 20 || experts < 1 || experts > 1 << 20)
    return nb_fail(NB_EINVAL, "moe align: blocks of %lld for %lld experts, expected 1 to 2^20 each",
                   (long long)block, (long long)experts);
  if (map && map->ndim == 1 && map->shape[0] != experts)
    return nb_fail(NB_EINVAL, "moe align: the expert map has %lld entries for %lld experts",
                   (long long)map->shape[0], (long long)experts);
  if (map) NB_TRY(nb_expect(map, "moe align: expert map", NB_I32, 1, NB_SHAPE(-1)));
  int64_t capacity = nb_moe_align_capacity(nb_tensor_numel(ids), experts, block);
  if (capacity > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "moe align: %lld places are more than 2^31-1", (long long)capacity);
  return NB_OK;
}

int nb_moe_align(nb_tensor *sorted, nb_tensor *block_experts, int64_t *total, const nb_tensor *ids,
                 int64_t block, int64_t experts, const nb_tensor *map, int ignore) {
  NB_TRY(nb_moe_align_check(ids, block, experts, map));
  NB_TRY(check_map(map, experts, "moe align: expert map"));
  int64_t n = nb_tensor_numel(ids), capacity = nb_moe_align_capacity(n, experts, block);
  NB_TRY(nb_expect(sorted, "moe align: sorted ids", NB_I32, 1, NB_SHAPE(capacity)));
  NB_TRY(nb_expect(block_experts, "moe align: experts", NB_I32, 1, NB_SHAPE(NB_CEIL(capacity, block))));
  int64_t *at = nb_alloc(experts + 1, sizeof *at);
  if (!at) return NB_ENOMEM;
  const int32_t *id = ids->data, *to = map ? map->data : NULL;
  int32_t *out = sorted->data, *owner = block_experts->data;
  /* Ignored pairs are sorted by local expert; otherwise all are, by global, and strangers' blocks marked. */
  const nb_tensor *sort_map = ignore ? map : NULL;
  for (int64_t i = 0; i < capacity; i++) out[i] = (int32_t)n;
  for (int64_t i = 0; i < block_experts->shape[0]; i++) owner[i] = -1;
  for (int64_t i = 0; i < n; i++) {
    int64_t x = local_of(id[i], sort_map, experts);
    if (x >= 0) at[x + 1]++;
  }
  for (int64_t x = 0; x < experts; x++) {
    int64_t blocks = NB_CEIL(at[x + 1], block), first = at[x] / block;
    for (int64_t b = 0; b < blocks; b++) owner[first + b] = to && !ignore ? to[x] : (int32_t)x;
    at[x + 1] = at[x] + blocks * block;
  }
  *total = at[experts];
  for (int64_t i = 0; i < n; i++) {
    int64_t x = local_of(id[i], sort_map, experts);
    if (x >= 0) out[at[x]++] = (int32_t)i;
  }
  free(at);
  return NB_OK;
}
