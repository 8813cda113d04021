/* attention.c - attention on a device: kernels/attention.cu and attention_f32.cu, launched. */
#include "device.h"

#include <stdio.h>

#include "kernels/attention.h"

static const char what[] = "attention";

/* Rows of heads of plain floats, as q's where they are not q. */
static int take(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *t, const nb_tensor *q, int64_t rows,
                int64_t columns, bool *whole) {
  char name[160];
  NB_TRY(nb_cuda_operand_at(seen, d, t, 4, what));
  if (!nb_cuda_is_plain(t->dtype))
    return nb_fail(NB_EUNSUPPORTED, "attention on a device takes f32, f16 and bf16, found %s",
                   nb_tensor_describe(seen, name, sizeof name));
  *whole = *whole && (uintptr_t)t->data % 16 == 0;
  return nb_expect(seen, what, q->dtype, 2, NB_SHAPE(rows, columns));
}

static int check(const nb_tensor *q, int64_t heads, int64_t kv_heads, int64_t length, int64_t sliding) {
  int64_t m = q->shape[0];
  if (heads < 1 || kv_heads < 1 || heads % kv_heads || q->shape[1] % heads || !q->shape[1])
    return nb_fail(NB_EINVAL, "attention: %lld heads over %lld key/value heads don't divide rows of %lld",
                   (long long)heads, (long long)kv_heads, (long long)q->shape[1]);
  if (length < 1 || m % length)
    return nb_fail(NB_EINVAL, "attention: %lld rows are not whole sequences of %lld", (long long)m,
                   (long long)length);
  if (sliding < 0)
    return nb_fail(NB_EINVAL, "attention: a sliding window of %lld, expected 0 (none) or more",
                   (long long)sliding);
  if (q->shape[1] > INT32_MAX || length > INT32_MAX / 2)
    return nb_fail(NB_EUNSUPPORTED, "attention: rows longer than 2^31-1, or sequences than 2^30");
  int64_t head_dim = q->shape[1] / heads;
  if (head_dim <= 256 && head_dim % 2 == 0) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "attention on a device takes heads of an even number up to 256, found %lld",
                 (long long)head_dim);
}

int nb_device_attention(nb_tensor *out, const nb_tensor *q, const nb_tensor *k, const nb_tensor *v,
                        int64_t heads, int64_t kv_heads, int64_t length, int64_t sliding, double scale) {
  static const int sizes[] = {32, 64, 96, 128, 192, 256};
  nb_cuda_device *d = NULL;
  nb_tensor seen;
  bool whole = true;
  char kernel[32];
  NB_TRY(take(&seen, &d, q, q, -1, -1, &whole));
  NB_TRY(check(q, heads, kv_heads, length, sliding));
  int64_t m = q->shape[0], head_dim = q->shape[1] / heads;
  NB_TRY(take(&seen, &d, k, q, m, kv_heads * head_dim, &whole));
  NB_TRY(take(&seen, &d, v, q, m, k->shape[1], &whole));
  NB_TRY(take(&seen, &d, out, q, m, q->shape[1], &whole));
  const bool wide = q->dtype == NB_F32;
  int size = wide ? 1 : 0, queries = wide ? NB_ATTENTION_F32_QUERIES : NB_ATTENTION_QUERIES;
  while (sizes[size] < head_dim) size += wide ? 2 : 1;
  size = sizes[size];
  int64_t blocks = NB_CEIL(length, queries) * (m / length) * heads;
  if (blocks > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "attention: %lld heads of %lld queries are more than a launch can count",
                   (long long)heads, (long long)m);
  if (blocks == 0) return NB_OK;
  nb_attention_shape s = {.heads = (int32_t)heads,
                          .kv_heads = (int32_t)kv_heads,
                          .head_dim = (int32_t)head_dim,
                          .length = (int32_t)length,
                          .sequences = (int32_t)(m / length),
                          .sliding = (int32_t)(sliding && sliding < length ? sliding : length),
                          .whole = whole && head_dim % 8 == 0,
                          .scale = (float)(wide ? scale : scale * 1.4426950408889634)};
  nb_launch at = {{(int32_t)blocks, 1, 1}, {NB_ATTENTION_THREADS, 1, 1}, NB_ATTENTION_SHARED(size)};
  if (wide) at = (nb_launch){{(int32_t)blocks, 1, 1}, {NB_ATTENTION_F32_QUERIES * 32, 1, 1}, 0};
  snprintf(kernel, sizeof kernel, "nb_attention_%s_%d", nb_dtype_name(q->dtype), size);
  return nb_device_launch(d->number, kernel, &at,
                          (void *[]){&out->data, (void *)&q->data, (void *)&k->data, (void *)&v->data, &s});
}
