/* requantize_fp8.c - FP8 weights on a device after loading: one scale for shards that had their own (SYSTEMS CTM-FP8-11). */
#include "device.h"
#include "layout/layout.h"

#include "kernels/requantize_fp8.h"

enum { THREADS = 256, BLOCKS = 1024, GRID = 65535 };

int nb_device_fp8_requantize(nb_tensor *out, nb_tensor *max, const nb_tensor *weight, const nb_tensor *scales,
                             const int64_t *widths) {
  static const char what[] = "fp8 requantize";
  nb_cuda_device *d = NULL;
  nb_tensor seen[4];
  const nb_tensor *const all[] = {weight, scales, max, out};
  for (int i = 0; i < 4; i++) NB_TRY(nb_cuda_operand_at(&seen[i], &d, all[i], 4, what));
  if (weight->dtype == NB_F8_E4M3FNUZ)
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: f8_e4m3fnuz is the format of other makers' devices, NVIDIA's take f8_e4m3", what);
  NB_TRY(nb_fp8_requantize_check(&seen[3], &seen[2], &seen[0], &seen[1], widths));
  int64_t e = weight->shape[0], n = weight->shape[1], k = weight->shape[2];
  int shards = (int)scales->shape[1];
  nb_fp8_shards at = {{0}};
  if (shards > NB_FP8_MOST_SHARDS || e > GRID)
    return nb_fail(NB_EUNSUPPORTED, "%s: %d shards of %lld experts, a launch takes %d of %d", what, shards,
                   (long long)e, (int)NB_FP8_MOST_SHARDS, (int)GRID);
  for (int i = 0; i < shards; i++) {
    const int64_t bytes = (widths ? widths[i] : n / shards) * k;
    if (bytes % 4)
      return nb_fail(NB_EUNSUPPORTED, "%s: a shard of %lld bytes is no multiple of 4", what,
                     (long long)bytes);
    at.from[i + 1] = at.from[i] + bytes;
  }
  if (e == 0) return NB_OK;
  nb_launch launch = {
      {(int32_t)NB_MAX((int64_t)1, NB_MIN(NB_CEIL(n * k / 4, (int64_t)THREADS), (int64_t)BLOCKS)), shards,
       (int32_t)e},
      {THREADS, 1, 1},
      0};
  return nb_device_launch(d->number, "nb_fp8_requantize", &launch,
                          (void *[]){(void *)&weight->data, (void *)&out->data, (void *)&scales->data,
                                     (void *)&max->data, &at, &shards});
}
