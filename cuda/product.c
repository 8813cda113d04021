/* product.c - y = x W on a device, W in Marlin's layout: kernels/product.cu and product_float.cu, launched for up to 128 rows of x at a
 * time; kernels/product_rows.cu brings x into the order of the weight's rows, and takes what product.cu can't. */
#include "blas.h"
#include "kernels/product.h"
#include "layout/layout.h"
#include "product.h"

#include <stdio.h>

enum { COLUMNS = NB_PRODUCT_COLUMNS, ROWS = 128, MOST_TILES = NB_PRODUCT_MOST_TILES, PART_BYTES = 128 << 10 };
enum { GRID = 65535 }; /* blocks of a launch along y */
enum { LARGE = 256 };  /* rows beyond which it pays to make the weight floats first (product_large.c) */

static const char what[] = "marlin gemm";

typedef nb_cuda_marlin_gemm product;

/* ---- checks (MRL-51) ------------------------------------------------------------------- */

static bool empty(const nb_tensor *t) { return !t || nb_tensor_numel(t) == 0; }

int nb_cuda_marlin_gemm_place(const void **at, product *p, const nb_tensor *t, const char *name, int dtype,
                              int ndim, const int64_t *shape) {
  nb_tensor seen;
  char text[64];
  snprintf(text, sizeof text, "%s: %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, &p->d, t, text));
  *at = t->data;
  if (dtype == -1) return nb_expect_words(&seen, text, ndim, shape);
  return nb_expect(&seen, text, dtype == -2 ? t->dtype : dtype, ndim, shape);
}

int nb_cuda_marlin_gemm_outputs(int64_t *outputs, const nb_tensor *y, int n, const char *asks) {
  *outputs = y->ndim == 2 ? y->shape[1] : n;
  if (*outputs <= n && *outputs % 2 == 0) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: y has %lld columns for N = %d, expected an even number up to it", asks,
                 (long long)*outputs, n);
}

/* An order of rows and their groups, which only the kernels look at: what is out of range makes NaN. */
static int check_order(product *p) {
  const nb_marlin_weight *w = p->w;
  if (empty(w->perm) != empty(w->g_idx))
    return nb_fail(NB_EINVAL, "%s: perm and g_idx belong together, found only %s", what,
                   empty(w->perm) ? "g_idx" : "perm");
  if (empty(w->perm)) {
    if (p->group) return NB_OK;
    return nb_fail(NB_EINVAL, "%s: K = %d is not a multiple of the %d groups of scales", what, p->k,
                   p->groups);
  }
  if (w->k_full && p->groups <= 1)
    return nb_fail(NB_EINVAL, "%s: an activation order over the full K needs more than one group, found %d",
                   what, p->groups);
  NB_TRY(nb_cuda_marlin_gemm_place(&p->perm, p, w->perm, "perm", NB_I32, 1, NB_SHAPE(p->k)));
  return nb_cuda_marlin_gemm_place(&p->g_idx, p, w->g_idx, "g_idx", NB_I32, 1, NB_SHAPE(p->k));
}

int nb_cuda_marlin_gemm_check(product *p, const nb_tensor *x, const nb_marlin_weight *w,
                              const nb_tensor *row_scale) {
  const void *at;
  *p = (product){.w = w, .dtype = x->dtype};
  NB_TRY(nb_cuda_marlin_gemm_place(&at, p, x, "x", x->dtype, 2, NB_SHAPE(-1, -1)));
  if (x->dtype != NB_F16 && x->dtype != NB_BF16)
    return nb_fail(NB_EINVAL, "%s: on a device x is f16 or bf16, found %s", what, nb_dtype_name(x->dtype));
  NB_TRY(nb_cuda_marlin_kind(w, what));
  p->k = (int)w->k, p->n = (int)w->n;
  if (x->shape[1] > p->k)
    return nb_fail(NB_EINVAL, "%s: x has %lld columns for K = %d", what, (long long)x->shape[1], p->k);
  NB_TRY(nb_cuda_marlin_gemm_place(&p->words, p, w->words, "words", -1, 2,
                                   NB_SHAPE(w->k / 16, w->n * w->bits / 2)));
  NB_TRY(nb_cuda_marlin_scales(w, what));
  NB_TRY(nb_cuda_marlin_gemm_place(&p->scales, p, w->scales, "scales",
                                   w->scale == NB_MARLIN_FLOAT ? p->dtype : w->scales->dtype, 2,
                                   NB_SHAPE(-1, p->n)));
  int64_t groups = w->scales->shape[0];
  if (groups < 1 || groups > w->k)
    return nb_fail(NB_EINVAL, "%s: K = %d cannot have %lld groups of scales", what, p->k, (long long)groups);
  p->groups = (int)groups;
  p->group = p->k % p->groups ? 0 : p->k / p->groups;
  if (w->zeros && w->code == NB_MARLIN_INT)
    NB_TRY(nb_cuda_marlin_gemm_place(&p->zeros, p, w->zeros, "zero-points", -1, 2,
                                     NB_SHAPE(groups, w->n * w->bits / 32)));
  if (w->bias) NB_TRY(nb_cuda_marlin_gemm_place(&p->bias, p, w->bias, "bias", p->dtype, 1, NB_SHAPE(p->n)));
  if (row_scale) {
    NB_TRY(nb_cuda_marlin_gemm_place(&at, p, row_scale, "row scales", NB_F32, 2, NB_SHAPE(x->shape[0], 1)));
    p->row_scale = at;
  }
  return check_order(p);
}

static bool fp8(const nb_marlin_weight *w) {
  return w->code == NB_MARLIN_E4M3 && w->scale == NB_MARLIN_FLOAT;
}
/* What FP8 scales are multiplied by for Marlin's kernels, which product_float.cu takes off again. (MRL-48) */
static double fp8_unit(int dtype) { return dtype == NB_F16 ? 0x1p8 : 0x1p120; }

bool nb_cuda_marlin_gemm_whole(const product *p) {
  const nb_marlin_weight *w = p->w;
  if (w->a8) return true;
  if (w->scale == NB_MARLIN_S0E5M3) return p->groups > 1 && p->group == 16;
  if (w->scale == NB_MARLIN_E8M0 && p->groups == 1) return false;
  if (fp8(w) && w->scale_factor * fp8_unit(p->dtype) != 1) return false;
  return p->groups == 1 || p->group == 32 || p->group == 64 || (p->group && p->group % 128 == 0);
}

const char *nb_cuda_marlin_gemm_format(const nb_marlin_weight *w) {
  if (w->a8) return nb_cuda_product_a8_format(w);
  if (w->code == NB_MARLIN_INT) return w->bits == 4 ? "w4" : "w8";
  if (w->scale == NB_MARLIN_E8M0) return w->bits == 4 ? "mxfp4" : "mxfp8";
  return w->bits == 4 ? "nvfp4" : "fp8";
}

int nb_cuda_marlin_gemm_stage(const product *p, int blocks) {
  if (p->w->a8) return nb_cuda_product_a8_stage(p, blocks);
  int rows = p->groups == 1 ? 1 : NB_MAX(1, nb_product_k(blocks) / p->group);
  return nb_product_stage_bytes(blocks, p->w->bits, rows, p->w->scale == NB_MARLIN_FLOAT ? 2 : 1,
                                p->zeros && p->groups > 1);
}

/* What FP8 scales carry their kernels know. */
float nb_cuda_marlin_gemm_factor(const product *p) {
  if (p->w->a8) return nb_cuda_product_a8_factor(p);
  return (float)(p->w->global * (fp8(p->w) ? 1 : p->w->scale_factor));
}

/* ---- launches ---------------------------------------------------------------------------- */

int nb_cuda_marlin_gemm_workspace(product *p) {
  nb_device_info info;
  void *at;
  NB_TRY(nb_device_get(&info, p->d->number));
  int64_t parts = (int64_t)NB_MAX(info.multiprocessors, 1) * PART_BYTES, own = 64;
  NB_TRY(nb_cuda_workspace(&at, p->d, NB_CUDA_FOR_PRODUCT,
                           (own + MOST_TILES) * (int64_t)sizeof(int32_t) + parts));
  p->irregular = at;
  p->arrived = p->irregular + own;
  p->parts = p->arrived + MOST_TILES;
  return NB_OK;
}

int nb_cuda_marlin_gemm_gather(void *out, const product *p, const void *from, int64_t m, int columns, int k,
                               int32_t *irregular) {
  int threads = NB_PRODUCT_THREADS;
  for (int64_t row = 0; row < m; row += GRID) {
    const void *x = (const uint16_t *)from + row * columns, *to = (uint16_t *)out + row * k;
    nb_launch at = {{NB_CEIL(k, threads), (int32_t)NB_MIN((int64_t)GRID, m - row), 1},
                    {threads, 1, 1},
                    nb_product_rows_bytes()};
    NB_TRY(nb_device_launch(p->d->number, "nb_product_gather", &at,
                            (void *[]){&x, (void *)&p->perm, (void *)&p->g_idx, &to, &irregular, &columns, &k,
                                       (void *)&p->group}));
  }
  return NB_OK;
}

int nb_cuda_marlin_gemm_widen(nb_tensor *out, const product *p, const nb_tensor *x) {
  int at_once = (int)(16 / nb_dtype_bits(x->dtype)); /* numbers in 2 bytes */
  NB_TRY(nb_cuda_tensor(out, p->d, x->dtype, 2, NB_SHAPE(x->shape[0], p->k)));
  return nb_cuda_marlin_gemm_gather(out->data, p, x->data, x->shape[0], (int)x->shape[1] / at_once,
                                    p->k / at_once, NULL);
}

/* x [m,columns] as [m,k] in the order of the weight's rows; looks at the order where only then it is known. */
static int gather(nb_tensor *out, const product *p, const nb_tensor *x) {
  int32_t *irregular = p->g_idx && nb_cuda_marlin_gemm_whole(p) ? p->irregular : NULL;
  NB_TRY(nb_cuda_tensor(out, p->d, p->dtype, 2, NB_SHAPE(x->shape[0], p->k)));
  return nb_cuda_marlin_gemm_gather(out->data, p, x->data, x->shape[0], (int)x->shape[1], p->k, irregular);
}

/* y [m,outputs] = x [m,k] W for m up to ROWS by tensor cores; nothing where the weight's order is irregular. */
static int product_small(const product *p, const void *y, const void *x, const float *row_scale, int m,
                         int outputs) {
  const int blocks = nb_cuda_marlin_gemm_blocks(m), across = NB_CEIL(m, blocks * 16), bits = p->w->bits,
            stage_k = nb_product_k(blocks);
  char name[48];
  snprintf(name, sizeof name, "nb_product_%s_%s_m%d", nb_dtype_name(p->dtype),
           nb_cuda_marlin_gemm_format(p->w), blocks * 16);
  int64_t resident, all = NB_CEIL((int64_t)p->n, COLUMNS) * NB_CEIL((int64_t)p->k, stage_k);
  nb_launch at = {
      {1, across, 1}, {NB_PRODUCT_THREADS, 1, 1}, NB_PRODUCT_STAGES * nb_cuda_marlin_gemm_stage(p, blocks)};
  NB_TRY(nb_cuda_resident(&resident, p->d, nb_product_resident(blocks, bits), at.shared_bytes));
  at.grid[0] = (int32_t)NB_CEIL(all, NB_CEIL(all, NB_MAX(resident / across, 1))); /* no block without work */
  const void *needless = p->g_idx ? p->irregular : NULL;
  float factor = nb_cuda_marlin_gemm_factor(p);
  return nb_device_launch(p->d->number, name, &at,
                          (void *[]){&x, (void *)&p->words, (void *)&p->scales, (void *)&p->zeros,
                                     (void *)&p->bias, &row_scale, &y, (void *)&p->parts, (void *)&p->arrived,
                                     &needless, &m, (void *)&p->n, (void *)&p->k, (void *)&p->group, &outputs,
                                     &factor});
}

/* The same a row of the weight at a time, whatever its groups; where product_small can, only what it left. */
static int product_rows(const product *p, const void *y, const void *x, const float *row_scale, int m,
                        int outputs) {
  const void *needed = p->g_idx && nb_cuda_marlin_gemm_whole(p) ? p->irregular : NULL;
  nb_launch at = {{p->n / 64, NB_CEIL(m, NB_PRODUCT_ROWS_AT_ONCE), 1},
                  {NB_PRODUCT_THREADS, 1, 1},
                  nb_product_rows_bytes()};
  float scale_factor = (float)p->w->scale_factor, factor = (float)p->w->global;
  int bits = p->w->bits, bf16 = p->dtype == NB_BF16, codes = nb_cuda_marlin_codes(p->w),
      scale = nb_cuda_marlin_scale(p->w);
  return nb_device_launch(p->d->number, "nb_product_rows", &at,
                          (void *[]){&x,
                                     (void *)&p->words,
                                     (void *)&p->scales,
                                     (void *)&p->zeros,
                                     (void *)&p->g_idx,
                                     (void *)&p->bias,
                                     &row_scale,
                                     &y,
                                     &needed,
                                     &m,
                                     (void *)&p->n,
                                     (void *)&p->k,
                                     (void *)&p->groups,
                                     &outputs,
                                     &bits,
                                     &codes,
                                     &scale,
                                     &bf16,
                                     &scale_factor,
                                     &factor});
}

/* y = x W, both of all their rows. */
static int multiply(product *p, const nb_tensor *y, const nb_tensor *x) {
  int64_t m = x->shape[0], outputs = y->shape[1];
  nb_tensor ordered = {0};
  int rc = nb_cuda_marlin_gemm_workspace(p);
  if (rc == NB_OK && (p->perm || x->shape[1] < p->k)) {
    rc = gather(&ordered, p, x);
    x = &ordered;
  }
  for (int64_t row = 0; rc == NB_OK && row < m; row += ROWS) {
    const void *to = (uint16_t *)y->data + row * outputs, *from = (const uint16_t *)x->data + row * p->k;
    const float *scale = p->row_scale ? p->row_scale + row : NULL;
    int rows = (int)NB_MIN((int64_t)ROWS, m - row);
    if (nb_cuda_marlin_gemm_whole(p)) rc = product_small(p, to, from, scale, rows, (int)outputs);
    if (rc == NB_OK && (p->g_idx || !nb_cuda_marlin_gemm_whole(p)))
      rc = product_rows(p, to, from, scale, rows, (int)outputs);
  }
  nb_tensor_release(&ordered); /* the driver waits for the kernels before it gives memory away */
  return rc;
}

/* Many rows by cuBLASLt; where it is not here, has no room, rows have scales, which it hasn't, or an order must be
 * looked at amid a graph, as few rows. */
static int multiply_many(product *p, const nb_tensor *y, const nb_tensor *x) {
  int rc = p->row_scale || (p->perm && p->d->capture) ? NB_EUNSUPPORTED : nb_cuda_marlin_large(y, x, p->w);
  return rc == NB_EUNSUPPORTED || rc == NB_ENOMEM ? multiply(p, y, x) : rc;
}

int nb_device_marlin_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                          const nb_tensor *row_scale) {
  product p;
  nb_tensor to;
  if (w->a8) return nb_cuda_product_a8(y, x, w, row_scale);
  NB_TRY(nb_cuda_marlin_gemm_check(&p, x, w, row_scale));
  int64_t m = x->shape[0], outputs;
  NB_TRY(nb_cuda_marlin_gemm_outputs(&outputs, y, p.n, what));
  NB_TRY(nb_cuda_result(&to, y, p.d, x->dtype, 2, NB_SHAPE(m, outputs), "marlin gemm: y"));
  int rc = NB_OK;
  if (m && outputs)
    rc = to.data == x->data ? nb_fail(NB_EINVAL, "%s: cannot be done in place", what)
         : m > LARGE        ? multiply_many(&p, &to, x)
                            : multiply(&p, &to, x);
  return nb_cuda_finish(y, &to, rc);
}
