/* product_a8.c - y = x W on a device for x of one byte a number and W in Marlin's order for such: kernels/product_a8.cu
 * launched for as many rows of x as its workspace has room for. */
#include "kernels/product_a8.h"
#include "layout/layout.h"
#include "product.h"

#include <stdio.h>

enum { COLUMNS = NB_PRODUCT_COLUMNS, MOST_TILES = NB_PRODUCT_MOST_TILES, GRID = 65535 };

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

/* The operands, checked, as the kernels take them. */
typedef struct product {
  nb_cuda_device *d;
  const nb_marlin_weight *w;
  const kind *kind;
  int dtype, k, n, groups, group; /* of y */
  const void *words, *scales, *zeros, *bias;
  const float *row_scale; /* or NULL */
} product;

/* ---- checks (MRL-47, MRL-51) ----------------------------------------------------------- */

static bool empty(const nb_tensor *t) { return !t || nb_tensor_numel(t) == 0; }

/* Where a tensor lies, which must be of this dtype (-1: words, -2: any) and shape. */
static int place_of(const void **at, product *p, const nb_tensor *t, const char *name, int dtype, int ndim,
                    const int64_t *shape) {
  nb_tensor seen;
  char text[64];
  snprintf(text, sizeof text, "%s: %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, &p->d, t, text));
  *at = t->data;
  if (dtype == -1) return nb_expect_words(&seen, text, ndim, shape);
  return nb_expect(&seen, text, dtype == -2 ? t->dtype : dtype, ndim, shape);
}

static int check_kind(product *p, const nb_tensor *x) {
  const nb_marlin_weight *w = p->w;
  for (int i = 0; i < (int)(sizeof kinds / sizeof *kinds); i++)
    if (kinds[i].code == w->code && kinds[i].bits == w->bits) p->kind = &kinds[i];
  const kind *of = p->kind;
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
  if (w->k % 32 || w->k <= 0)
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of 32", what, (long long)w->k);
  if (w->n % 64 || w->n <= 0)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 64", what, (long long)w->n);
  /* Kernels count 16-byte pieces of words in 32 bits, and tiles of 128 columns. */
  if (w->k > INT32_MAX || w->n > (int64_t)MOST_TILES / 2 * COLUMNS ||
      w->k / 16 * (w->n * w->bits / 8) > INT32_MAX / 2)
    return nb_fail(NB_EUNSUPPORTED, "%s: a weight of K = %lld and N = %lld is more than a launch can count",
                   what, (long long)w->k, (long long)w->n);
  return NB_OK;
}

/* y's dtype, which nothing says where it is made, scales are bytes and there is no bias. */
static int dtype_of(const nb_tensor *y, const nb_marlin_weight *w) {
  if (y->data || y->buf) return y->dtype;
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

static int check(product *p, const nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                 const nb_tensor *row_scale) {
  const void *at;
  *p = (product){.w = w, .dtype = dtype_of(y, w)};
  NB_TRY(place_of(&at, p, x, "x", -2, 2, NB_SHAPE(-1, -1)));
  NB_TRY(check_kind(p, x));
  p->k = (int)w->k, p->n = (int)w->n;
  if (p->dtype != NB_F16 && p->dtype != NB_BF16)
    return nb_fail(NB_EINVAL, "%s: on a device y is f16 or bf16, found %s", what, nb_dtype_name(p->dtype));
  if (x->shape[1] > p->k || (x->shape[1] < p->k && x->shape[1] % 2))
    return nb_fail(NB_EINVAL, "%s: x has %lld columns for K = %d, expected as many or an even number of less",
                   what, (long long)x->shape[1], p->k);
  NB_TRY(place_of(&p->words, p, w->words, "words", -1, 2, NB_SHAPE(w->k / 16, w->n * w->bits / 2)));
  int scales = w->scale == NB_MARLIN_FLOAT ? p->dtype : -2, bits = p->kind->scale == NB_MARLIN_E8M0 ? 8 : 16;
  NB_TRY(place_of(&p->scales, p, w->scales, "scales", scales, 2, NB_SHAPE(-1, p->n)));
  if (nb_dtype_bits(w->scales->dtype) != bits)
    return nb_fail(NB_EINVAL, "%s: scales of this weight cannot be %s", what,
                   nb_dtype_name(w->scales->dtype));
  NB_TRY(check_groups(p));
  if (w->zeros) NB_TRY(place_of(&p->zeros, p, w->zeros, "zero-points", -1, 2, NB_SHAPE(p->groups, w->n / 8)));
  if (w->bias) NB_TRY(place_of(&p->bias, p, w->bias, "bias", p->dtype, 1, NB_SHAPE(p->n)));
  if (!row_scale) return NB_OK;
  NB_TRY(place_of(&at, p, row_scale, "row scales", NB_F32, 2, NB_SHAPE(x->shape[0], 1)));
  p->row_scale = at;
  return NB_OK;
}

/* ---- launches ---------------------------------------------------------------------------- */

/* x [m,columns] with columns of 0 up to k, two at a time. */
static int widen(nb_tensor *out, const product *p, const nb_tensor *x) {
  NB_TRY(nb_cuda_tensor(out, p->d, x->dtype, 2, NB_SHAPE(x->shape[0], p->k)));
  int columns = (int)x->shape[1] / 2, k = p->k / 2, threads = NB_PRODUCT_THREADS;
  for (int64_t row = 0; row < x->shape[0]; row += GRID) {
    const void *from = (const char *)x->data + row * x->shape[1], *to = (char *)out->data + row * p->k,
               *none = NULL;
    nb_launch at = {{NB_CEIL(k, threads), (int32_t)NB_MIN((int64_t)GRID, x->shape[0] - row), 1},
                    {threads, 1, 1},
                    nb_product_rows_bytes()};
    NB_TRY(nb_device_launch(p->d->number, "nb_product_gather", &at,
                            (void *[]){&from, &none, &none, &to, &none, &columns, &k, &k}));
  }
  return NB_OK;
}

/* y = x W of all rows, as many in a launch as blocks that are there at once take: for each the workspace has room. */
static int multiply(product *p, const nb_tensor *y, const nb_tensor *x) {
  int64_t m = x->shape[0], resident, columns = y->shape[1], tiles = NB_CEIL((int64_t)p->n, COLUMNS);
  const int blocks = m <= 16   ? 1
                     : m <= 32 ? 2
                               : 4,
            bits = p->w->bits, stage_k = nb_product_k(blocks), staged = NB_MAX(1, stage_k / p->group),
            scale_bytes = p->kind->scale == NB_MARLIN_E8M0 ? 1 : 2;
  nb_launch at = {{1, 1, 1},
                  {NB_PRODUCT_THREADS, 1, 1},
                  NB_PRODUCT_STAGES *
                      nb_product_a8_stage_bytes(blocks, bits, staged, scale_bytes, p->zeros != NULL)};
  char name[48];
  snprintf(name, sizeof name, "nb_product_a8_%s_%s_m%d", nb_dtype_name(p->dtype), p->kind->kernel,
           16 * blocks);
  nb_cuda_marlin_gemm room = {.d = p->d};
  NB_TRY(nb_cuda_marlin_gemm_workspace(&room));
  NB_TRY(nb_cuda_resident(&resident, p->d, nb_product_resident(blocks, bits), at.shared_bytes));
  int64_t all = tiles * NB_CEIL((int64_t)p->k, stage_k), rows = 16 * blocks * resident;
  float factor = (float)(p->w->scale_factor * p->w->global * p->kind->unit);
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
                                       (void *)&p->bias, &row_scale, &to, &room.parts, &room.arrived, &now,
                                       &p->n, &p->k, &p->group, &outputs, &whole, &factor}));
  }
  return NB_OK;
}

int nb_cuda_product_a8(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                       const nb_tensor *row_scale) {
  product p;
  nb_tensor to, widened = {0};
  NB_TRY(check(&p, y, x, w, row_scale));
  int64_t outputs = y->ndim == 2 ? y->shape[1] : p.n;
  if (outputs > p.n || outputs % 2)
    return nb_fail(NB_EINVAL, "%s: y has %lld columns for N = %d, expected an even number up to it", what,
                   (long long)outputs, p.n);
  NB_TRY(nb_cuda_result(&to, y, p.d, p.dtype, 2, NB_SHAPE(x->shape[0], outputs), "marlin gemm: y"));
  int rc = NB_OK;
  if (x->shape[0] && outputs) {
    if (x->shape[1] < p.k) rc = widen(&widened, &p, x);
    if (rc == NB_OK) rc = multiply(&p, &to, widened.data ? &widened : x);
    nb_tensor_release(&widened); /* the driver waits for the kernels before it gives memory away */
  }
  return nb_cuda_finish(y, &to, rc);
}
