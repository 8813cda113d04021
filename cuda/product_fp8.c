/* product_fp8.c - y = x w^T of FP8 codes on a device: by cuBLASLt where it has the scales' kind and there are many rows
 * of x, by kernels/product_fp8.cu everywhere else (SYSTEMS CTM-FP8-01). */
#include "blas.h"
#include "kernels/product_fp8.h"

#include <stdio.h>

/* Rows of x that nibble's own kernel is for wherever it runs; rows that its grid has room for along y. */
enum { FEW = 16, MOST_ROWS = 65535 * 32, GROUP = NB_FP8_GROUP, ORDER_THREADS = 256, ORDER_BLOCKS = 1024 };

static const char what[] = "fp8 gemm";

/* One of the two matrices: its codes' and scales' places. */
typedef struct side {
  const void *codes, *scales;
  nb_fp8_scales at;
} side;

typedef struct product {
  nb_cuda_device *d;
  side x, w;
  int m, n, k, groups, dtype; /* groups: of 128 columns of k */
  const void *bias;
  void *y;
} product;

/* ---- checks ---------------------------------------------------------------------------- */

static int codes_of(side *s, nb_cuda_device **d, const nb_tensor *t, int64_t k, const char *name) {
  nb_tensor seen;
  char text[32];
  snprintf(text, sizeof text, "%s: %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, d, t, text));
  if (t->dtype == NB_F8_E4M3FNUZ)
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: f8_e4m3fnuz is the format of other makers' devices, NVIDIA's take f8_e4m3", text);
  NB_TRY(nb_expect(&seen, text, NB_F8_E4M3, 2, NB_SHAPE(-1, k)));
  if (t->shape[0] > MOST_ROWS || t->shape[1] > INT32_MAX - GROUP ||
      t->shape[0] * (t->shape[1] / 16) > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld rows of %lld codes are more than a launch can count", text,
                   (long long)t->shape[0], (long long)t->shape[1]);
  s->codes = t->data;
  return NB_OK;
}

/* Scales of `rows` rows: one; one a row ([rows,1] or [rows]); one for each `block` rows by 128 columns. */
static int scales_of(side *s, nb_cuda_device **d, const nb_tensor *t, int rows, int groups, int block,
                     const char *name) {
  nb_tensor seen;
  char text[32];
  snprintf(text, sizeof text, "%s: scales of %s", what, name);
  NB_TRY(nb_cuda_operand(&seen, d, t, text));
  const int64_t count = nb_tensor_numel(t);
  const int down = NB_CEIL(rows, block);
  if (t->dtype != NB_F32)
    return nb_fail(NB_EINVAL, "%s: expected f32, found %s", text, nb_dtype_name(t->dtype));
  s->scales = t->data;
  if (count == 1) s->at = (nb_fp8_scales){0, 0, 0};
  else if (count == rows && t->ndim >= 1 && t->shape[0] == rows) s->at = (nb_fp8_scales){0, 1, 0};
  else if (t->ndim == 2 && t->shape[0] == down && t->shape[1] == groups)
    s->at = (nb_fp8_scales){block == 1 ? 0 : 7, groups, 1};
  else {
    char found[160];
    nb_tensor_describe(t, found, sizeof found);
    return nb_fail(NB_EINVAL, "%s: expected one, [%dx1] or [%dx%d], found %s", text, rows, down, groups,
                   found);
  }
  return NB_OK;
}

static int check(product *p, const nb_tensor *y, const nb_tensor *x, const nb_tensor *x_scales,
                 const nb_tensor *w, const nb_tensor *w_scales, const nb_tensor *bias) {
  nb_tensor seen;
  *p = (product){.y = y->data};
  NB_TRY(codes_of(&p->x, &p->d, x, -1, "x"));
  NB_TRY(codes_of(&p->w, &p->d, w, x->shape[1], "w"));
  p->m = (int)x->shape[0], p->n = (int)w->shape[0], p->k = (int)x->shape[1];
  p->groups = NB_CEIL(p->k, (int)GROUP);
  if (p->k % 16 || p->k == 0)
    return nb_fail(NB_EUNSUPPORTED, "%s: K = %d is not a multiple of 16", what, p->k);
  NB_TRY(nb_cuda_operand(&seen, &p->d, y, "fp8 gemm: y"));
  if (!nb_cuda_is_plain(y->dtype))
    return nb_fail(NB_EINVAL, "%s: y: expected f32, bf16 or f16, found %s", what, nb_dtype_name(y->dtype));
  NB_TRY(nb_expect(&seen, "fp8 gemm: y", y->dtype, 2, NB_SHAPE(p->m, p->n)));
  p->dtype = y->dtype;
  if (p->m == 0 || p->n == 0) return NB_OK;
  NB_TRY(scales_of(&p->x, &p->d, x_scales, p->m, p->groups, 1, "x"));
  NB_TRY(scales_of(&p->w, &p->d, w_scales, p->n, p->groups, GROUP, "w"));
  if (!bias) return NB_OK;
  NB_TRY(nb_cuda_operand(&seen, &p->d, bias, "fp8 gemm: bias"));
  p->bias = bias->data;
  return nb_expect(&seen, "fp8 gemm: bias", y->dtype, 1, NB_SHAPE(p->n));
}

/* ---- by nibble's own kernel ------------------------------------------------------------------ */

/* Warps of a block: as many as a processor needs to keep memory busy, if there are few blocks and k goes round. */
static int warps_of(const product *p, int64_t blocks, int most, int step) {
  enum { BUSY = 12 }; /* of a processor */
  int warps = 4;
  while (warps * 2 <= most && blocks * warps < (int64_t)p->d->info.multiprocessors * BUSY &&
         warps * step < p->k)
    warps *= 2;
  return warps;
}

static int own(const product *p) {
  const bool groups = p->x.at.along || p->w.at.along;
  const int most = groups ? 32 : 64, rows = p->m <= 8 ? 8 : p->m <= 16 ? 16 : most;
  const int across = NB_CEIL(p->n, NB_FP8_COLUMNS), down = NB_CEIL(p->m, rows);
  const int warps =
      warps_of(p, (int64_t)across * down, nb_fp8_most_warps(rows / 8, groups), rows <= 16 ? 128 : 64);
  int dtype = nb_cuda_kernel_dtype(p->dtype);
  char name[32];
  snprintf(name, sizeof name, "nb_fp8_%sm%d", groups ? "groups_" : "", rows);
  nb_launch at = {{across, down, 1}, {warps * 32, 1, 1}, nb_fp8_shared(rows, warps)};
  return nb_device_launch(p->d->number, name, &at,
                          (void *[]){(void *)&p->x.codes, (void *)&p->w.codes, (void *)&p->x.scales,
                                     (void *)&p->w.scales, (void *)&p->bias, (void *)&p->y, (void *)&p->x.at,
                                     (void *)&p->w.at, (void *)&p->m, (void *)&p->n, (void *)&p->k, &dtype});
}

/* ---- by cuBLASLt --------------------------------------------------------------------------- */

/* Scales of one side as cuBLASLt takes them: to[row * down + group * across], into the stream's workspace. */
static int order(const product *p, side *s, float *to, int rows, int groups, int down, int across) {
  nb_launch at = {
      {(int32_t)NB_MIN(NB_CEIL((int64_t)rows * groups, (int64_t)ORDER_THREADS), (int64_t)ORDER_BLOCKS), 1, 1},
      {ORDER_THREADS, 1, 1},
      0};
  NB_TRY(
      nb_device_launch(p->d->number, "nb_fp8_scales_order", &at,
                       (void *[]){(void *)&s->scales, (void *)&s->at, &to, &rows, &groups, &down, &across}));
  s->scales = to;
  return NB_OK;
}

/* Its kinds: a scale a tensor, on both sides; a scale a row, on both; blocks of w with groups of x, which lie a group
 * after the other, and those of w in rows of a multiple of 4. What is short of it is spread out. */
static int library(product *p) {
  const bool blocks = p->w.at.along, rows = !blocks && (p->w.at.pitch || p->x.at.pitch);
  const int mode = blocks ? LT_OF_128X128
                   : rows ? LT_OF_ROW
                          : LT_OF_ALL,
            bytes = (int)nb_dtype_bits(p->dtype) / 8;
  if ((p->x.at.along && !blocks) || (int64_t)p->n * bytes % 16 || (p->bias && p->dtype == NB_F32) ||
      (blocks && (p->m % 4 || p->n % 4)))
    return NB_EUNSUPPORTED;
  NB_TRY(nb_cuda_gemm_scaled(p->d, NB_F8_E4M3, mode));
  const int wide = NB_CEIL(p->groups, 4) * 4, down = NB_CEIL(p->n, (int)GROUP);
  const int64_t of_x = NB_CEIL((int64_t)p->m * (blocks ? p->groups : 1), (int64_t)4) * 4,
                of_w = blocks ? (int64_t)down * wide : p->n;
  if (of_x > INT32_MAX || of_w > INT32_MAX) return NB_EUNSUPPORTED;
  float *room = NULL;
  if (mode != LT_OF_ALL)
    NB_TRY(
        nb_cuda_workspace((void **)&room, p->d, NB_CUDA_FOR_SCALES, (of_x + of_w) * (int64_t)sizeof *room));
  if (blocks || (rows && !p->x.at.pitch))
    NB_TRY(order(p, &p->x, room, p->m, blocks ? p->groups : 1, 1, p->m));
  if (rows && !p->w.at.pitch) NB_TRY(order(p, &p->w, room + of_x, p->n, 1, 1, 1));
  if (blocks && wide != p->groups) {
    p->w.at.shift = 0; /* row after row of blocks */
    NB_TRY(order(p, &p->w, room + of_x, down, p->groups, wide, 1));
  }
  nb_cuda_product lt = {.m = p->m,
                        .n = p->n,
                        .k = p->k,
                        .x_pitch = p->k,
                        .w_pitch = p->k,
                        .y_pitch = p->n,
                        .in = NB_F8_E4M3,
                        .out = p->dtype,
                        .factor = 1,
                        .x = p->x.codes,
                        .w = p->w.codes,
                        .bias = p->bias,
                        .x_scales = p->x.scales,
                        .w_scales = p->w.scales,
                        .x_mode = blocks ? LT_OF_128 : mode,
                        .w_mode = mode,
                        .y = p->y};
  return nb_cuda_gemm(p->d, &lt);
}

int nb_device_fp8_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *x_scales, const nb_tensor *w,
                       const nb_tensor *w_scales, const nb_tensor *bias) {
  product p;
  NB_TRY(check(&p, y, x, x_scales, w, w_scales, bias));
  if (p.m == 0 || p.n == 0) return NB_OK;
  if (p.m > FEW) {
    product by = p;
    int rc = library(&by);
    if (rc != NB_EUNSUPPORTED && rc != NB_ENOMEM) return rc;
  }
  return own(&p);
}
