/* product_experts.c - y = x W on a device for pairs of a token and one of its experts, W being its expert's: all experts
 * by one launch of kernels/product_experts*.cu, over the blocks of pairs that nb_device_moe_align made;
 * kernels/product_rows.cu brings x into the order of each expert's rows, and takes what those can't. */
#include "kernels/product.h"
#include "product.h"

#include <stdio.h>

static const char what[] = "marlin moe gemm";

typedef struct experts {
  nb_cuda_marlin_gemm p; /* of the first expert */
  const nb_moe_blocks *blocks;
  int count, most, top, pairs, columns; /* experts; blocks at most; columns of x */
  int64_t rows;                         /* of x */
  const void *x, *y, *sorted, *owners, *total, *weights, *globals;
  nb_tensor irregular; /* i32 [count], where orders were looked at */
} experts;

/* ---- checks ------------------------------------------------------------------------------ */

/* The first expert's part of a stack [count, ...]; NULL where there is none. */
static int first_of(const nb_tensor **out, nb_tensor *part, const nb_tensor *stack, int64_t count,
                    const char *name) {
  *out = NULL;
  if (!stack || nb_tensor_numel(stack) == 0) return NB_OK;
  if (stack->ndim < 2 || stack->shape[0] != count) {
    char text[160];
    nb_tensor_describe(stack, text, sizeof text);
    return nb_fail(NB_EINVAL, "%s: %s of %lld experts: found %s", what, name, (long long)count, text);
  }
  *part = *stack;
  part->ndim--;
  for (int i = 0; i < part->ndim; i++) part->shape[i] = stack->shape[i + 1];
  *out = part;
  return NB_OK;
}

/* Where a vector of the blocks lies; numel -1: any. */
static int vector_at(const void **at, experts *e, const nb_tensor *t, const char *name, int dtype,
                     int64_t numel) {
  char text[64];
  snprintf(text, sizeof text, "%s: %s", what, name);
  if (!t) return nb_fail(NB_EINVAL, "%s are missing", text);
  nb_tensor flat = *t;
  flat.ndim = 1, flat.shape[0] = nb_tensor_numel(t);
  NB_TRY(nb_cuda_expect(&flat, text, e->p.d->number, dtype, 1, NB_SHAPE(numel)));
  *at = t->data;
  return NB_OK;
}

static int check_blocks(experts *e, const nb_tensor *x) {
  const nb_moe_blocks *b = e->blocks;
  if (b->block < 1 || b->block > 64)
    return nb_fail(NB_EINVAL, "%s: blocks of %lld pairs, expected 1 to 64", what, (long long)b->block);
  if (b->top < 1 || b->top > 1 << 20)
    return nb_fail(NB_EINVAL, "%s: %lld experts to a token, expected 1 to 2^20", what, (long long)b->top);
  e->rows = x->shape[0], e->columns = (int)x->shape[1];
  int64_t pairs = e->rows * b->top, pieces = NB_MAX(e->rows, e->p.perm ? pairs : 0) * (e->p.k / 8);
  NB_TRY(vector_at(&e->sorted, e, b->sorted, "sorted pairs", NB_I32, -1));
  NB_TRY(vector_at(&e->owners, e, b->block_experts, "blocks' experts", NB_I32, -1));
  NB_TRY(vector_at(&e->total, e, b->total, "places in use", NB_I32, 1));
  if (b->weights) NB_TRY(vector_at(&e->weights, e, b->weights, "router weights", NB_F32, pairs));
  if (b->globals) NB_TRY(vector_at(&e->globals, e, b->globals, "global scales", NB_F32, e->count));
  int64_t most = NB_MIN(nb_tensor_numel(b->block_experts), nb_tensor_numel(b->sorted) / b->block),
          stages = NB_CEIL((int64_t)e->p.n, NB_PRODUCT_COLUMNS) * NB_CEIL(e->p.k, 64);
  if (pieces > INT32_MAX || pairs > INT32_MAX || e->count * (int64_t)e->p.n > INT32_MAX ||
      most > (INT32_MAX - (1 << 20)) / stages)
    return nb_fail(
        NB_EUNSUPPORTED,
        "%s: %lld pairs in up to %lld blocks, K = %d and N = %d are more than a launch can count; give fewer "
        "tokens at once",
        what, (long long)pairs, (long long)most, e->p.k, e->p.n);
  e->pairs = (int)pairs, e->top = (int)b->top, e->most = (int)most;
  return NB_OK;
}

static int check(experts *e, const nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                 const nb_moe_blocks *blocks, const nb_tensor *row_scale) {
  nb_tensor parts[6];
  nb_marlin_weight first = *w;
  int64_t count = w->words && w->words->ndim == 3 ? w->words->shape[0] : 0;
  *e = (experts){.blocks = blocks, .count = (int)count, .x = x->data};
  if (count < 1 || count > 1 << 20)
    return nb_fail(NB_EINVAL, "%s: words of %lld experts, expected [1 to 2^20, K/16, N*bits/2]", what,
                   (long long)count);
  NB_TRY(first_of(&first.words, &parts[0], w->words, count, "words"));
  NB_TRY(first_of(&first.scales, &parts[1], w->scales, count, "scales"));
  NB_TRY(first_of(&first.zeros, &parts[2], w->zeros, count, "zero-points"));
  NB_TRY(first_of(&first.perm, &parts[3], w->perm, count, "perm"));
  NB_TRY(first_of(&first.g_idx, &parts[4], w->g_idx, count, "g_idx"));
  NB_TRY(first_of(&first.bias, &parts[5], w->bias, count, "bias"));
  if (!first.words || !first.scales)
    return nb_fail(NB_EINVAL, "%s: expected words and scales, found none", what);
  NB_TRY(w->a8 ? nb_cuda_product_a8_check(&e->p, y, x, &first, row_scale)
               : nb_cuda_marlin_gemm_check(&e->p, x, &first, row_scale));
  e->p.w = w;
  NB_TRY(check_blocks(e, x));
  if (e->p.row_scale && e->p.perm && blocks->top > 1)
    return nb_fail(NB_EUNSUPPORTED, "%s: scales of rows don't go with an activation order of the weights",
                   what);
  return NB_OK;
}

/* ---- launches ---------------------------------------------------------------------------- */

/* Which experts' orders are not by groups of `group` rows: what only the row kernel takes. */
static int find_irregular(experts *e) {
  nb_launch at = {{e->count, 1, 1}, {NB_PRODUCT_THREADS, 1, 1}, nb_product_rows_bytes()};
  NB_TRY(nb_cuda_tensor(&e->irregular, e->p.d, NB_I32, 1, NB_SHAPE(e->count)));
  return nb_device_launch(
      e->p.d->number, "nb_product_experts_orders", &at,
      (void *[]){(void *)&e->p.g_idx, &e->irregular.data, (void *)&e->p.k, (void *)&e->p.group});
}

/* x as [pairs, k], each row in the order of its expert's rows. */
static int gather(nb_tensor *out, experts *e) {
  enum { GRID = 65535 };
  int64_t places = (int64_t)e->most * e->blocks->block;
  nb_launch at = {
      {NB_CEIL(e->p.k, NB_PRODUCT_THREADS), (int32_t)NB_MAX(NB_MIN(places, (int64_t)GRID), (int64_t)1), 1},
      {NB_PRODUCT_THREADS, 1, 1},
      nb_product_rows_bytes()};
  int block = (int)e->blocks->block;
  NB_TRY(nb_cuda_tensor(out, e->p.d, e->p.dtype, 2, NB_SHAPE(e->pairs, e->p.k)));
  NB_TRY(nb_device_launch(e->p.d->number, "nb_product_experts_gather", &at,
                          (void *[]){&e->x, (void *)&e->p.perm, &out->data, &e->sorted, &e->owners, &e->total,
                                     &block, &e->most, &e->top, &e->count, &e->pairs, &e->columns, &e->p.k}));
  e->x = out->data, e->top = 1;
  return NB_OK;
}

static int by_tensor_cores(experts *e, int outputs) {
  nb_cuda_marlin_gemm *p = &e->p;
  int block = (int)e->blocks->block, bits = p->w->bits, blocks = nb_cuda_marlin_gemm_blocks(block);
  char name[48];
  snprintf(name, sizeof name, "nb_product_experts_%s%s_%s_m%d", p->w->a8 ? "a8_" : "",
           nb_dtype_name(p->dtype), nb_cuda_marlin_gemm_format(p->w), blocks * 16);
  nb_launch at = {{1, 1, 1},
                  {NB_PRODUCT_THREADS, 1, 1},
                  NB_PRODUCT_STAGES * nb_cuda_marlin_gemm_stage(p, blocks) +
                      nb_product_experts_bytes(blocks)};
  int64_t resident,
      all = (int64_t)e->most * NB_CEIL(p->n, NB_PRODUCT_COLUMNS) * NB_CEIL(p->k, nb_product_k(blocks));
  NB_TRY(nb_cuda_marlin_gemm_workspace(p));
  NB_TRY(nb_cuda_resident(&resident, p->d, nb_product_resident(blocks, bits), at.shared_bytes));
  at.grid[0] = (int32_t)NB_MIN(resident, all);
  const void *skip = e->irregular.data;
  int whole = p->w->scale == NB_MARLIN_INT16; /* which only kernels for 8-bit activations ask */
  float factor = nb_cuda_marlin_gemm_factor(p);
  return nb_device_launch(p->d->number, name, &at,
                          (void *[]){(void *)&e->x,
                                     (void *)&p->words,
                                     (void *)&p->scales,
                                     (void *)&p->zeros,
                                     (void *)&p->bias,
                                     (void *)&p->row_scale,
                                     (void *)&e->y,
                                     &p->parts,
                                     &p->arrived,
                                     (void *)&e->sorted,
                                     (void *)&e->owners,
                                     (void *)&e->total,
                                     &skip,
                                     (void *)&e->weights,
                                     (void *)&e->globals,
                                     &block,
                                     (void *)&e->most,
                                     (void *)&e->top,
                                     (void *)&e->count,
                                     (void *)&e->pairs,
                                     (void *)&p->n,
                                     (void *)&p->k,
                                     (void *)&p->group,
                                     &outputs,
                                     &factor,
                                     &whole});
}

/* A row of the weight at a time, whatever its groups; where tensor cores can, only the experts that they left. */
static int by_rows(const experts *e, int outputs) {
  enum { GRID = 4096 };
  const nb_cuda_marlin_gemm *p = &e->p;
  int block = (int)e->blocks->block, bits = p->w->bits, bf16 = p->dtype == NB_BF16,
      codes = nb_cuda_marlin_codes(p->w), scale = nb_cuda_marlin_scale(p->w),
      scale_bytes = (int)(nb_dtype_bits(p->w->scales->dtype) / 8);
  int64_t items = (int64_t)e->most * NB_CEIL(block, NB_PRODUCT_ROWS_AT_ONCE);
  nb_launch at = {{p->n / 64, (int32_t)NB_MIN(items, (int64_t)GRID), 1},
                  {NB_PRODUCT_THREADS, 1, 1},
                  nb_product_rows_bytes()};
  const void *only = e->irregular.data;
  float scale_factor = (float)p->w->scale_factor, factor = (float)p->w->global;
  return nb_device_launch(p->d->number, "nb_product_experts_rows", &at,
                          (void *[]){(void *)&e->x,
                                     (void *)&p->words,
                                     (void *)&p->scales,
                                     (void *)&p->zeros,
                                     (void *)&p->g_idx,
                                     (void *)&p->bias,
                                     (void *)&p->row_scale,
                                     (void *)&e->y,
                                     (void *)&e->sorted,
                                     (void *)&e->owners,
                                     (void *)&e->total,
                                     &only,
                                     (void *)&e->weights,
                                     (void *)&e->globals,
                                     &block,
                                     (void *)&e->most,
                                     (void *)&e->top,
                                     (void *)&e->count,
                                     (void *)&e->pairs,
                                     (void *)&p->n,
                                     (void *)&p->k,
                                     (void *)&p->groups,
                                     &outputs,
                                     &bits,
                                     &codes,
                                     &scale,
                                     &scale_bytes,
                                     &bf16,
                                     &scale_factor,
                                     &factor});
}

/* x [tokens,columns] with columns of 0 up to k. */
static int widen(nb_tensor *out, experts *e, const nb_tensor *x) {
  NB_TRY(nb_cuda_marlin_gemm_widen(out, &e->p, x));
  e->x = out->data;
  return NB_OK;
}

static int multiply(experts *e, const nb_tensor *x, int outputs) {
  nb_tensor ordered = {0};
  bool whole = nb_cuda_marlin_gemm_whole(&e->p);
  int rc = e->p.g_idx && whole ? find_irregular(e) : NB_OK;
  if (rc == NB_OK && e->p.perm) rc = gather(&ordered, e);
  else if (rc == NB_OK && e->columns < e->p.k) rc = widen(&ordered, e, x);
  if (rc == NB_OK && whole) rc = by_tensor_cores(e, outputs);
  if (rc == NB_OK && (e->p.g_idx || !whole)) rc = by_rows(e, outputs);
  nb_tensor_release(&ordered); /* the driver waits for the kernels before it gives memory away */
  nb_tensor_release(&e->irregular);
  return rc;
}

int nb_device_marlin_moe_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                              const nb_moe_blocks *blocks, const nb_tensor *row_scale) {
  experts e;
  nb_tensor to;
  NB_TRY(check(&e, y, x, w, blocks, row_scale));
  int64_t outputs;
  NB_TRY(nb_cuda_marlin_gemm_outputs(&outputs, y, e.p.n, what));
  NB_TRY(nb_cuda_result(&to, y, e.p.d, e.p.dtype, 2, NB_SHAPE(e.pairs, outputs), "marlin moe gemm: y"));
  e.y = to.data;
  int rc = NB_OK;
  if (e.pairs && outputs && e.most)
    rc = to.data == x->data ? nb_fail(NB_EINVAL, "%s: cannot be done in place", what)
                            : multiply(&e, x, (int)outputs);
  return nb_cuda_finish(y, &to, rc);
}
