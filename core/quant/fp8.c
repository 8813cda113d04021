/* fp8.c - round to nearest onto FP8 E4M3: the scale maps the largest magnitude
 * of a row (or of the tensor) to 448, the largest finite value. */
#include "dtype.h"
#include "groups.h"

static const char what[] = "fp8";

enum { LARGEST = 448 };

static float scale_of(float absmax, int w_dtype, int s_dtype, int arithmetic) {
  int dtype = arithmetic == NB_ARITHMETIC_DTYPE ? w_dtype : s_dtype;
  float s = nb_round_to(absmax / LARGEST, dtype);
  if (s > 0) return s;
  bool smallest = absmax > 0 && arithmetic == NB_ARITHMETIC_F32;
  return smallest ? nb_from_bits(1, dtype) : nb_epsilon(dtype);
}

static void encode(uint8_t *codes, const char *w, int64_t len, float scale, int dtype, int arithmetic) {
  const nb_small_float *e4m3 = nb_small_of(NB_F8_E4M3);
  for (int64_t i = 0; i < len; i++) {
    float x = nb_load(w, i, dtype) / scale;
    if (arithmetic == NB_ARITHMETIC_DTYPE) x = nb_round_to(x, dtype);
    codes[i] = nb_f32_to_small(x < -LARGEST ? -LARGEST : x > LARGEST ? LARGEST : x, e4m3);
  }
}

static int check(const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *w) {
  const nb_tensor *floats[] = {scales, w};
  const char *names[] = {"fp8: scales", "fp8: weight"};
  for (int i = 0; i < 2; i++) {
    int d = floats[i]->dtype;
    if (d != NB_F32 && d != NB_BF16 && d != NB_F16)
      return nb_fail(NB_EINVAL, "%s: expected f32, bf16 or f16, found %s", names[i], nb_dtype_name(d));
  }
  NB_TRY(nb_expect(w, "fp8: weight", -1, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(codes, "fp8: codes", NB_F8_E4M3, 2, w->shape));
  return nb_expect(scales, "fp8: scales", -1, 2, NB_SHAPE(w->shape[0], 1));
}

int nb_fp8_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *w, int per_tensor, int arithmetic) {
  NB_TRY(check(codes, scales, w));
  if (arithmetic == NB_ARITHMETIC_DTYPE && scales->dtype != w->dtype)
    return nb_fail(NB_EINVAL,
                   "%s: arithmetic in the weight's dtype stores scales in it too: expected %s scales, "
                   "found %s",
                   what, nb_dtype_name(w->dtype), nb_dtype_name(scales->dtype));
  int64_t n = w->shape[0], k = w->shape[1], size = nb_elem_bytes(w->dtype), bad = INT64_MAX;
  if (n == 0 || k == 0) return NB_OK;
  nb_span_fn *span = nb_group_kernels_of(w->dtype, arithmetic).span;
  uint32_t *absmax = nb_alloc(n, sizeof *absmax), all = 0;
  if (!absmax) return NB_ENOMEM;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (n * k > 65536) reduction(min \
                                                                                                 : bad) \
    reduction(max \
              : all) reduction(| \
                               : stopped)
  for (int64_t r = 0; r < n; r++) {
    if (nb_stop_requested()) stopped |= 1;
    if (stopped) continue;
    nb_span s = span((const char *)w->data + r * k * size, k);
    absmax[r] = NB_MAX(s.pos, s.neg);
    all = NB_MAX(all, absmax[r]);
    if (absmax[r] >= nb_inf_bits(w->dtype)) bad = NB_MIN(bad, r);
  }
  nb_groups q = {
      .n = n, .k = k, .group = k, .per_row = 1, .w_dtype = w->dtype, .s_dtype = scales->dtype, .w = w->data};
  for (int64_t r = 0; bad == INT64_MAX && r < n; r++) {
    float s =
        scale_of(nb_from_bits(per_tensor ? all : absmax[r], w->dtype), w->dtype, scales->dtype, arithmetic);
    if (isinf(s)) bad = r;
    nb_store(scales->data, r, s, scales->dtype);
  }
  free(absmax);
  if (stopped) return nb_fail_stopped();
  if (bad != INT64_MAX) return nb_groups_fail(&q, what, bad);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (n * k > 65536)
  for (int64_t r = 0; r < n; r++)
    encode((uint8_t *)codes->data + r * k, (const char *)w->data + r * k * size, k,
           nb_load(scales->data, r, scales->dtype), w->dtype, arithmetic);
  return NB_OK;
}

int nb_fp8_dequantize(nb_tensor *out, const nb_tensor *codes, const nb_tensor *scales) {
  NB_TRY(check(codes, scales, out));
  const float *value = nb_code_values(NB_F8_E4M3);
  int64_t n = out->shape[0], k = out->shape[1];
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (n * k > 65536)
  for (int64_t r = 0; r < n; r++) {
    const uint8_t *c = (const uint8_t *)codes->data + r * k;
    float s = nb_load(scales->data, r, scales->dtype);
    char *to = (char *)out->data + r * k * nb_elem_bytes(out->dtype);
    for (int64_t i = 0; i < k; i++) nb_store(to, i, value[c[i]] * s, out->dtype);
  }
  return NB_OK;
}
