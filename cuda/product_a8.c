/* product_a8.c - y = x W on a device for x of one byte a number and W in Marlin's order for such: kernels/product_a8.cu
 * launched for as many rows of x as its workspace has room for; and what experts' products (product_experts.c) ask of
 * such weights. */
#include "kernels/product_a8.h"
#include "layout/layout.h"
#include "product.h"

#include <stdio.h>

enum { COLUMNS = NB_PRODUCT_COLUMNS };

static const char what[] = "marlin gemm";

/* What is multiplied: codes, the numbers of x that go with them, and their kernel; what it multiplies with is so many
 * times smaller than the weights (product_a8_codes.cuh). */
typedef struct kind {
  int code, bits, x, scale, zeros;
  const char *kernel, *codes;
  double unit;
} kind;

static const kind kinds[] = {
    {NB_MARLIN_INT, 4, NB_I8, NB_MARLIN_FLOAT, 1, "int4", "integers of 4 bits", 1},
    {NB_MARLIN_INT, 8, NB_I8, NB_MARLIN_FLOAT, 0, "int8", "integers of 8 bits", 1},
    {NB_MARLIN_FOLDED, 4, NB_F8_E4M3, NB_MARLIN_FLOAT, 1, "folded4", "folded integers of 4 bits", 0x1p9},
    {NB_MARLIN_E4M3, 8, NB_F8_E4M3, NB_MARLIN_FLOAT, 0, "e4m3", "e4m3 numbers", 1},
    {NB_MARLIN_E2M1, 4, NB_F8_E4M3, NB_MARLIN_E8M0, 0, "e2m1", "e2m1 numbers", 0x1p6},
};

typedef nb_cuda_marlin_gemm product; /* dtype: of y */

/* ---- checks (MRL-47, MRL-51) ----------------------------------------------------------- */

static bool empty(const nb_tensor *t) { return !t || nb_tensor_numel(t) == 0; }

static const kind *kind_of(const nb_marlin_weight *w) {
  for (int i = 0; i < (int)(sizeof kinds / sizeof *kinds); i++)
    if (kinds[i].code == w->code && kinds[i].bits == w->bits) return &kinds[i];
  return NULL;
}

static int check_kind(const nb_marlin_weight *w, const nb_tensor *x) {
  const kind *of = kind_of(w);
  bool int16 = of && of->x == NB_I8 && w->scale == NB_MARLIN_INT16;
  if (!of || (w->scale != of->scale && !int16))
    return nb_fail(
        NB_EUNSUPPORTED,
        "%s: with 8-bit activations weights on a device are integers of 4 or 8 bits, folded ones of "
        "4, e4m3 numbers, or e2m1 ones with e8m0 scales; found codes of kind %d and %d bits with "
        "scales of kind %d",
        what, w->code, w->bits, w->scale);
  if (x->dtype != of->x)
    return nb_fail(NB_EINVAL, "%s: x for %s and 8-bit activations is %s on a device, found %s", what,
                   of->codes, nb_dtype_name(of->x), nb_dtype_name(x->dtype));
  if (w->zeros && !of->zeros)
    return nb_fail(NB_EUNSUPPORTED, "%s: %s have no zero-points with 8-bit activations", what, of->codes);
  if (!empty(w->perm) || !empty(w->g_idx))
    return nb_fail(NB_EINVAL, "%s: an activation order cannot be combined with 8-bit activations", what);
  return nb_cuda_marlin_sizes(w, 32, what);
}

/* y's dtype; where it is made and doesn't say, scales', bias's, or bf16. */
static int dtype_of(const nb_tensor *y, const nb_marlin_weight *w) {
  if (y->data || y->buf || y->dtype == NB_F16 || y->dtype == NB_BF16) return y->dtype;
  if (w->scale == NB_MARLIN_FLOAT || w->scale == NB_MARLIN_INT16) return w->scales->dtype;
  return w->bias ? w->bias->dtype : NB_BF16;
}

static int check_groups(product *p) {
  const nb_marlin_weight *w = p->w;
  int64_t groups = w->scales->shape[0];
  if (groups < 1 || p->k % groups)
    return nb_fail(NB_EINVAL, "%s: K = %d is not a multiple of the %lld groups of scales", what, p->k,
                   (long long)groups);
  p->groups = (int)groups;
  p->group = p->k / p->groups;
  if (groups == 1 || p->group == 32 || p->group == 64 || p->group % 128 == 0) return NB_OK;
  return nb_fail(
      NB_EUNSUPPORTED,
      "%s: with 8-bit activations groups on a device have 32, 64 or a multiple of 128 rows, or there "
      "is one; found %d rows",
      what, p->group);
}

int nb_cuda_product_a8_check(product *p, const nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                             const nb_tensor *row_scale) {
  const void *at;
  *p = (product){.w = w, .dtype = dtype_of(y, w)};
  NB_TRY(nb_cuda_marlin_gemm_place(&at, p, x, "x", -2, 2, NB_SHAPE(-1, -1)));
  NB_TRY(check_kind(w, x));
  p->k = (int)w->k, p->n = (int)w->n;
  if (p->dtype != NB_F16 && p->dtype != NB_BF16)
    return nb_fail(NB_EINVAL, "%s: on a device y is f16 or bf16, found %s", what, nb_dtype_name(p->dtype));
  if (x->shape[1] > p->k || (x->shape[1] < p->k && x->shape[1] % 2))
    return nb_fail(NB_EINVAL, "%s: x has %lld columns for K = %d, expected as many or an even number of less",
                   what, (long long)x->shape[1], p->k);
  NB_TRY(nb_cuda_marlin_gemm_place(&p->words, p, w->words, "words", -1, 2,
                                   NB_SHAPE(w->k / 16, w->n * w->bits / 2)));
  int scales = w->scale == NB_MARLIN_FLOAT ? p->dtype : -2,
      bits = kind_of(p->w)->scale == NB_MARLIN_E8M0 ? 8 : 16;
  NB_TRY(nb_cuda_marlin_gemm_place(&p->scales, p, w->scales, "scales", scales, 2, NB_SHAPE(-1, p->n)));
  if (nb_dtype_bits(w->scales->dtype) != bits)
    return nb_fail(NB_EINVAL, "%s: scales of this weight cannot be %s", what,
                   nb_dtype_name(w->scales->dtype));
  NB_TRY(check_groups(p));
  if (w->zeros)
    NB_TRY(nb_cuda_marlin_gemm_place(&p->zeros, p, w->zeros, "zero-points", -1, 2,
                                     NB_SHAPE(p->groups, w->n / 8)));
  if (w->bias) NB_TRY(nb_cuda_marlin_gemm_place(&p->bias, p, w->bias, "bias", p->dtype, 1, NB_SHAPE(p->n)));
  if (!row_scale) return NB_OK;
  NB_TRY(nb_cuda_marlin_gemm_place(&at, p, row_scale, "row scales", NB_F32, 2, NB_SHAPE(x->shape[0], 1)));
  p->row_scale = at;
  return NB_OK;
}

const char *nb_cuda_product_a8_format(const nb_marlin_weight *w) { return kind_of(w)->kernel; }

int nb_cuda_product_a8_stage(const product *p, int blocks) {
  int groups = NB_MAX(1, nb_product_k(blocks) / p->group),
      scale_bytes = p->w->scale == NB_MARLIN_E8M0 ? 1 : 2;
  return nb_product_a8_stage_bytes(blocks, p->w->bits, groups, scale_bytes, p->zeros != NULL);
}

float nb_cuda_product_a8_factor(const product *p) {
  return (float)(p->w->scale_factor * p->w->global * kind_of(p->w)->unit);
}

/* ---- launches ---------------------------------------------------------------------------- */

/* y = x W of all rows, as many in a launch as blocks that are there at once take: for each the workspace has room. */
static int multiply(product *p, const nb_tensor *y, const nb_tensor *x) {
  int64_t m = x->shape[0], resident, columns = y->shape[1], tiles = NB_CEIL((int64_t)p->n, COLUMNS);
  const int blocks = nb_cuda_marlin_gemm_blocks(m), bits = p->w->bits, stage_k = nb_product_k(blocks);
  nb_launch at = {
      {1, 1, 1}, {NB_PRODUCT_THREADS, 1, 1}, NB_PRODUCT_STAGES * nb_cuda_product_a8_stage(p, blocks)};
  char name[48];
  snprintf(name, sizeof name, "nb_product_a8_%s_%s_m%d", nb_dtype_name(p->dtype),
           nb_cuda_product_a8_format(p->w), 16 * blocks);
  NB_TRY(nb_cuda_marlin_gemm_workspace(p));
  NB_TRY(nb_cuda_resident(&resident, p->d, nb_product_resident(blocks, bits), at.shared_bytes));
  int64_t all = tiles * NB_CEIL((int64_t)p->k, stage_k), rows = 16 * blocks * resident;
  float factor = nb_cuda_product_a8_factor(p);
  int whole = p->w->scale == NB_MARLIN_INT16, outputs = (int)columns;
  for (int64_t row = 0; row < m; row += rows) {
    int now = (int)NB_MIN(rows, m - row);
    at.grid[1] = NB_CEIL(now, 16 * blocks);
    at.grid[0] =
        (int32_t)NB_CEIL(all, NB_CEIL(all, NB_MAX(resident / at.grid[1], 1))); /* no block without work */
    const void *from = (const char *)x->data + row * p->k, *to = (uint16_t *)y->data + row * columns;
    const float *row_scale = p->row_scale ? p->row_scale + row : NULL;
    NB_TRY(nb_device_launch(p->d->number, name, &at,
                            (void *[]){&from, (void *)&p->words, (void *)&p->scales, (void *)&p->zeros,
                                       (void *)&p->bias, &row_scale, &to, &p->parts, &p->arrived, &now, &p->n,
                                       &p->k, &p->group, &outputs, &whole, &factor}));
  }
  return NB_OK;
}

int nb_cuda_product_a8(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                       const nb_tensor *row_scale) {
  product p;
  nb_tensor to, widened = {0};
  NB_TRY(nb_cuda_product_a8_check(&p, y, x, w, row_scale));
  int64_t outputs;
  NB_TRY(nb_cuda_marlin_gemm_outputs(&outputs, y, p.n, what));
  NB_TRY(nb_cuda_result(&to, y, p.d, p.dtype, 2, NB_SHAPE(x->shape[0], outputs), "marlin gemm: y"));
  int rc = NB_OK;
  if (x->shape[0] && outputs) {
    if (x->shape[1] < p.k) rc = nb_cuda_marlin_gemm_widen(&widened, &p, x);
    if (rc == NB_OK) rc = multiply(&p, &to, widened.data ? &widened : x);
    nb_tensor_release(&widened); /* the driver waits for the kernels before it gives memory away */
  }
  return nb_cuda_finish(y, &to, rc);
}
