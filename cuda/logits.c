/* logits.c - from last hidden states to likelihoods, best tokens and KL divergences on a device. Logits exist for
 * NB_LOGITS_ROWS tokens and NB_LOGITS_COLUMNS entries of the vocabulary at a time: products by cuBLASLt (or, without it,
 * a simple kernel), then kernels/logits.cu takes them in. */
#include "blas.h"

#include "kernels/forward.h"
#include "kernels/logits.h"

/* One model's side. */
typedef struct side {
  const nb_tensor *x, *head;
  nb_tensor *nll, *top;
} side;

typedef struct job {
  nb_cuda_device *d;
  side p, q; /* q.x is NULL when there is only one model */
  nb_tensor *kl;
  nb_tensor targets; /* on d */
  bool library;
  /* in the stream's workspace: states, logits of both, x and a block of the head in f32 */
  char *states, *y_p, *y_q, *x, *head;
} job;

static const char what[] = "logits";

static int take(job *j, const nb_tensor *t, const char *name, int dtype, int ndim, const int64_t *shape) {
  nb_tensor seen;
  NB_TRY(nb_cuda_operand_at(&seen, &j->d, t, NB_MAX(nb_dtype_bits(t->dtype) / 8, 1), name));
  return nb_expect(&seen, name, dtype, ndim, shape);
}

static int check_side(job *j, const side *s, int64_t m, int64_t vocab) {
  NB_TRY(take(j, s->x, "logits: x", -1, 2, NB_SHAPE(m, -1)));
  NB_TRY(nb_cuda_expect_plain(s->x, "logits: x"));
  NB_TRY(take(j, s->head, "logits: head", -1, 2, NB_SHAPE(vocab, s->x->shape[1])));
  NB_TRY(nb_cuda_expect_plain(s->head, "logits: head"));
  NB_TRY(take(j, s->nll, "logits: nll", NB_F64, 1, NB_SHAPE(m)));
  NB_TRY(take(j, s->top, "logits: top", NB_I32, 1, NB_SHAPE(m)));
  if (s->x->shape[1] < 1 || vocab < 1 || vocab > INT32_MAX || s->x->shape[1] > INT32_MAX)
    return nb_fail(NB_EINVAL, "logits: a head of [%lldx%lld], expected 1 to 2^31-1 each", (long long)vocab,
                   (long long)s->x->shape[1]);
  return NB_OK;
}

/* The targets on the device; from the computer's memory they are checked and brought there. */
static int take_targets(job *j, const nb_tensor *targets, int64_t m, int64_t vocab) {
  if (targets->device) {
    NB_TRY(take(j, targets, "logits: targets", NB_I32, 1, NB_SHAPE(m)));
    j->targets = *targets;
    j->targets.buf = NULL; /* borrowed */
    return NB_OK;
  }
  NB_TRY(nb_expect(targets, "logits: targets", NB_I32, 1, NB_SHAPE(m)));
  const int32_t *id = targets->data;
  for (int64_t i = 0; i < m; i++)
    if (id[i] >= vocab)
      return nb_fail(NB_EINVAL, "logits: target %d at place %lld is outside the vocabulary of %lld", id[i],
                     (long long)i, (long long)vocab);
  return nb_tensor_to(&j->targets, targets, j->d->number);
}

/* Whether a side's product needs its operands in f32. */
static bool widens(const job *j, const side *s) {
  return j->library && s->x && s->x->dtype != s->head->dtype;
}

static int workspace(job *j, int64_t rows, int64_t columns) {
  int64_t k = 0, state = NB_LOGITS_STATE * 8, y = rows * columns * 4, used = 0;
  if (widens(j, &j->p)) k = j->p.x->shape[1];
  if (widens(j, &j->q)) k = NB_MAX(k, j->q.x->shape[1]);
  int64_t sizes[] = {rows * state, y, j->q.x ? y : 0, rows * k * 4, columns * k * 4}, at[5];
  for (int i = 0; i < 5; i++) {
    at[i] = used;
    used += NB_CEIL(sizes[i], 256) * 256;
  }
  void *room;
  NB_TRY(nb_cuda_workspace(&room, j->d, NB_CUDA_FOR_FORWARD, used));
  char *base = room;
  j->states = base + at[0], j->y_p = base + at[1], j->y_q = base + at[2];
  j->x = base + at[3], j->head = base + at[4];
  return NB_OK;
}

/* *t becomes the same in f32, at `to`. */
static int widen(nb_tensor *t, char *to) {
  nb_tensor wide = *t;
  wide.dtype = NB_F32;
  wide.data = to;
  NB_TRY(nb_device_cast(&wide, t, 0));
  *t = wide;
  return NB_OK;
}

/* Rows from `first` on, so many. */
static nb_tensor part(const nb_tensor *t, int64_t first, int64_t rows) {
  nb_tensor out = *t;
  out.buf = NULL;
  out.data = (char *)t->data + first * t->shape[1] * nb_dtype_bits(t->dtype) / 8;
  out.shape[0] = rows;
  return out;
}

/* y [rows, columns] = x head^T by cuBLASLt. NB_EUNSUPPORTED: it can't. */
static int by_library(const job *j, char *y, nb_tensor x, nb_tensor head) {
  if (x.dtype != head.dtype) {
    NB_TRY(widen(&x, j->x));
    NB_TRY(widen(&head, j->head));
  }
  nb_cuda_product p = {.m = x.shape[0],
                       .n = head.shape[0],
                       .k = x.shape[1],
                       .x_pitch = x.shape[1],
                       .w_pitch = x.shape[1],
                       .y_pitch = head.shape[0],
                       .in = x.dtype,
                       .out = NB_F32,
                       .factor = 1,
                       .x = x.data,
                       .w = head.data,
                       .y = y};
  return nb_cuda_gemm(j->d, &p);
}

static int by_kernel(const job *j, char *y, nb_tensor x, nb_tensor head) {
  int m = (int)x.shape[0], n = (int)head.shape[0], k = (int)x.shape[1];
  int from = nb_cuda_kernel_dtype(x.dtype), weights = nb_cuda_kernel_dtype(head.dtype);
  int whole = k % NB_FORWARD_EIGHT == 0 && (uintptr_t)x.data % 16 == 0 && (uintptr_t)head.data % 16 == 0;
  nb_launch at = {{NB_CEIL(n, NB_LOGITS_THREADS / 32), NB_CEIL(m, NB_LOGITS_PRODUCT_ROWS), 1},
                  {NB_LOGITS_THREADS, 1, 1},
                  0};
  return nb_device_launch(j->d->number, "nb_logits_product", &at,
                          (void *[]){&y, &x.data, &head.data, &n, &m, &k, &from, &weights, &whole});
}

/* The logits of one side: of `rows` tokens and `columns` entries of the vocabulary. */
static int product(const job *j, const side *s, char *y, int64_t row, int64_t rows, int64_t n0,
                   int64_t columns) {
  nb_tensor x = part(s->x, row, rows), head = part(s->head, n0, columns);
  int rc = j->library ? by_library(j, y, x, head) : NB_EUNSUPPORTED;
  return rc == NB_EUNSUPPORTED ? by_kernel(j, y, x, head) : rc;
}

/* Where a result of row `row` goes. */
static void *at_row(const nb_tensor *t, int64_t row) {
  return t ? (char *)t->data + row * nb_dtype_bits(t->dtype) / 8 : NULL;
}

static int take_block(const job *j, int64_t row, int64_t rows, const nb_logits_block *b) {
  char *y_q = j->q.x ? j->y_q : NULL;
  void *targets = at_row(&j->targets, row), *kl = at_row(j->kl, row), *nll_p = at_row(j->p.nll, row),
       *nll_q = at_row(j->q.nll, row), *top_p = at_row(j->p.top, row), *top_q = at_row(j->q.top, row);
  nb_launch at = {{(int32_t)rows, 1, 1}, {NB_LOGITS_THREADS, 1, 1}, NB_LOGITS_SHARED};
  return nb_device_launch(j->d->number, "nb_logits_take", &at,
                          (void *[]){(void *)&j->states, (void *)&j->y_p, &y_q, &targets, &kl, &nll_p, &nll_q,
                                     &top_p, &top_q, (void *)b});
}

static int score_rows(const job *j, int64_t row, int64_t rows, int64_t columns) {
  int64_t vocab = j->p.head->shape[0];
  for (int64_t n0 = 0; n0 < vocab; n0 += columns) {
    if (nb_stop_requested()) return nb_fail_stopped();
    int64_t n = NB_MIN(columns, vocab - n0);
    NB_TRY(product(j, &j->p, j->y_p, row, rows, n0, n));
    if (j->q.x) NB_TRY(product(j, &j->q, j->y_q, row, rows, n0, n));
    nb_logits_block b = {.n0 = (int32_t)n0,
                         .columns = (int32_t)n,
                         .vocab = (int32_t)vocab,
                         .first = n0 == 0,
                         .last = n0 + n == vocab};
    NB_TRY(take_block(j, row, rows, &b));
  }
  return NB_OK;
}

static int run(job *j, const nb_tensor *targets) {
  nb_tensor seen;
  NB_TRY(nb_cuda_operand_at(&seen, &j->d, j->p.x, 2, what));
  NB_TRY(nb_expect(&seen, "logits: x", -1, 2, NB_SHAPE(-1, -1)));
  int64_t m = seen.shape[0], vocab = j->p.head->ndim == 2 ? j->p.head->shape[0] : -1;
  NB_TRY(check_side(j, &j->p, m, vocab));
  if (j->q.x) NB_TRY(check_side(j, &j->q, m, vocab));
  if (j->q.x) NB_TRY(take(j, j->kl, "logits: kl", NB_F64, 1, NB_SHAPE(m)));
  j->library = nb_cublaslt() != NULL;
  int64_t rows = NB_MIN(m, NB_LOGITS_ROWS), columns = NB_MIN(vocab, NB_LOGITS_COLUMNS);
  if (m == 0) return NB_OK;
  NB_TRY(workspace(j, rows, columns));
  NB_TRY(take_targets(j, targets, m, vocab));
  int rc = NB_OK;
  for (int64_t row = 0; row < m && rc == NB_OK; row += rows)
    rc = score_rows(j, row, NB_MIN(rows, m - row), columns);
  nb_tensor_release(&j->targets);
  return rc;
}

int nb_device_logits_score(nb_tensor *nll, nb_tensor *top, const nb_tensor *x, const nb_tensor *head,
                           const nb_tensor *targets) {
  job j = {.p = {.x = x, .head = head, .nll = nll, .top = top}};
  return run(&j, targets);
}

int nb_device_logits_compare(nb_tensor *kl, nb_tensor *nll_p, nb_tensor *nll_q, nb_tensor *top_p,
                             nb_tensor *top_q, const nb_tensor *x_p, const nb_tensor *head_p,
                             const nb_tensor *x_q, const nb_tensor *head_q, const nb_tensor *targets) {
  job j = {.p = {.x = x_p, .head = head_p, .nll = nll_p, .top = top_p},
           .q = {.x = x_q, .head = head_q, .nll = nll_q, .top = top_q},
           .kl = kl};
  return run(&j, targets);
}
