/* dequantize_marlin.c - floats out of a weight in Marlin's order on a device: kernels/dequantize_marlin.cu, launched. */
#include "device.h"
#include "kernels/dequantize.h"
#include "layout/layout.h"

static const char what[] = "marlin dequantize";

enum { TILE_K = 16, TILE_N = 64 };

static bool empty(const nb_tensor *t) { return !t || nb_tensor_numel(t) == 0; }

static int check_kind(const nb_marlin_weight *w, int dtype) {
  if (dtype != NB_F16 && dtype != NB_BF16)
    return nb_fail(NB_EINVAL, "%s: out is f16 or bf16, found %s", what,
                   nb_dtype_name(dtype) ? nb_dtype_name(dtype) : "none");
  return nb_cuda_marlin_kind(w, what);
}

/* Those of integers. */
static const nb_tensor *zeros_of(const nb_marlin_weight *w) {
  return w->code == NB_MARLIN_INT ? w->zeros : NULL;
}

static int check(const nb_marlin_weight *w) {
  const nb_tensor *words = w->words, *s = w->scales, *z = zeros_of(w);
  int on = words->device;
  if (!on)
    return nb_fail(NB_EINVAL, "%s: the words lie in the computer's memory, expected on a device", what);
  NB_TRY(nb_cuda_expect(words, "marlin dequantize: words", on, words->dtype == NB_U32 ? NB_U32 : NB_I32, 2,
                        NB_SHAPE(w->k / TILE_K, w->n * w->bits / 2)));
  NB_TRY(nb_cuda_expect(s, "marlin dequantize: scales", on, -1, 2, NB_SHAPE(-1, w->n)));
  NB_TRY(nb_cuda_marlin_scales(w, what));
  if (z)
    NB_TRY(nb_cuda_expect(z, "marlin dequantize: zero-points", on, z->dtype == NB_U32 ? NB_U32 : NB_I32, 2,
                          NB_SHAPE(s->shape[0], w->n * w->bits / 32)));
  if (empty(w->perm) != empty(w->g_idx))
    return nb_fail(NB_EINVAL, "%s: perm and g_idx belong together, found only %s", what,
                   empty(w->perm) ? "g_idx" : "perm");
  if (s->shape[0] < 1 || s->shape[0] > w->k || (empty(w->perm) && w->k % s->shape[0]))
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of the %lld groups of scales", what,
                   (long long)w->k, (long long)s->shape[0]);
  return NB_OK;
}

/* Every entry of t, i32 [k], in 0 .. below-1; seen [below]: and none twice. */
static int check_entries(const nb_tensor *t, const char *name, int64_t k, int64_t below, uint8_t *seen) {
  NB_TRY(nb_expect(t, name, NB_I32, 1, NB_SHAPE(k)));
  const int32_t *p = t->data;
  for (int64_t i = 0; i < k; i++) {
    if (p[i] < 0 || p[i] >= below)
      return nb_fail(NB_EFORMAT, "%s: %d at position %lld is outside 0..%lld", name, p[i], (long long)i,
                     (long long)below - 1);
    if (seen && seen[p[i]]++)
      return nb_fail(NB_EFORMAT, "%s: %d stands there twice, the second time at position %lld", name, p[i],
                     (long long)i);
  }
  return NB_OK;
}

/* on: t on the device, its entries checked, for which they are read in the computer's memory; empty without t. */
static int fetch(nb_tensor *on, const nb_tensor *t, const char *name, const nb_marlin_weight *w,
                 int64_t below, bool once) {
  nb_tensor here;
  memset(on, 0, sizeof *on);
  if (empty(t)) return NB_OK;
  uint8_t *seen = once ? nb_alloc(below, 1) : NULL;
  if (once && !seen) return NB_ENOMEM;
  int rc = nb_tensor_to(&here, t, 0);
  if (rc == NB_OK) {
    rc = check_entries(&here, name, w->k, below, seen);
    if (rc == NB_OK) rc = nb_tensor_to(on, &here, w->words->device);
    nb_tensor_release(&here);
  }
  free(seen);
  return rc;
}

int nb_cuda_marlin_begin(nb_cuda_marlin *m, const nb_marlin_weight *w, int dtype) {
  *m = (nb_cuda_marlin){.w = w, .dtype = dtype};
  NB_TRY(check_kind(w, dtype));
  NB_TRY(check(w));
  NB_TRY(nb_cuda_use(&m->d, w->words->device));
  int rc = fetch(&m->perm, w->perm, "marlin dequantize: perm", w, w->k, true);
  if (rc == NB_OK) rc = fetch(&m->g_idx, w->g_idx, "marlin dequantize: g_idx", w, w->scales->shape[0], false);
  if (rc < 0) nb_cuda_marlin_end(m);
  return rc;
}

void nb_cuda_marlin_end(nb_cuda_marlin *m) {
  nb_tensor_release(&m->perm); /* the driver waits for the kernels before it gives memory away */
  nb_tensor_release(&m->g_idx);
}

/* A byte of nb_marlin_nvfp4_scales is 2^7 times what the checkpoint has, and some weights too large for f16. */
double nb_cuda_marlin_unit(const nb_marlin_weight *w) { return w->scale == NB_MARLIN_S0E5M3 ? 0x1p-7 : 1; }

int nb_cuda_marlin_panel(const nb_cuda_marlin *m, void *out, int64_t first, int64_t columns) {
  const nb_marlin_weight *w = m->w;
  nb_dequantize_marlin_job job = {.k = (int32_t)w->k,
                                  .n = (int32_t)w->n,
                                  .first = (int32_t)first,
                                  .columns = (int32_t)columns,
                                  .groups = (int32_t)w->scales->shape[0],
                                  .bits = w->bits,
                                  .codes = nb_cuda_marlin_codes(w),
                                  .scale = nb_cuda_marlin_scale(w),
                                  .out = nb_cuda_kernel_dtype(m->dtype),
                                  .factor = (float)(w->scale_factor * nb_cuda_marlin_unit(w))};
  int64_t tiles = w->k / TILE_K * (columns / TILE_N);
  nb_launch at = {{(int32_t)NB_CEIL(tiles, (int64_t)NB_DEQUANTIZE_MARLIN_WARPS), 1, 1},
                  {NB_DEQUANTIZE_MARLIN_WARPS * 32, 1, 1},
                  0};
  const nb_tensor *z = zeros_of(w);
  const void *zeros = z ? z->data : NULL;
  return nb_device_launch(m->d->number, "nb_dequantize_marlin", &at,
                          (void *[]){(void *)&w->words->data, (void *)&w->scales->data, &zeros,
                                     (void *)&m->perm.data, (void *)&m->g_idx.data, &out, &job});
}

int nb_device_marlin_dequantize(nb_tensor *out, const nb_marlin_weight *w, int dtype) {
  nb_cuda_marlin m;
  nb_tensor made;
  NB_TRY(nb_cuda_marlin_begin(&m, w, dtype));
  int rc = nb_cuda_result(&made, out, m.d, dtype, 2, NB_SHAPE(w->k, w->n), "marlin dequantize: out");
  if (rc == NB_OK) rc = nb_cuda_finish(out, &made, nb_cuda_marlin_panel(&m, made.data, 0, w->n));
  nb_cuda_marlin_end(&m);
  return rc;
}
