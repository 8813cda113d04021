/* vector.h - the row operations of the forward pass, one table per instruction set.
 *
 * All tables are compiled from vector_body.h with the same fixed lanes and no
 * contraction, so every instruction set gives the same bits. */
#ifndef NB_VECTOR_H
#define NB_VECTOR_H

#include "base.h"

/* A log-sum-exp that is still running: log(sum) + max over what was seen. */
typedef struct nb_lse {
  double max, sum;
} nb_lse;

typedef struct nb_vector {
  /* x = softmax(x) over n values. */
  void (*softmax)(float *x, int64_t n);
  /* x = 1 / (1 + exp(-x)). */
  void (*sigmoid)(float *x, int64_t n);
  /* gate = silu(gate) * up. */
  void (*swiglu)(float *gate, const float *up, int64_t n);
  /* Sum of squares, in double. */
  double (*sum_squares)(const float *x, int64_t n);
  /* Takes n more values into the running sum. */
  void (*lse)(nb_lse *state, const float *x, int64_t n);
  /* Takes n more pairs: *cross = sum of exp(p - lse->max) * (p - q), and lse as above for p. */
  void (*lse_cross)(nb_lse *state, double *cross, const float *p, const float *q, int64_t n);
  /* y = x widened; exact. */
  void (*widen_bf16)(float *y, const uint16_t *x, int64_t n);
  void (*widen_f16)(float *y, const uint16_t *x, int64_t n);
} nb_vector;

extern const nb_vector nb_vector_portable, nb_vector_avx2;

static inline const nb_vector *nb_vector_here(void) {
  return (nb_cpu() & NB_CPU_AVX2) ? &nb_vector_avx2 : &nb_vector_portable;
}

/* y = the n values at offset of t (f32, bf16 or f16), widened. */
static inline void nb_widen(const nb_vector *v, float *y, const nb_tensor *t, int64_t offset, int64_t n) {
  if (t->dtype == NB_F32) memcpy(y, (const float *)t->data + offset, (size_t)n * sizeof *y);
  else if (t->dtype == NB_BF16) v->widen_bf16(y, (const uint16_t *)t->data + offset, n);
  else v->widen_f16(y, (const uint16_t *)t->data + offset, n);
}

/* Fails unless t is a matrix (or vector) of f32, bf16 or f16. */
static inline int nb_expect_float(const nb_tensor *t, const char *what) {
  if (t->dtype == NB_F32 || t->dtype == NB_BF16 || t->dtype == NB_F16) return NB_OK;
  char found[160];
  return nb_fail(NB_EINVAL, "%s: expected f32, bf16 or f16, found %s", what,
                 nb_tensor_describe(t, found, sizeof found));
}

#endif
