/* dequantize.c - floats out of quantized weights on a device: kernels/dequantize*.cu, chosen and launched. */
#include "device.h"
#include "kernels/dequantize.h"
#include "quant/groups.h"

#include <stdio.h>

static const char what[] = "dequantize";

enum { PIECE = 8, BLOCKS_PER_SM = 8, ALIGN = 16 };

/* ---- what is asked for -------------------------------------------------------------- */

static int expect_plain(int dtype, const char *name) {
  if (nb_cuda_is_plain(dtype)) return NB_OK;
  const char *found = nb_dtype_name(dtype);
  return nb_fail(NB_EINVAL, "%s: %s: expected f32, bf16 or f16, found %s", what, name,
                 found ? found : "none");
}

/* Codes as they lie: kind, bits, order and pitch. */
static int check_values(nb_dequantize_job *j, const nb_weight *w) {
  const nb_tensor *v = w->values;
  int on = v->device;
  if (w->bits < 0 || w->bits > 8) return nb_fail(NB_EINVAL, "%s: %d bits, expected 1 to 8", what, w->bits);
  if ((w->packing == NB_PACKING_FP4 ? w->bits : w->packing != NB_PACKING_NONE && !w->bits) ||
      (w->packing && !w->scales) || w->packing < 0 || w->packing > NB_PACKING_FP4)
    return nb_fail(NB_EINVAL, "%s: %d bits in packing %d", what, w->bits, w->packing);
  j->codes = w->bits ? NB_CODES_INT : NB_CODES_E2M1;
  j->bits = w->bits;
  int64_t streams = NB_CEIL(w->k * w->bits, 32), pf = w->bits ? 32 / w->bits : 1, width = 0;
  switch (w->packing) {
  case NB_PACKING_CT:
    NB_TRY(nb_cuda_expect(v, "dequantize: words", on, v->dtype == NB_U32 ? NB_U32 : NB_I32, 2,
                          NB_SHAPE(w->n, streams)));
    width = 4 * streams;
    break;
  case NB_PACKING_GPTQ:
    NB_TRY(nb_cuda_expect(v, "dequantize: words", on, v->dtype == NB_U32 ? NB_U32 : NB_I32, 2,
                          NB_SHAPE(streams, w->n)));
    j->along = NB_ALONG_GPTQ;
    width = w->n;
    break;
  case NB_PACKING_AWQ:
    if (w->bits != 4 && w->bits != 8)
      return nb_fail(NB_EINVAL, "%s: AWQ packs 4 or 8 bits, found %d", what, w->bits);
    width = NB_CEIL(w->n, pf);
    NB_TRY(nb_cuda_expect(v, "dequantize: words", on, v->dtype == NB_U32 ? NB_U32 : NB_I32, 2,
                          NB_SHAPE(w->k, width)));
    j->along = NB_ALONG_AWQ;
    break;
  case NB_PACKING_FP4:
    width = NB_CEIL(w->k, 2);
    j->bits = 4;
    NB_TRY(nb_cuda_expect(v, "dequantize: bytes", on, NB_U8, 2, NB_SHAPE(w->n, width)));
    break;
  default:
    NB_TRY(nb_cuda_expect(v, "dequantize: codes", on, w->bits ? NB_U8 : -1, 2, NB_SHAPE(w->n, w->k)));
    j->bits = (int32_t)nb_dtype_bits(v->dtype);
    width = w->k;
    if (!w->scales) {
      j->codes = NB_CODES_PLAIN;
      j->code = nb_cuda_kernel_dtype(v->dtype);
      return expect_plain(v->dtype, "values without scales");
    }
    if (v->dtype == NB_F8_E4M3 || v->dtype == NB_F8_E4M3FNUZ) {
      j->codes = NB_CODES_E4M3;
      j->code = nb_cuda_kernel_dtype(v->dtype);
    } else if (v->dtype != NB_U8)
      return nb_fail(
          NB_EINVAL,
          "%s float codes: codes: expected f8_e4m3, f8_e4m3fnuz, or u8 with one e2m1 code a byte, found %s",
          what, nb_dtype_name(v->dtype));
  }
  if (width > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: rows of %lld bytes are more than a launch can count", what,
                   (long long)width);
  j->width = (int32_t)width;
  return NB_OK;
}

static int check_scales(nb_dequantize_job *j, const nb_weight *w) {
  const nb_tensor *s = w->scales, *z = w->bits ? w->zeros : NULL;
  int on = w->values->device;
  if (!s) return NB_OK;
  if (w->bits) NB_TRY(expect_plain(s->dtype, "scales"));
  else if (!nb_cuda_is_plain(s->dtype) && s->dtype != NB_F8_E4M3 && s->dtype != NB_F8_E8M0)
    return nb_fail(NB_EINVAL, "%s float codes: scales: expected f32, bf16, f16, f8_e4m3 or f8_e8m0, found %s",
                   what, nb_dtype_name(s->dtype));
  j->scale = nb_cuda_kernel_dtype(s->dtype);
  if (w->rows < 1 || w->columns < 1)
    return nb_fail(NB_EINVAL, "%s: blocks of %lldx%lld, expected at least 1x1", what, (long long)w->rows,
                   (long long)w->columns);
  bool single = nb_tensor_numel(s) == 1;
  int64_t down = NB_CEIL(w->n, w->rows), groups = single ? 1 : NB_CEIL(w->k, w->columns);
  NB_TRY(nb_cuda_expect(s, "dequantize: scales", on, -1, single ? s->ndim : 2,
                        single ? s->shape : NB_SHAPE(down, groups)));
  bool one = single && z && nb_tensor_numel(z) == 1;
  if (z)
    NB_TRY(nb_cuda_expect(z, "dequantize: zeros", on, NB_U8, one ? z->ndim : 2,
                          one ? z->shape : NB_SHAPE(down, groups)));
  j->groups = (int32_t)groups;
  j->rows = (int32_t)(single ? NB_MAX(w->n, 1) : NB_MIN(w->rows, NB_MAX(w->n, 1)));
  j->columns = (int32_t)(groups == 1 ? NB_MAX(w->k, 1) : w->columns);
  j->zero = w->bits ? 1 << (w->bits - 1) : 0;
  return NB_OK;
}

/* A small tensor's copy in the computer's memory, where it is checked. */
static int fetch_global(float *divisor, const nb_weight *w) {
  nb_tensor here;
  *divisor = 1;
  if (w->bits || !w->scales || !w->global || w->factor != 0) return NB_OK;
  NB_TRY(nb_tensor_to(&here, w->global, 0));
  int rc = nb_expect(&here, "dequantize float codes: global", NB_F32, 1, NB_SHAPE(1));
  if (rc == NB_OK) {
    float f = *divisor = *(const float *)here.data;
    if (!(f > 0 && f <= 0x1.fffffep127f))
      rc = nb_fail(NB_EFORMAT, "%s float codes: the global scale is %g, expected a finite number above 0",
                   what, (double)f);
  }
  nb_tensor_release(&here);
  return rc;
}

/* *on_device: g_idx there, its entries checked; without one, nothing. */
static int fetch_g_idx(nb_tensor *on_device, const nb_weight *w, int64_t groups) {
  nb_tensor here;
  memset(on_device, 0, sizeof *on_device);
  if (!w->bits || !w->g_idx) return NB_OK;
  NB_TRY(nb_tensor_to(&here, w->g_idx, 0));
  int rc = nb_expect_groups(&here, what, w->k, groups);
  if (rc == NB_OK) rc = nb_tensor_to(on_device, &here, w->values->device);
  nb_tensor_release(&here);
  return rc;
}

/* ---- launching -------------------------------------------------------------------------- */

static int launch(nb_cuda_device *d, const nb_dequantize_job *j, const nb_weight *w, const nb_tensor *g_idx,
                  const nb_tensor *out) {
  int piece = j->out == NB_KERNEL_F32 ? PIECE / 2 : PIECE;
  int64_t threads = NB_DEQUANTIZE_THREADS, elements = (int64_t)j->n * j->k, most;
  NB_TRY(nb_cuda_resident(&most, d, BLOCKS_PER_SM, 0));
  int64_t blocks = NB_MIN(NB_CEIL(elements, threads), most);
  bool awq = j->along == NB_ALONG_AWQ,
       fast = j->k % PIECE == 0 && (uintptr_t)w->values->data % ALIGN == 0 &&
              (j->bits == 4 || j->bits >= 8) &&
              (g_idx ? !awq : j->columns % PIECE == 0 || j->codes == NB_CODES_PLAIN);
  nb_launch at = {{1, 1, 1}, {NB_DEQUANTIZE_THREADS, 1, 1}, 0};
  const char *kernel = "nb_dequantize_any";
  if (fast && j->along == NB_ALONG_ROWS) {
    kernel = "nb_dequantize_rows";
    blocks = NB_MAX(NB_MIN(NB_CEIL(elements / piece, threads), most), NB_CEIL(j->k / piece, threads));
  } else if (fast && j->width % 4 == 0) {
    int64_t words = awq ? NB_DEQUANTIZE_AWQ_WORDS : NB_DEQUANTIZE_GPTQ_WORDS,
            tiles = NB_CEIL((int64_t)j->k, NB_DEQUANTIZE_TILE_K) * NB_CEIL(j->width, words);
    if (tiles <= INT32_MAX) {
      kernel = "nb_dequantize_words";
      blocks = tiles;
      at.shared_bytes = nb_dequantize_words_shared(j->bits, awq, piece);
    }
  }
  at.grid[0] = (int32_t)blocks;
  const void *values = w->values->data, *scales = w->scales ? w->scales->data : NULL,
             *zeros = j->codes == NB_CODES_INT && w->zeros ? w->zeros->data : NULL,
             *order = g_idx ? g_idx->data : NULL, *to = out->data;
  nb_dequantize_job job = *j;
  void *arguments[] = {&values, &scales, &zeros, &order, &to, &job};
  return nb_device_launch(d->number, kernel, &at, arguments);
}

int nb_device_dequantize(nb_tensor *out, const nb_weight *w, int dtype) {
  nb_dequantize_job j = {.n = (int32_t)w->n,
                         .k = (int32_t)w->k,
                         .rows = 1,
                         .columns = 1,
                         .divisor = 1,
                         .factor = w->factor != 0 && !w->bits ? w->factor : 1,
                         .out = nb_cuda_kernel_dtype(dtype)};
  nb_tensor g_idx, made;
  nb_cuda_device *d;
  NB_TRY(expect_plain(dtype, "out"));
  if (!w->values->device)
    return nb_fail(NB_EINVAL, "%s: the values lie in the computer's memory, expected on a device", what);
  if (w->n < 0 || w->k < 0)
    return nb_fail(NB_EINVAL, "%s: a weight [%lldx%lld]", what, (long long)w->n, (long long)w->k);
  if (w->n > INT32_MAX || w->k > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: a weight [%lldx%lld] is more than a launch can count", what,
                   (long long)w->n, (long long)w->k);
  NB_TRY(check_values(&j, w));
  NB_TRY(check_scales(&j, w));
  NB_TRY(fetch_global(&j.divisor, w));
  NB_TRY(nb_cuda_use(&d, w->values->device));
  NB_TRY(fetch_g_idx(&g_idx, w, j.groups));
  int rc = nb_cuda_result(&made, out, d, dtype, 2, NB_SHAPE(w->n, w->k), "dequantize: out");
  if (rc == NB_OK && w->n && w->k)
    rc = nb_cuda_finish(out, &made, launch(d, &j, w, g_idx.buf ? &g_idx : NULL, &made));
  else if (rc == NB_OK) *out = made;
  nb_tensor_release(&g_idx); /* the driver waits for the kernel before it gives memory away */
  return rc;
}
