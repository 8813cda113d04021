/* forward.c - the forward pass's small operations on a device: kernels/forward.cu and forward_rows.cu, launched. Checks are
 * the CPU's, but for dtypes: activations here are also bf16 and f16. */
#include "device.h"

#include "kernels/forward.h"

/* ---- tensors ------------------------------------------------------------------------- */

/* The device of a call and whether its tensors may be taken 16 bytes at a time. */
typedef struct call {
  const char *what;
  nb_cuda_device *d;
  bool whole;
} call;

/* seen: t for the CPU's checks. t lies on the call's device; rows of `row` elements decide, with its address, how it is read. */
static int take(call *c, nb_tensor *seen, const nb_tensor *t, int64_t row) {
  NB_TRY(nb_cuda_operand_at(seen, &c->d, t, NB_MAX(nb_dtype_bits(t->dtype) / 8, 1), c->what));
  c->whole = c->whole && row % NB_FORWARD_EIGHT == 0 && (uintptr_t)t->data % 16 == 0;
  return NB_OK;
}

static int64_t last_of(const nb_tensor *t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }

/* A matrix of plain floats, [rows, columns] where these are not -1. */
static int take_matrix(call *c, const nb_tensor *t, int64_t rows, int64_t columns) {
  nb_tensor seen;
  NB_TRY(take(c, &seen, t, last_of(t)));
  NB_TRY(nb_expect(&seen, c->what, -1, 2, NB_SHAPE(rows, columns)));
  return nb_cuda_expect_plain(&seen, c->what);
}

static int take_vector(call *c, const nb_tensor *t, int dtype, int64_t count) {
  nb_tensor seen;
  NB_TRY(nb_cuda_operand_at(&seen, &c->d, t, nb_dtype_bits(dtype) / 8, c->what));
  return nb_expect(&seen, c->what, dtype, 1, NB_SHAPE(count));
}

static int check_rounding(const char *what, int dtype) {
  if (nb_cuda_is_plain(dtype)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: rounds to f32, f16 or bf16, found %s", what,
                 nb_dtype_name(dtype) ? nb_dtype_name(dtype) : "an unknown dtype");
}

/* ---- launches ------------------------------------------------------------------------- */

static int too_many(const char *what, int64_t n) {
  return nb_fail(NB_EUNSUPPORTED, "%s: %lld rows are more than a launch can count", what, (long long)n);
}

/* Of n elements, eight to a thread. */
static int launch_flat(const call *c, const char *kernel, int64_t n, void **arguments) {
  int64_t blocks = NB_CEIL(n, (int64_t)NB_FORWARD_EIGHT * NB_FORWARD_THREADS);
  if (n == 0) return NB_OK;
  if (blocks > INT32_MAX) return too_many(c->what, n);
  nb_launch at = {{(int32_t)blocks, 1, 1}, {NB_FORWARD_THREADS, 1, 1}, 0};
  return nb_device_launch(c->d->number, kernel, &at, arguments);
}

/* Of rows of so many threads' work each: a block or more to a row. */
static int launch_rows(const call *c, const char *kernel, int64_t rows, int64_t items, bool split,
                       void **arguments) {
  if (rows == 0 || items == 0) return NB_OK;
  if (rows > INT32_MAX || items > INT32_MAX) return too_many(c->what, NB_MAX(rows, items));
  int64_t threads = NB_MIN(NB_CEIL(items, 32) * 32, NB_FORWARD_THREADS);
  nb_launch at = {{(int32_t)rows, split ? (int32_t)NB_MIN(NB_CEIL(items, threads), 64) : 1, 1},
                  {(int32_t)threads, 1, 1},
                  0};
  return nb_device_launch(c->d->number, kernel, &at, arguments);
}

static int64_t eights(int64_t d) { return NB_CEIL(d, NB_FORWARD_EIGHT); }

/* ---- element by element ------------------------------------------------------------------ */

/* Two tensors of plain floats, as many elements. */
static int take_pair(call *c, const nb_tensor *y, const nb_tensor *x) {
  nb_tensor a, b;
  char text[2][160];
  NB_TRY(take(c, &a, y, nb_tensor_numel(y)));
  NB_TRY(take(c, &b, x, nb_tensor_numel(x)));
  NB_TRY(nb_cuda_expect_plain(&a, c->what));
  NB_TRY(nb_cuda_expect_plain(&b, c->what));
  if (nb_tensor_numel(&a) == nb_tensor_numel(&b)) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: expected two tensors of one size, found %s and %s", c->what,
                 nb_tensor_describe(&a, text[0], sizeof *text),
                 nb_tensor_describe(&b, text[1], sizeof *text));
}

int nb_device_add(nb_tensor *y, const nb_tensor *x) {
  call c = {.what = "add", .whole = true};
  NB_TRY(take_pair(&c, y, x));
  if (y->dtype != NB_F32) return nb_fail(NB_EINVAL, "add: sums are f32, found %s", nb_dtype_name(y->dtype));
  int64_t n = nb_tensor_numel(y);
  int dtype = nb_cuda_kernel_dtype(x->dtype), whole = c.whole;
  return launch_flat(&c, "nb_forward_add", n, (void *[]){&y->data, (void *)&x->data, &n, &dtype, &whole});
}

int nb_device_swiglu(nb_tensor *gate, const nb_tensor *up) {
  call c = {.what = "swiglu", .whole = true};
  NB_TRY(take_pair(&c, gate, up));
  if (gate->dtype != up->dtype)
    return nb_fail(NB_EINVAL, "swiglu: expected gate and up of one dtype, found %s and %s",
                   nb_dtype_name(gate->dtype), nb_dtype_name(up->dtype));
  int64_t n = nb_tensor_numel(gate);
  int dtype = nb_cuda_kernel_dtype(gate->dtype), whole = c.whole;
  return launch_flat(&c, "nb_forward_swiglu", n,
                     (void *[]){&gate->data, (void *)&up->data, &n, &dtype, &whole});
}

int nb_device_cast(nb_tensor *dst, const nb_tensor *src, int saturate) {
  call c = {.what = "cast", .whole = true};
  NB_TRY(take_pair(&c, dst, src));
  if (dst->dtype == src->dtype && !saturate) return nb_device_copy(dst, src);
  int64_t n = nb_tensor_numel(dst);
  int to = nb_cuda_kernel_dtype(dst->dtype), from = nb_cuda_kernel_dtype(src->dtype), whole = c.whole;
  float limit = !saturate               ? 0
                : dst->dtype == NB_F16  ? 65504.0f
                : dst->dtype == NB_BF16 ? 0x1.fep127f
                                        : 0x1.fffffep127f;
  return launch_flat(&c, "nb_forward_cast", n,
                     (void *[]){&dst->data, (void *)&src->data, &n, &to, &from, &limit, &whole});
}

int nb_device_add_nonfinite(nb_tensor *count, const nb_tensor *x) {
  call c = {.what = "count of non-finite values", .whole = true};
  nb_tensor seen;
  NB_TRY(take(&c, &seen, x, nb_tensor_numel(x)));
  NB_TRY(nb_cuda_expect_plain(&seen, c.what));
  NB_TRY(take_vector(&c, count, NB_I32, 1));
  int64_t n = nb_tensor_numel(x);
  int dtype = nb_cuda_kernel_dtype(x->dtype), whole = c.whole;
  return launch_flat(&c, "nb_forward_nonfinite", n,
                     (void *[]){&count->data, (void *)&x->data, &n, &dtype, &whole});
}

int64_t nb_device_count_nonfinite(const nb_tensor *x) {
  call c = {.what = "count of non-finite values", .whole = true};
  nb_tensor seen, count;
  int32_t found = 0;
  NB_TRY(take(&c, &seen, x, nb_tensor_numel(x)));
  NB_TRY(nb_cuda_notes_new(&count, c.d, 1, "non-finite values can't be counted"));
  int rc = nb_device_add_nonfinite(&count, x);
  if (rc == NB_OK) rc = nb_cuda_notes_read(&found, &count);
  nb_tensor_release(&count);
  return rc < 0 ? rc : found;
}

/* ---- rows ------------------------------------------------------------------------------------ */

int nb_device_rmsnorm(nb_tensor *y, const nb_tensor *x, const nb_tensor *weight, double eps) {
  enum { WARP = 32, WARPS_MOST = 1024 };
  call c = {.what = "rmsnorm", .whole = true};
  NB_TRY(take_pair(&c, y, x));
  NB_TRY(take_vector(&c, weight, NB_F32, -1));
  int64_t d = weight->shape[0], n = nb_tensor_numel(x), rows = d ? n / d : 0;
  char text[2][160];
  if (d < 1 || n % d || d > INT32_MAX / 2) {
    nb_tensor a = *x, b = *y;
    return nb_fail(NB_EINVAL, "rmsnorm: expected x and y of rows of %lld, found x %s and y %s", (long long)d,
                   nb_tensor_describe(&a, text[0], sizeof *text),
                   nb_tensor_describe(&b, text[1], sizeof *text));
  }
  if (rows == 0) return NB_OK;
  int width = (int)d, to = nb_cuda_kernel_dtype(y->dtype), from = nb_cuda_kernel_dtype(x->dtype);
  int lanes = d <= WARPS_MOST ? WARP : NB_FORWARD_THREADS;
  int whole = c.whole && d % NB_FORWARD_EIGHT == 0 && (uintptr_t)weight->data % 16 == 0;
  int64_t blocks = NB_CEIL(rows, NB_FORWARD_THREADS / lanes);
  if (blocks > INT32_MAX) return too_many(c.what, rows);
  nb_launch at = {{(int32_t)blocks, 1, 1}, {NB_FORWARD_THREADS, 1, 1}, NB_FORWARD_THREADS / WARP * 8};
  return nb_device_launch(c.d->number, "nb_forward_norm", &at,
                          (void *[]){&y->data, (void *)&x->data, (void *)&weight->data, &rows, &width, &eps,
                                     &to, &from, &lanes, &whole});
}

int nb_device_rope(nb_tensor *x, const nb_tensor *cosines, const nb_tensor *sines, int64_t head_dim,
                   int64_t length) {
  call c = {.what = "rope", .whole = true};
  NB_TRY(take_matrix(&c, x, -1, -1));
  if (head_dim < 2 || head_dim % 2 || x->shape[1] % head_dim)
    return nb_fail(NB_EINVAL, "rope: rows of %lld are not heads of %lld (an even number)",
                   (long long)x->shape[1], (long long)head_dim);
  NB_TRY(take_matrix(&c, cosines, -1, head_dim / 2));
  NB_TRY(take_matrix(&c, sines, cosines->shape[0], head_dim / 2));
  if (cosines->dtype != NB_F32 || sines->dtype != NB_F32)
    return nb_fail(NB_EINVAL, "rope: the tables are f32, found %s and %s", nb_dtype_name(cosines->dtype),
                   nb_dtype_name(sines->dtype));
  if (length < 1 || length > cosines->shape[0] || length > INT32_MAX)
    return nb_fail(NB_EINVAL, "rope: sequences of %lld, but the table has %lld positions", (long long)length,
                   (long long)cosines->shape[0]);
  int64_t heads = x->shape[1] / head_dim, items = heads * eights(head_dim / 2);
  if (x->shape[1] > INT32_MAX) return too_many(c.what, x->shape[1]);
  int count = (int)heads, half = (int)(head_dim / 2), many = (int)length, whole = c.whole;
  int dtype = nb_cuda_kernel_dtype(x->dtype);
  return launch_rows(&c, "nb_forward_rope", x->shape[0], items, false,
                     (void *[]){&x->data, (void *)&cosines->data, (void *)&sines->data, &count, &half, &many,
                                &dtype, &whole});
}

/* i32 ids on the call's device: there already, or brought from the computer's memory, where they are checked first. */
static int take_ids(call *c, nb_tensor *there, const nb_tensor *ids, int64_t count, int64_t rows,
                    bool ascending) {
  if (ids->device) {
    NB_TRY(take_vector(c, ids, NB_I32, count));
    *there = *ids;
    there->buf = NULL; /* borrowed */
    return NB_OK;
  }
  NB_TRY(nb_expect(ids, c->what, NB_I32, 1, NB_SHAPE(count)));
  const int32_t *id = ids->data;
  for (int64_t i = 0; i < ids->shape[0]; i++)
    if (id[i] < 0 || id[i] >= rows || (ascending && i && id[i] < id[i - 1]))
      return nb_fail(NB_EINVAL,
                     ascending ? "%s: id %d at place %lld must not descend, within the %lld rows"
                               : "%s: id %d at place %lld is outside the table's %lld rows",
                     c->what, id[i], (long long)i, (long long)rows);
  return nb_tensor_to(there, ids, c->d->number);
}

int nb_device_gather(nb_tensor *out, const nb_tensor *table, const nb_tensor *ids) {
  call c = {.what = "gather", .whole = true};
  nb_tensor there;
  NB_TRY(take_matrix(&c, table, -1, -1));
  NB_TRY(take_matrix(&c, out, -1, table->shape[1]));
  NB_TRY(take_ids(&c, &there, ids, out->shape[0], table->shape[0], false));
  int64_t rows = table->shape[0], d = table->shape[1];
  int to = nb_cuda_kernel_dtype(out->dtype), from = nb_cuda_kernel_dtype(table->dtype), whole = c.whole;
  int rc =
      launch_rows(&c, "nb_forward_gather", out->shape[0], eights(d), true,
                  (void *[]){&out->data, (void *)&table->data, &there.data, &rows, &d, &to, &from, &whole});
  nb_tensor_release(&there);
  return rc;
}

int nb_device_scale_rows(nb_tensor *x, const nb_tensor *weights, int dtype) {
  call c = {.what = "scale_rows", .whole = true};
  NB_TRY(take_matrix(&c, x, -1, -1));
  NB_TRY(take_vector(&c, weights, NB_F32, x->shape[0]));
  NB_TRY(check_rounding(c.what, dtype));
  int64_t d = x->shape[1];
  int own = nb_cuda_kernel_dtype(x->dtype), rounding = nb_cuda_kernel_dtype(dtype), whole = c.whole;
  return launch_rows(&c, "nb_forward_scale", x->shape[0], eights(d), true,
                     (void *[]){&x->data, (void *)&weights->data, &d, &own, &rounding, &whole});
}

int nb_device_scatter_add(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
                          int dtype) {
  call c = {.what = "scatter_add", .whole = true};
  nb_tensor there;
  void *factors = NULL;
  NB_TRY(take_matrix(&c, x, -1, -1));
  NB_TRY(take_matrix(&c, y, -1, x->shape[1]));
  if (y->dtype != NB_F32)
    return nb_fail(NB_EINVAL, "scatter_add: sums are f32, found %s", nb_dtype_name(y->dtype));
  if (weights) NB_TRY(take_vector(&c, weights, NB_F32, x->shape[0]));
  if (weights) factors = weights->data;
  NB_TRY(check_rounding(c.what, dtype));
  NB_TRY(take_ids(&c, &there, ids, x->shape[0], y->shape[0], true));
  int64_t rows = y->shape[0], d = x->shape[1];
  int m = (int)x->shape[0], from = nb_cuda_kernel_dtype(x->dtype), rounding = nb_cuda_kernel_dtype(dtype),
      whole = c.whole;
  int rc = launch_rows(
      &c, "nb_forward_scatter", x->shape[0], eights(d), true,
      (void *[]){&y->data, (void *)&x->data, &there.data, &factors, &m, &rows, &d, &from, &rounding, &whole});
  nb_tensor_release(&there);
  return rc;
}
