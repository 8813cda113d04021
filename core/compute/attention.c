/* attention.c - causal attention over independent sequences, grouped heads, with an
 * optional sliding window.
 *
 *   keys  lo        q0    q1      One task: BLOCK queries q0..q1 of one head of one
 *        +---------+-----+        sequence. Scores are computed for the rectangle
 *   q0   | . . . . |\    |        lo..q1 of keys that any of them may see; each row's
 *   q1   |   . . . |. .\ |        softmax runs over what it may see, the rest is 0.
 *        +---------+-----+        Scratch: BLOCK x length floats a thread.
 */
#include "sgemm.h"

#include <omp.h>

enum { BLOCK = 64 };

typedef struct shape {
  int64_t heads, kv_heads, d, length, sliding;
  float scale;
  nb_sgemm_fn *sgemm;
  const nb_vector *v;
} shape;

static void attend(const shape *s, float *out, const float *q, const float *k, const float *v, int64_t q0,
                   float *score) {
  int64_t q1 = NB_MIN(q0 + BLOCK, s->length), lo = s->sliding ? NB_MAX(0, q0 - s->sliding + 1) : 0;
  int64_t keys = q1 - lo, q_row = s->heads * s->d, k_row = s->kv_heads * s->d;
  s->sgemm(true, q1 - q0, keys, s->d, s->scale, q + q0 * q_row, q_row, k + lo * k_row, k_row, 0.0f, score,
           keys);
  for (int64_t i = q0; i < q1; i++) {
    float *row = score + (i - q0) * keys;
    int64_t first = s->sliding ? NB_MAX(0, i - s->sliding + 1) - lo : 0, end = i + 1 - lo;
    s->v->softmax(row + first, end - first);
    memset(row, 0, (size_t)first * sizeof *row);
    memset(row + end, 0, (size_t)(keys - end) * sizeof *row);
  }
  s->sgemm(false, q1 - q0, s->d, keys, 1.0f, score, keys, v + lo * k_row, k_row, 0.0f, out + q0 * q_row,
           q_row);
}

static int check(const shape *s, const nb_tensor *out, const nb_tensor *q, const nb_tensor *k,
                 const nb_tensor *v) {
  NB_TRY(nb_expect(q, "attention: q", NB_F32, 2, NB_SHAPE(-1, -1)));
  int64_t m = q->shape[0];
  if (s->heads < 1 || s->kv_heads < 1 || s->heads % s->kv_heads || q->shape[1] % s->heads || !q->shape[1])
    return nb_fail(NB_EINVAL, "attention: %lld heads over %lld key/value heads don't divide rows of %lld",
                   (long long)s->heads, (long long)s->kv_heads, (long long)q->shape[1]);
  if (s->length < 1 || m % s->length)
    return nb_fail(NB_EINVAL, "attention: %lld rows are not whole sequences of %lld", (long long)m,
                   (long long)s->length);
  if (s->sliding < 0)
    return nb_fail(NB_EINVAL, "attention: a sliding window of %lld, expected 0 (none) or more",
                   (long long)s->sliding);
  if (q->shape[1] > INT32_MAX || s->length > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "attention: rows or sequences longer than 2^31-1");
  NB_TRY(nb_expect(k, "attention: k", NB_F32, 2, NB_SHAPE(m, s->kv_heads * (q->shape[1] / s->heads))));
  NB_TRY(nb_expect(v, "attention: v", NB_F32, 2, NB_SHAPE(m, k->shape[1])));
  return nb_expect(out, "attention: out", NB_F32, 2, NB_SHAPE(m, q->shape[1]));
}

int nb_attention(nb_tensor *out, const nb_tensor *q, const nb_tensor *k, const nb_tensor *v, int64_t heads,
                 int64_t kv_heads, int64_t length, int64_t sliding, double scale) {
  shape s = {
      .heads = heads, .kv_heads = kv_heads, .length = length, .sliding = sliding, .scale = (float)scale};
  NB_TRY(check(&s, out, q, k, v));
  if (sliding >= length) s.sliding = sliding = 0; /* every query sees all before it */
  s.d = q->shape[1] / heads;
  s.sgemm = nb_sgemm_here();
  s.v = nb_vector_here();
  int64_t blocks = NB_CEIL(length, BLOCK), tasks = q->shape[0] / length * heads * blocks;
  int threads = (int)NB_MIN(nb_threads(), NB_MAX(tasks, 1)), stopped = 0;
  int64_t per_thread = BLOCK * NB_MIN(length, sliding ? sliding + BLOCK : length);
  float *scratch = nb_alloc(threads * per_thread, sizeof *scratch);
  if (!scratch) return NB_ENOMEM;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (tasks > 1)
  for (int64_t task = 0; task < tasks; task++) {
    if (nb_stop_requested()) {
#pragma omp atomic write
      stopped = 1;
      continue;
    }
    int64_t block = task % blocks, head = task / blocks % heads, row = task / blocks / heads * length;
    int64_t at = row * heads * s.d + head * s.d;
    int64_t kv_at = row * kv_heads * s.d + head / (heads / kv_heads) * s.d;
    attend(&s, (float *)out->data + at, (const float *)q->data + at, (const float *)k->data + kv_at,
           (const float *)v->data + kv_at, block * BLOCK, scratch + omp_get_thread_num() * per_thread);
  }
  free(scratch);
  return stopped ? nb_fail_stopped() : NB_OK;
}
