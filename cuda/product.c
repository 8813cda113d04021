/* product.c - y = x W on a device, W in Marlin's layout: kernels/product.cu, launched for up to 128 rows of x at a
 * time. */
#include "device.h"
#include "kernels/product.h"
#include "layout/layout.h"

#include <stdio.h>

enum { COLUMNS = NB_PRODUCT_COLUMNS, ROWS = 128, MOST_TILES = 1 << 16, PART_BYTES = 128 << 10 };

static const char what[] = "marlin gemm";

/* The operands, checked; dimensions as the kernels take them. */
typedef struct product {
  nb_cuda_device *d;
  const nb_marlin_weight *w;
  const nb_tensor *x;
  int k, n, bits, group;
} product;

/* ---- checks (MRL-51) ------------------------------------------------------------------- */

static bool empty(const nb_tensor *t) { return !t || nb_tensor_numel(t) == 0; }

static int check_float(product *p, const nb_tensor *t, const char *name, int ndim, const int64_t *shape) {
  nb_tensor seen;
  char text[64];
  snprintf(text, sizeof text, "%s: %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, &p->d, t, text));
  return nb_expect(&seen, text, p->x->dtype, ndim, shape);
}

static int check_words(product *p, const nb_tensor *t, const char *name, int64_t rows, int64_t columns) {
  nb_tensor seen;
  char text[64];
  snprintf(text, sizeof text, "%s: %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, &p->d, t, text));
  return nb_expect_words(&seen, text, 2, NB_SHAPE(rows, columns));
}

static int check_kind(const nb_marlin_weight *w) {
  if (w->code != NB_MARLIN_INT || w->a8 || w->scale != NB_MARLIN_FLOAT)
    return nb_fail(
        NB_EUNSUPPORTED,
        "%s: on a device weights are integers and activations have 16 bits; float weights and 8-bit "
        "activations are multiplied in the computer's memory only",
        what);
  if (w->bits != 4 && w->bits != 8)
    return nb_fail(NB_EINVAL, "%s: bits must be 4 or 8, found %d", what, w->bits);
  if (w->k % 16 || w->k <= 0)
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of 16", what, (long long)w->k);
  if (w->n % 64 || w->n <= 0)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of 64", what, (long long)w->n);
  if (w->k > INT32_MAX || w->k / 16 * (w->n * w->bits / 8) > INT32_MAX ||
      w->n > (int64_t)MOST_TILES / 2 * COLUMNS)
    return nb_fail(NB_EUNSUPPORTED, "%s: a weight of K = %lld and N = %lld is more than a launch can count",
                   what, (long long)w->k, (long long)w->n);
  return NB_OK;
}

static int check_groups(product *p, int64_t groups) {
  if (groups == 0 || p->k % groups)
    return nb_fail(NB_EINVAL, "%s: K = %d is not a multiple of the %lld groups of scales", what, p->k,
                   (long long)groups);
  p->group = (int)(p->k / groups);
  if (groups == 1 || p->group == 32 || p->group == 64 || p->group % 128 == 0) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED,
                 "%s: groups of %d rows: on a device 32, 64 and multiples of 128 are supported", what,
                 p->group);
}

static int check(product *p, const nb_tensor *x, const nb_marlin_weight *w) {
  nb_tensor seen;
  *p = (product){.w = w, .x = x};
  NB_TRY(nb_cuda_operand(&seen, &p->d, x, "marlin gemm: x"));
  NB_TRY(nb_expect(&seen, "marlin gemm: x", -1, 2, NB_SHAPE(-1, -1)));
  if (x->dtype != NB_F16 && x->dtype != NB_BF16)
    return nb_fail(NB_EINVAL, "%s: on a device x is f16 or bf16, found %s", what, nb_dtype_name(x->dtype));
  NB_TRY(check_kind(w));
  p->k = (int)w->k, p->n = (int)w->n, p->bits = w->bits;
  if (x->shape[1] > p->k)
    return nb_fail(NB_EINVAL, "%s: x has %lld columns for K = %d", what, (long long)x->shape[1], p->k);
  if (x->shape[1] < p->k)
    return nb_fail(NB_EUNSUPPORTED, "%s: on a device x must have all K = %d columns, found %lld", what, p->k,
                   (long long)x->shape[1]);
  NB_TRY(check_words(p, w->words, "words", p->k / 16, (int64_t)p->n * p->bits / 2));
  NB_TRY(check_float(p, w->scales, "scales", 2, NB_SHAPE(-1, p->n)));
  int64_t groups = w->scales->shape[0];
  if (w->zeros) NB_TRY(check_words(p, w->zeros, "zero-points", groups, (int64_t)p->n * p->bits / 32));
  if (w->bias) NB_TRY(check_float(p, w->bias, "bias", 1, NB_SHAPE(p->n)));
  if (!empty(w->perm) || !empty(w->g_idx))
    return nb_fail(NB_EUNSUPPORTED, "%s: on a device weights in activation order are not multiplied yet",
                   what);
  return check_groups(p, groups);
}

/* ---- launches ---------------------------------------------------------------------------- */

/* The current stream's counts of blocks that arrived, all 0 between launches, and behind them their parts. */
static int scratch_of(void **out, nb_cuda_device *d) {
  nb_device_info info;
  NB_TRY(nb_device_get(&info, d->number));
  return nb_cuda_workspace(out, d, NB_CUDA_FOR_PRODUCT,
                           MOST_TILES * (int64_t)sizeof(int32_t) +
                               (int64_t)NB_MAX(info.multiprocessors, 1) * PART_BYTES);
}

/* y = x W, m rows, at most ROWS. */
static int product_small(const product *p, void *y, const void *x, int m, int outputs) {
  const nb_marlin_weight *w = p->w;
  const int blocks = m <= 16 ? 1 : m <= 32 ? 2 : 4, across = NB_CEIL(m, blocks * 16);
  const int stage_k = nb_product_k(blocks), group_rows = p->group == p->k ? 1 : NB_MAX(1, stage_k / p->group);
  const int shared =
      NB_PRODUCT_STAGES * nb_product_stage_bytes(blocks, p->bits, group_rows, w->zeros && p->group < p->k);
  char name[48];
  void *arrived;
  int64_t resident, all = NB_CEIL((int64_t)p->n, COLUMNS) * NB_CEIL((int64_t)p->k, stage_k);
  NB_TRY(scratch_of(&arrived, p->d));
  NB_TRY(nb_cuda_resident(&resident, p->d, nb_product_resident(blocks, p->bits), shared));
  int64_t per = NB_CEIL(all, NB_MAX(resident / across, 1));
  snprintf(name, sizeof name, "nb_product_%s_w%d_m%d", nb_dtype_name(p->x->dtype), p->bits, blocks * 16);
  nb_launch at = {{(int32_t)NB_CEIL(all, per), across, 1}, {NB_PRODUCT_THREADS, 1, 1}, shared};
  const void *words = w->words->data, *scales = w->scales->data, *zeros = w->zeros ? w->zeros->data : NULL,
             *bias = w->bias ? w->bias->data : NULL;
  void *parts = (char *)arrived + MOST_TILES * sizeof(int32_t);
  int k = p->k, n = p->n, group = p->group;
  float factor = (float)(w->scale_factor * w->global);
  return nb_device_launch(p->d->number, name, &at,
                          (void *[]){&x, &words, &scales, &zeros, &bias, &y, &parts, &arrived, &m, &n, &k,
                                     &group, &outputs, &factor});
}

int nb_device_marlin_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w) {
  product p;
  nb_tensor to;
  NB_TRY(check(&p, x, w));
  int64_t m = x->shape[0], outputs = y->data || y->buf ? y->shape[NB_MAX(y->ndim, 1) - 1] : p.n;
  if (outputs > p.n || outputs % 2)
    return nb_fail(NB_EINVAL, "%s: y has %lld columns for N = %d, expected an even number up to it", what,
                   (long long)outputs, p.n);
  NB_TRY(nb_cuda_result(&to, y, p.d, x->dtype, 2, NB_SHAPE(m, outputs), "marlin gemm: y"));
  int rc =
      to.data == x->data && m && outputs ? nb_fail(NB_EINVAL, "%s: cannot be done in place", what) : NB_OK;
  for (int64_t row = 0; rc == NB_OK && outputs && row < m; row += ROWS)
    rc = product_small(&p, (uint16_t *)to.data + row * outputs, (const uint16_t *)x->data + row * p.k,
                       (int)NB_MIN((int64_t)ROWS, m - row), (int)outputs);
  return nb_cuda_finish(y, &to, rc);
}
