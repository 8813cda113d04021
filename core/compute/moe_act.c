/* moe_act.c - what stands between an expert's two products: the activation function,
 * gated or not, with the rounding of a kernel that keeps its values in 16 bits
 * (SYSTEMS FWD-06, FWD-07). */
#include "moe.h"
#include "moe_act_body.h"

const nb_act_table nb_act_table_portable = NB_ACT_TABLE;

enum { BLOCK = 512, TASK = 1 << 14 };

static bool gated(int kind) { return kind < NB_MOE_SILU_NO_MUL; }

/* Where each row's gates and ups lie. */
typedef struct job {
  const nb_act_table *table;
  const nb_moe_act *act;
  const float *gate, *up;
  int64_t stride; /* from row to row, of both */
  float *out;
  int64_t n;
  bool interleaved;
} job;

/* Every step-th of n values, rounded to dtype, in `to`. */
static const float *take(float *to, const float *from, int64_t step, int64_t n, const job *j) {
  for (int64_t i = 0; i < n; i++) to[i] = from[i * step];
  nb_round_row(j->table, to, n, j->act->dtype);
  return to;
}

static void activate_block(const job *j, int64_t row, int64_t at, int64_t n) {
  float g[BLOCK], u[BLOCK], *out = j->out + row * j->n + at;
  int64_t step = j->interleaved ? 2 : 1;
  const float *gate = j->gate + row * j->stride + at * step;
  const float *up = j->up ? j->up + row * j->stride + at * step : NULL;
  if (step > 1 || j->act->dtype != NB_F32) {
    gate = take(g, gate, step, n, j);
    if (up) up = take(u, up, step, n, j);
  }
  j->table->row[j->act->kind](out, gate, up, n, j->act);
  nb_round_row(j->table, out, n, j->act->dtype);
}

int nb_moe_activation_check(const nb_tensor *out, const nb_tensor *h, const nb_tensor *up,
                            const nb_moe_act *act) {
  if (act->kind < 0 || act->kind >= NB_MOE_KINDS)
    return nb_fail(NB_EINVAL, "activation: kind %d is not one of the %d known", act->kind, NB_MOE_KINDS);
  if (act->dtype != NB_F32 && act->dtype != NB_F16 && act->dtype != NB_BF16)
    return nb_fail(NB_EINVAL, "activation: rounds to f32, f16 or bf16, found %s", nb_dtype_name(act->dtype));
  NB_TRY(nb_expect(h, "activation: input", NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(out, "activation: output", NB_F32, 2, NB_SHAPE(-1, -1)));
  if (up && !gated(act->kind))
    return nb_fail(NB_EINVAL, "activation: an up half for a kind that is not gated");
  if (up && act->kind == NB_MOE_SWIGLUOAI)
    return nb_fail(NB_EINVAL, "activation: swigluoai takes gate and up interleaved in one tensor");
  if (up) NB_TRY(nb_expect(up, "activation: up", NB_F32, 2, h->shape));
  int64_t halves = gated(act->kind) && !up ? 2 : 1;
  if (out->shape[0] != h->shape[0] || out->shape[1] * halves != h->shape[1])
    return nb_fail(
        NB_EINVAL, "activation: input [%lldx%lld] and output [%lldx%lld]; expected as many rows, and %s",
        (long long)h->shape[0], (long long)h->shape[1], (long long)out->shape[0], (long long)out->shape[1],
        halves == 2 ? "an input twice as wide as the output" : "equal widths");
  if (halves == 2 && out->data == h->data && nb_tensor_numel(out) > 0)
    return nb_fail(NB_EINVAL, "activation: the output lies over an input twice as wide");
  return NB_OK;
}

int nb_moe_activation(nb_tensor *out, const nb_tensor *h, const nb_tensor *up, const nb_moe_act *act) {
  NB_TRY(nb_moe_activation_check(out, h, up, act));
  bool pairs = act->kind == NB_MOE_SWIGLUOAI, halves = gated(act->kind) && !up;
  int64_t m = out->shape[0], n = out->shape[1];
  job j = {nb_act_table_here(), act, h->data, NULL, h->shape[1], out->data, n, pairs};
  if (up) j.up = up->data;
  else if (halves) j.up = j.gate + (pairs ? 1 : n);
  int64_t blocks = NB_CEIL(n, BLOCK);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * n > TASK)
  for (int64_t b = 0; b < m * blocks; b++) {
    int64_t at = b % blocks * BLOCK;
    activate_block(&j, b / blocks, at, NB_MIN(BLOCK, n - at));
  }
  return NB_OK;
}

int nb_scale_rows(nb_tensor *x, const nb_tensor *weights, int dtype) {
  NB_TRY(nb_expect(x, "scale_rows: x", NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(weights, "scale_rows: weights", NB_F32, 1, NB_SHAPE(x->shape[0])));
  int64_t m = x->shape[0], n = x->shape[1];
  const float *w = weights->data;
  const nb_act_table *t = nb_act_table_here();
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m * n > TASK)
  for (int64_t i = 0; i < m; i++) {
    float *row = (float *)x->data + i * n;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) row[j] *= w[i];
    nb_round_row(t, row, n, dtype);
  }
  return NB_OK;
}
