/* logits.c - from last hidden states to negative log-likelihoods, best tokens and
 * KL divergences, without the matrix of logits.
 *
 * One task: ROWS tokens against the whole vocabulary, NB_TILE_N entries at a time,
 * in order. Each row keeps a running log-sum-exp in double (vector.h), so only
 * ROWS x NB_TILE_N logits a thread exist at once, for any vocabulary. */
#include "sgemm.h"

#include <math.h>
#include <omp.h>

enum { ROWS = 256 };

/* One model's side of a task. */
typedef struct side {
  const nb_tensor *x, *head;
  nb_tensor *nll, *top;
} side;

typedef struct row_state {
  nb_lse lse;
  double target, cross;
  float best;
  int32_t best_at;
} row_state;

typedef struct job {
  nb_sgemm_fn *sgemm;
  const nb_vector *v;
  const int32_t *targets;
  side p, q; /* q.x is NULL when there is only one model */
  nb_tensor *kl;
} job;

/* What every value of the tile y [rows, n], entries n0.. of the vocabulary, tells a row,
 * besides its sum. */
static void look(row_state *s, const float *y, int64_t n, int64_t n0, int32_t target) {
  for (int64_t j = 0; j < n; j++)
    if (y[j] > s->best) {
      s->best = y[j];
      s->best_at = (int32_t)(n0 + j);
    }
  if (target >= n0 && target < n0 + n) s->target = (double)y[target - n0];
}

/* Any NaN as the plain one: LuaJIT reads these, and takes the bits of some NaNs for tags. */
static double plain(double v) { return v != v ? (double)NAN : v; }

static double lse_value(const row_state *s) { return s->lse.max + log(s->lse.sum); }

static void put(const side *d, const row_state *s, int64_t row, int32_t target) {
  ((double *)d->nll->data)[row] = target < 0 ? 0.0 : plain(lse_value(s) - s->target);
  ((int32_t *)d->top->data)[row] = s->best_at;
}

static void score_rows(const job *j, int64_t row0, int64_t rows, float *scratch) {
  row_state p[ROWS], q[ROWS];
  for (int64_t i = 0; i < rows; i++) p[i] = q[i] = (row_state){{-INFINITY, 0.0}, 0.0, 0.0, -INFINITY, 0};
  float *yp = scratch, *yq = yp + ROWS * NB_TILE_N, *wide = yq + ROWS * NB_TILE_N;
  int64_t vocab = j->p.head->shape[0];
  for (int64_t n0 = 0; n0 < vocab; n0 += NB_TILE_N) {
    int64_t n = NB_MIN(NB_TILE_N, vocab - n0);
    int64_t kp = j->p.x->shape[1];
    nb_gemm_tile(j->sgemm, j->v, yp, n, (const float *)j->p.x->data + row0 * kp, kp, rows, j->p.head, n0, n,
                 wide);
    if (j->q.x) {
      int64_t kq = j->q.x->shape[1];
      nb_gemm_tile(j->sgemm, j->v, yq, n, (const float *)j->q.x->data + row0 * kq, kq, rows, j->q.head, n0, n,
                   wide);
    }
    for (int64_t i = 0; i < rows; i++) {
      int32_t target = j->targets[row0 + i];
      look(&p[i], yp + i * n, n, n0, target);
      if (!j->q.x) {
        j->v->lse(&p[i].lse, yp + i * n, n);
        continue;
      }
      look(&q[i], yq + i * n, n, n0, target);
      j->v->lse_cross(&p[i].lse, &p[i].cross, yp + i * n, yq + i * n, n);
      j->v->lse(&q[i].lse, yq + i * n, n);
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    int32_t target = j->targets[row0 + i];
    put(&j->p, &p[i], row0 + i, target);
    if (!j->q.x) continue;
    put(&j->q, &q[i], row0 + i, target);
    /* sum of p (log p - log q), with log p - log q = (yp - yq) - (lse p - lse q) */
    ((double *)j->kl->data)[row0 + i] =
        target < 0 ? 0.0 : plain(p[i].cross / p[i].lse.sum - (lse_value(&p[i]) - lse_value(&q[i])));
  }
}

static int check_side(const side *d, int64_t m, int64_t vocab) {
  NB_TRY(nb_expect(d->x, "logits: x", NB_F32, 2, NB_SHAPE(m, -1)));
  NB_TRY(nb_expect(d->head, "logits: head", -1, 2, NB_SHAPE(vocab, d->x->shape[1])));
  NB_TRY(nb_expect_float(d->head, "logits: head"));
  NB_TRY(nb_expect(d->nll, "logits: nll", NB_F64, 1, NB_SHAPE(m)));
  NB_TRY(nb_expect(d->top, "logits: top", NB_I32, 1, NB_SHAPE(m)));
  if (d->x->shape[1] < 1 || vocab < 1 || vocab > INT32_MAX || d->x->shape[1] > INT32_MAX)
    return nb_fail(NB_EINVAL, "logits: a head of [%lldx%lld], expected 1 to 2^31-1 each", (long long)vocab,
                   (long long)d->x->shape[1]);
  return NB_OK;
}

static int run(job *j, const nb_tensor *targets) {
  NB_TRY(nb_expect(targets, "logits: targets", NB_I32, 1, NB_SHAPE(-1)));
  int64_t m = targets->shape[0], vocab = j->p.head->ndim == 2 ? j->p.head->shape[0] : -1;
  NB_TRY(check_side(&j->p, m, vocab));
  int64_t wide = nb_gemm_scratch(j->p.head);
  if (j->q.x) {
    NB_TRY(check_side(&j->q, m, vocab));
    NB_TRY(nb_expect(j->kl, "logits: kl", NB_F64, 1, NB_SHAPE(m)));
    wide = NB_MAX(wide, nb_gemm_scratch(j->q.head));
  }
  j->targets = targets->data;
  for (int64_t i = 0; i < m; i++)
    if (j->targets[i] >= vocab)
      return nb_fail(NB_EINVAL, "logits: target %d at place %lld is outside the vocabulary of %lld",
                     j->targets[i], (long long)i, (long long)vocab);
  j->sgemm = nb_sgemm_here();
  j->v = nb_vector_here();
  int64_t blocks = NB_CEIL(m, ROWS), per_thread = 2 * ROWS * NB_TILE_N + wide;
  int threads = (int)NB_MIN(nb_threads(), NB_MAX(blocks, 1)), stopped = 0;
  float *scratch = nb_alloc(threads * per_thread, sizeof *scratch);
  if (!scratch) return NB_ENOMEM;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (blocks > 1)
  for (int64_t b = 0; b < blocks; b++) {
    if (nb_stop_requested()) {
#pragma omp atomic write
      stopped = 1;
      continue;
    }
    score_rows(j, b * ROWS, NB_MIN(ROWS, m - b * ROWS), scratch + omp_get_thread_num() * per_thread);
  }
  free(scratch);
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_logits_score(nb_tensor *nll, nb_tensor *top, const nb_tensor *x, const nb_tensor *head,
                    const nb_tensor *targets) {
  job j = {.p = {.x = x, .head = head, .nll = nll, .top = top}};
  return run(&j, targets);
}

int nb_logits_compare(nb_tensor *kl, nb_tensor *nll_p, nb_tensor *nll_q, nb_tensor *top_p, nb_tensor *top_q,
                      const nb_tensor *x_p, const nb_tensor *head_p, const nb_tensor *x_q,
                      const nb_tensor *head_q, const nb_tensor *targets) {
  job j = {.p = {.x = x_p, .head = head_p, .nll = nll_p, .top = top_p},
           .q = {.x = x_q, .head = head_q, .nll = nll_q, .top = top_q},
           .kl = kl};
  return run(&j, targets);
}
