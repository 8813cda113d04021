/* moe_rows.c - a mixture's rows on a device: activations, sums over a token's experts, batches, weights on the input;
 * kernels/moe_act.cu, moe_rows.cu, nb_moe_place and two of product_rows.cu, launched. The checks and the sentences are
 * the CPU's where it has such a function. */
#include "device.h"

#include "compute/moe.h"

#include "kernels/moe_rows.h"
#include "kernels/product.h"

_Static_assert((int)NB_KERNEL_SILU == NB_MOE_SILU && (int)NB_KERNEL_SWIGLUOAI == NB_MOE_SWIGLUOAI &&
                   (int)NB_KERNEL_SILU_NO_MUL == NB_MOE_SILU_NO_MUL &&
                   (int)NB_KERNEL_RELU2_NO_MUL + 1 == NB_MOE_KINDS,
               "kernels number the activations as nibble.h does");

/* Whether rows of so many values lie so that eights can be taken at once. */
static bool whole(const nb_tensor *t, int64_t row) {
  return !t || ((uintptr_t)t->data % 16 == 0 && row % NB_FORWARD_EIGHT == 0);
}

/* A block, or several, to a row of so many threads' work; `pieces`: as many as the work needs, else 64 at most. */
static int launch_rows(int device, const char *kernel, int64_t rows, int64_t items, int shared, bool pieces,
                       void **arguments) {
  if (rows == 0 || items == 0) return NB_OK;
  int64_t threads = NB_MIN(NB_CEIL(items, 32) * 32, NB_FORWARD_THREADS), across = NB_CEIL(items, threads);
  if (!pieces) across = NB_MIN(across, 64);
  if (rows > INT32_MAX || across > 65535)
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld rows of %lld pieces are more than a launch can count", kernel,
                   (long long)rows, (long long)across);
  nb_launch at = {{(int32_t)rows, (int32_t)across, 1}, {(int32_t)threads, 1, 1}, shared};
  return nb_device_launch(device, kernel, &at, arguments);
}

/* ---- activations ------------------------------------------------------------------------- */

static int check_dtypes(const nb_tensor *out, const nb_tensor *h, const nb_tensor *up,
                        const nb_moe_act *act) {
  const char *what = "activation";
  NB_TRY(nb_cuda_expect_plain(h, "activation: input"));
  if (out->dtype != h->dtype || (up && up->dtype != h->dtype))
    return nb_fail(NB_EINVAL, "%s: expected one dtype on a device, found %s from %s%s%s", what,
                   nb_dtype_name(out->dtype), nb_dtype_name(h->dtype), up ? " and " : "",
                   up ? nb_dtype_name(up->dtype) : "");
  if (h->dtype != NB_F32 && act->dtype != h->dtype)
    return nb_fail(NB_EINVAL, "%s: of %s it rounds to %s, found %s", what, nb_dtype_name(h->dtype),
                   nb_dtype_name(h->dtype),
                   nb_dtype_name(act->dtype) ? nb_dtype_name(act->dtype) : "an unknown dtype");
  return NB_OK;
}

static int activate(nb_tensor *to, const nb_tensor *h, const nb_tensor *up, const nb_moe_act *act) {
  nb_tensor seen[3];
  NB_TRY(nb_cuda_operands(seen, NULL, (const nb_tensor *[]){to, h, up}, 3, "activation"));
  NB_TRY(check_dtypes(to, h, up, act));
  for (int i = 0; i < 3; i++) seen[i].dtype = NB_F32; /* of which the CPU's sentences are */
  NB_TRY(nb_moe_activation_check(&seen[0], &seen[1], up ? &seen[2] : NULL, act));
  bool gated = act->kind < NB_MOE_SILU_NO_MUL, halves = gated && !up && act->kind != NB_MOE_SWIGLUOAI;
  int64_t n = to->shape[1];
  nb_moe_act_rows o = {.n = n,
                       .stride = h->shape[1],
                       .up = halves ? n : 0,
                       .kind = act->kind,
                       .dtype = nb_cuda_kernel_dtype(h->dtype),
                       .rounding = nb_cuda_kernel_dtype(act->dtype),
                       .whole = whole(to, n) && whole(h, n) && whole(up, n),
                       .limit = act->limit,
                       .alpha = act->alpha,
                       .beta = act->beta};
  void *ups = up ? up->data : halves ? h->data : NULL, *gates = h->data;
  const char *kernel = act->kind == NB_MOE_GELU || act->kind == NB_MOE_GELU_NO_MUL ? "nb_moe_activation_gelu"
                                                                                   : "nb_moe_activation";
  return launch_rows(h->device, kernel, to->shape[0], NB_CEIL(n, NB_FORWARD_EIGHT), 0, true,
                     (void *[]){&to->data, &gates, &ups, &o});
}

int nb_device_moe_activation(nb_tensor *out, const nb_tensor *h, const nb_tensor *up, const nb_moe_act *act) {
  nb_cuda_device *d = NULL;
  nb_tensor seen, to = *out;
  if (out->data || out->buf) return activate(&to, h, up, act);
  NB_TRY(nb_cuda_operand_at(&seen, &d, h, 1, "activation"));
  NB_TRY(nb_expect(&seen, "activation: input", -1, 2, NB_SHAPE(-1, -1)));
  bool halves = act->kind < NB_MOE_SILU_NO_MUL && !up;
  NB_TRY(nb_cuda_tensor(&to, d, h->dtype, 2, NB_SHAPE(h->shape[0], h->shape[1] / (halves ? 2 : 1))));
  return nb_cuda_finish(out, &to, activate(&to, h, up, act));
}

/* ---- sums over a token's experts -------------------------------------------------------------- */

/* y [tokens, columns], made as `like` where it is empty; x's rows by the keys of pairs. */
static int sum(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
               const nb_tensor *map, nb_moe_sums o, const char *what) {
  enum { X, IDS, WEIGHTS, MAP, COUNT };
  enum { MOST = 4096 };
  nb_cuda_device *d = NULL;
  nb_tensor seen[COUNT], to;
  NB_TRY(nb_cuda_operands(seen, &d, (const nb_tensor *[]){x, ids, weights, map}, COUNT, what));
  NB_TRY(nb_expect(&seen[IDS], what, NB_I32, 2, NB_SHAPE(-1, -1)));
  int64_t tokens = ids->shape[0], top = ids->shape[1], columns = x->shape[x->ndim - 1];
  if (weights) NB_TRY(nb_expect(&seen[WEIGHTS], what, NB_F32, 2, NB_SHAPE(tokens, top)));
  if (map) NB_TRY(nb_expect(&seen[MAP], what, NB_I32, 1, NB_SHAPE(-1)));
  NB_TRY(nb_cuda_expect_plain(x, what));
  if (top > MOST)
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld experts to a token, expected at most %d", what, (long long)top,
                   MOST);
  int dtype = (y->data || y->buf) && y->dtype == NB_F32 ? NB_F32 : x->dtype;
  NB_TRY(nb_cuda_result(&to, y, d, dtype, 2, NB_SHAPE(tokens, columns), what));
  o.columns = columns;
  o.top = (int)top;
  o.entries = map ? (int)NB_MIN(map->shape[0], INT32_MAX) : 0;
  o.dtype = nb_cuda_kernel_dtype(x->dtype);
  o.rounding = o.placed ? NB_KERNEL_F32 : o.dtype;
  o.out_dtype = nb_cuda_kernel_dtype(dtype);
  o.whole = whole(&to, columns) && whole(x, columns);
  const void *from = x->data, *id = ids->data, *w = weights ? weights->data : NULL,
             *local = map ? map->data : NULL;
  return nb_cuda_finish(y, &to,
                        launch_rows(d->number, "nb_moe_sum", tokens, NB_CEIL(columns, NB_FORWARD_EIGHT),
                                    nb_moe_sum_shared(o.top), true,
                                    (void *[]){&to.data, &from, &id, &local, &w, &o}));
}

int nb_device_moe_sum(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
                      const nb_tensor *map, int64_t experts) {
  const char *what = "moe sum";
  nb_tensor seen = *x;
  seen.device = 0;
  NB_TRY(nb_expect(&seen, what, -1, 2, NB_SHAPE(nb_tensor_numel(ids), -1)));
  return sum(y, x, ids, weights, map, (nb_moe_sums){.keys = (int)NB_MAX(0, NB_MIN(experts, INT32_MAX))},
             what);
}

int nb_device_moe_combine(nb_tensor *y, const nb_tensor *x, const nb_tensor *places,
                          const nb_tensor *weights) {
  const char *what = "moe combine";
  nb_tensor seen = *x;
  seen.device = 0;
  NB_TRY(nb_expect(&seen, what, -1, 3, NB_SHAPE(-1, -1, -1)));
  int64_t rows = x->shape[0] * x->shape[1];
  return sum(y, x, places, weights, NULL, (nb_moe_sums){.keys = (int)NB_MIN(rows, INT32_MAX), .placed = 1},
             what);
}

int nb_device_moe_weigh(nb_tensor *out, const nb_tensor *x, const nb_tensor *weights) {
  static const char asks[] = "moe weigh";
  enum { BLOCKS = 4096 };
  nb_cuda_device *d = NULL;
  nb_tensor seen, to;
  NB_TRY(nb_cuda_operand_at(&seen, &d, x, 2, asks));
  if (x->ndim != 2 || (x->dtype != NB_F16 && x->dtype != NB_BF16))
    return nb_fail(NB_EINVAL, "%s: x must be f16 or bf16 [tokens, hidden], found %s", asks,
                   nb_dtype_name(x->dtype));
  NB_TRY(nb_cuda_expect(weights, "moe weigh: weights", x->device, NB_F32, 2, NB_SHAPE(x->shape[0], -1)));
  int64_t top64 = weights->shape[1], pairs = x->shape[0] * top64, numbers = pairs * x->shape[1];
  if (top64 > 1 << 20 || x->shape[1] > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld experts to a token of %lld numbers", asks, (long long)top64,
                   (long long)x->shape[1]);
  NB_TRY(nb_cuda_result(&to, out, d, x->dtype, 2, NB_SHAPE(pairs, x->shape[1]), "moe weigh: out"));
  int width = (int)x->shape[1], top = (int)top64, bf16 = x->dtype == NB_BF16, rc = NB_OK;
  nb_launch at = {{(int32_t)NB_MIN(NB_CEIL(numbers, (int64_t)NB_PRODUCT_THREADS), (int64_t)BLOCKS), 1, 1},
                  {NB_PRODUCT_THREADS, 1, 1},
                  0};
  if (numbers)
    rc = nb_device_launch(
        d->number, "nb_moe_weigh", &at,
        (void *[]){(void *)&x->data, (void *)&weights->data, &to.data, &numbers, &width, &top, &bf16});
  return nb_cuda_finish(out, &to, rc);
}

int nb_device_moe_batch_ids(nb_tensor *ids, const nb_tensor *counts, int64_t most) {
  static const char asks[] = "moe batch";
  enum { BLOCKS = 4096 };
  nb_cuda_device *d = NULL;
  nb_tensor seen, to;
  NB_TRY(nb_cuda_operand_at(&seen, &d, counts, 4, asks));
  NB_TRY(nb_cuda_expect(counts, "moe batch: counts", counts->device, NB_I32, 1, NB_SHAPE(-1)));
  if (most < 0 || most > INT32_MAX)
    return nb_fail(NB_EINVAL, "%s: room for %lld rows, expected 0 to 2^31-1", asks, (long long)most);
  int64_t places = counts->shape[0] * most;
  NB_TRY(nb_cuda_result(&to, ids, d, NB_I32, 2, NB_SHAPE(places, 1), "moe batch: ids"));
  int width = (int)most, rc = NB_OK;
  nb_launch at = {{(int32_t)NB_MIN(NB_CEIL(places, (int64_t)NB_PRODUCT_THREADS), (int64_t)BLOCKS), 1, 1},
                  {NB_PRODUCT_THREADS, 1, 1},
                  0};
  if (places)
    rc = nb_device_launch(d->number, "nb_moe_batch_ids", &at,
                          (void *[]){(void *)&counts->data, &to.data, &places, &width});
  return nb_cuda_finish(ids, &to, rc);
}
