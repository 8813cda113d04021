/* w4a8_body.h - activations to int8 over fixed lanes, compiled once per instruction set:
 * q = round(x * 127/absmax), halves away from zero, scale = absmax/127 (SYSTEMS MRL-45). */
#include "lanes.h"
#include "w4a8.h"

INLINE v8i abs_bits(v8f x) { return (v8i)x & 0x7fffffff; }

/* Largest magnitude of n values as bits (their order is that of the numbers); above infinity: NaN. */
static int32_t absmax_bits(const float *x, int64_t n) {
  v8i max = {0};
  for (int64_t i = 0; i < n; i += LANES) {
    v8i a = abs_bits(i + LANES <= n ? load(x + i) : load_tail(x + i, n - i, 0.0f));
    max = select_i(a > max, a, max);
  }
  int32_t best = max[0];
  for (int l = 1; l < LANES; l++) best = NB_MAX(best, max[l]);
  return best;
}

INLINE v8i rounded(v8f x) {
  v8i whole = __builtin_convertvector(x, v8i);
  v8f rest = x - __builtin_convertvector(whole, v8f);
  /* A comparison is -1 where it holds. */
  return whole - (v8i)(rest >= splat(0.5f)) + (v8i)(rest <= splat(-0.5f));
}

static int32_t quantize_group(int8_t *q, const float *x, int64_t n, float up) {
  v8i sum = {0};
  for (int64_t i = 0; i < n; i += LANES) {
    v8i v = rounded((i + LANES <= n ? load(x + i) : load_tail(x + i, n - i, 0.0f)) * splat(up));
    v = select_i(v > 127, (v8i){0} + 127, select_i(v < -127, (v8i){0} - 127, v));
    sum += v;
    typedef int8_t v8b __attribute__((vector_size(8)));
    v8b bytes = __builtin_convertvector(v, v8b);
    memcpy(q + i, &bytes, sizeof bytes); /* a group's room is a multiple of 8 */
  }
  int32_t total = 0;
  for (int l = 0; l < LANES; l++) total += sum[l];
  return total;
}

static void quantize(const nb_w4a8_rows *r, int64_t row, const float *x, const nb_w4a8_form *f) {
  int32_t bits = absmax_bits(x, f->k);
  int8_t *q = r->q + row * f->groups * f->padded;
  int32_t *sums = r->sums + row * f->groups;
  if (bits >= 0x7f800000) {
    memset(q, 0, (size_t)(f->groups * f->padded));
    memset(sums, 0, (size_t)f->groups * sizeof *sums);
    r->scales[row] = NAN;
    return;
  }
  float max = fmaxf(nb_f32_from_bits((uint32_t)bits), 1e-10f);
  r->scales[row] = max / 127.0f;
  for (int64_t g = 0; g < f->groups; g++)
    sums[g] = quantize_group(q + g * f->padded, x + g * f->group, f->group, 127.0f / max);
}
