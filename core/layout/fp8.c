/* fp8.c - FP8 weights after loading: one scale for shards that had their own, and
 * e4m3fnuz where a platform computes with it (SYSTEMS CTM-FP8-09, CTM-FP8-11). */
#include "dtype.h"
#include "layout.h"

/* What a shard's scale holds until a checkpoint fills it. */
static const float UNSET = -3.4028234663852886e38f;

/* The product rounds to f16, as the reference's tensors do; the division is a product
 * with the scale's inverse. NaN becomes the limit, as in the kernels' fminf/fmaxf. */
static void requantize_rows(uint8_t *out, const uint8_t *in, int64_t count, float scale, float max,
                            int dtype) {
  const nb_small_float *small = nb_small_of(dtype);
  float limit = dtype == NB_F8_E4M3FNUZ ? 224.0f : 448.0f, up = 1.0f / max;
  uint8_t table[256]; /* every byte has one answer */
  for (int b = 0; b < 256; b++) {
    float w = nb_f16_to_f32(nb_f32_to_f16(nb_code_values(dtype)[b] * scale)) * up;
    table[b] = nb_f32_to_small(fmaxf(-limit, fminf(w, limit)), small);
  }
  for (int64_t i = 0; i < count; i++) out[i] = table[in[i]];
}

int nb_fp8_requantize_check(const nb_tensor *out, const nb_tensor *max, const nb_tensor *weight,
                            const nb_tensor *scales, const int64_t *widths) {
  const char *what = "fp8 requantize";
  int dtype = weight->dtype, d = weight->ndim;
  if (dtype != NB_F8_E4M3 && dtype != NB_F8_E4M3FNUZ)
    return nb_fail(NB_EINVAL, "%s: expected f8_e4m3 or f8_e4m3fnuz, found %s", what, nb_dtype_name(dtype));
  if (d != 3) return nb_expect(weight, what, dtype, 3, NB_SHAPE(-1, -1, -1));
  int64_t e = weight->shape[0], n = weight->shape[1], total = 0;
  NB_TRY(nb_expect(scales, what, NB_F32, 2, NB_SHAPE(e, -1)));
  int64_t shards = scales->shape[1];
  NB_TRY(nb_expect(max, what, NB_F32, 1, NB_SHAPE(e)));
  NB_TRY(nb_expect(out, what, dtype, 3, weight->shape));
  if (shards < 1 || (!widths && n % shards))
    return nb_fail(NB_EINVAL, "%s: N = %lld does not divide into %lld equal parts", what, (long long)n,
                   (long long)shards);
  for (int64_t s = 0; s < shards; s++) total += widths ? widths[s] : n / shards;
  if (total != n)
    return nb_fail(NB_EINVAL, "%s: the shards have %lld rows together, the weight has %lld", what,
                   (long long)total, (long long)n);
  return NB_OK;
}

int nb_fp8_requantize(nb_tensor *out, nb_tensor *max, const nb_tensor *weight, const nb_tensor *scales,
                      const int64_t *widths) {
  NB_TRY(nb_fp8_requantize_check(out, max, weight, scales, widths));
  const int dtype = weight->dtype;
  const int64_t e = weight->shape[0], n = weight->shape[1], k = weight->shape[2], shards = scales->shape[1];
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (e * n * k > 65536)
  for (int64_t x = 0; x < e; x++) {
    if (nb_stop_requested()) stopped = 1;
    const float *s = (const float *)scales->data + x * shards;
    const uint8_t *in = (const uint8_t *)weight->data + x * n * k;
    uint8_t *to = (uint8_t *)out->data + x * n * k;
    float most = s[0];
    for (int64_t i = 1; i < shards; i++) most = s[i] > most ? s[i] : most;
    ((float *)max->data)[x] = most;
    bool fused = shards < 2 || s[shards - 1] == UNSET; /* a fused checkpoint set the first only */
    for (int64_t i = 0, at = 0; i < shards && !stopped; i++) {
      int64_t bytes = (widths ? widths[i] : n / shards) * k;
      /* The largest scale's shard stays bit for bit, however small the products are. */
      if (fused || s[i] == most) memcpy(to + at, in + at, (size_t)bytes);
      else requantize_rows(to + at, in + at, bytes, s[i], most, dtype);
      at += bytes;
    }
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_fp8_to_fnuz(nb_tensor *out, int64_t *nans, const nb_tensor *weight) {
  const char *what = "fp8 to_fnuz";
  NB_TRY(nb_expect(weight, what, NB_F8_E4M3, weight->ndim, weight->shape));
  NB_TRY(nb_expect(out, what, NB_F8_E4M3FNUZ, weight->ndim, weight->shape));
  const uint8_t *in = weight->data;
  uint8_t *to = out->data;
  int64_t count = nb_tensor_numel(weight), odd = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(+ : odd) if (count > 65536)
  for (int64_t i = 0; i < count; i++) {
    odd += (in[i] & 0x7f) == 0x7f;
    to[i] = in[i] == 0x80 ? 0 : in[i];
  }
  *nans = odd;
  return NB_OK;
}
