/* w4a8.c - y = x W^T + bias with 4-bit weights and activations of 8 bits: each row of x
 * is quantized to int8 by its own largest value, the products are summed in integers
 * within a group, and the groups in float32 (SYSTEMS CTM-W4A8-14, CTM-W4A8-15). */
#include "w4a8_body.h"

#include "vector.h"

static void strip_portable(float *y, int64_t ldy, int64_t n, const nb_w4a8_rows *x, int64_t m,
                           const uint8_t *strip, const nb_w4a8_form *f) {
  int64_t ldq = f->groups * f->padded, blocks = f->padded / NB_W4A8_STEP;
  for (int64_t row = 0; row < m; row++) {
    float out[NB_W4A8_STRIP] = {0};
    for (int64_t g = 0; g < f->groups; g++) {
      int32_t acc[NB_W4A8_STRIP];
      for (int o = 0; o < NB_W4A8_STRIP; o++) acc[o] = -8 * x->sums[row * f->groups + g];
      for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *w = strip + (g * blocks + b) * NB_W4A8_BLOCK;
        const int8_t *q = x->q + row * ldq + g * f->padded + b * NB_W4A8_STEP;
        for (int o = 0; o < NB_W4A8_STRIP; o++)
          for (int j = 0; j < 4; j++) acc[o] += (w[4 * o + j] & 15) * q[j] + (w[4 * o + j] >> 4) * q[4 + j];
      }
      for (int o = 0; o < NB_W4A8_STRIP; o++) out[o] += (float)acc[o] * nb_w4a8_scale(f, strip, g, o);
    }
    const float *bias = (const float *)(const void *)(strip + f->bias_at);
    for (int64_t o = 0; o < n; o++) y[row * ldy + o] = out[o] * x->scales[row] + bias[o];
  }
}

const nb_w4a8_kernels nb_w4a8_portable = {quantize, strip_portable};

static int quantize_rows(nb_w4a8_rows *r, const nb_tensor *x, const nb_w4a8_form *f,
                         const nb_w4a8_kernels *kernels) {
  const nb_vector *v = nb_vector_here();
  int64_t m = x->shape[0];
  bool narrow = x->dtype != NB_F32;
  int threads = (int)NB_MIN(nb_threads(), NB_MAX(m * f->k >> 14, 1));
  float *wide = narrow ? nb_alloc(threads * f->k, sizeof *wide) : NULL;
  if (narrow && !wide) return NB_ENOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int t = 0; t < threads; t++)
    for (int64_t row = m * t / threads; row < m * (t + 1) / threads; row++) {
      const float *from = (const float *)x->data + row * f->k;
      if (narrow) {
        nb_widen(v, wide + t * f->k, x, row * f->k, f->k);
        from = wide + t * f->k;
      }
      kernels->quantize(r, row, from, f);
    }
  free(wide);
  return NB_OK;
}

int nb_w4a8_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *packed, int64_t group) {
  NB_TRY(nb_expect(x, "w4a8 gemm: x", -1, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect_float(x, "w4a8 gemm: x"));
  int64_t m = x->shape[0];
  NB_TRY(nb_expect(y, "w4a8 gemm: y", NB_F32, 2, NB_SHAPE(m, -1)));
  nb_w4a8_form f;
  NB_TRY(nb_w4a8_form_of(&f, y->shape[1], x->shape[1], group));
  NB_TRY(nb_expect(packed, "w4a8 gemm: packed weights", NB_U8, 1, NB_SHAPE(f.strips * f.strip_bytes)));
  if (m == 0) return NB_OK;
  const nb_w4a8_kernels *kernels = (nb_cpu() & NB_CPU_AVX2) ? &nb_w4a8_avx2 : &nb_w4a8_portable;
  nb_w4a8_rows r = {nb_alloc(m, f.groups * f.padded), nb_alloc(m * f.groups, sizeof(int32_t)),
                    nb_alloc(m, sizeof(float))};
  int rc = r.q && r.sums && r.scales ? quantize_rows(&r, x, &f, kernels) : NB_ENOMEM;
  int stopped = 0;
#pragma omp parallel for schedule(dynamic) num_threads(nb_threads()) if (rc == NB_OK && f.strips > 1)
  for (int64_t s = 0; s < (rc == NB_OK ? f.strips : 0); s++) {
    if (nb_stop_requested()) {
#pragma omp atomic write
      stopped = 1;
      continue;
    }
    int64_t n0 = s * NB_W4A8_STRIP;
    kernels->strip((float *)y->data + n0, f.n, NB_MIN(NB_W4A8_STRIP, f.n - n0), &r, m,
                   (const uint8_t *)packed->data + s * f.strip_bytes, &f);
  }
  free(r.q);
  free(r.sums);
  free(r.scales);
  return rc < 0 ? rc : stopped ? nb_fail_stopped() : NB_OK;
}
