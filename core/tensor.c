/* tensor.c - shapes over buffers: making, viewing, comparing, dropping. */
#include "base.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int nb_shape_set(nb_tensor *t, int dtype, int ndim, const int64_t *shape, const char *what) {
  memset(t, 0, sizeof *t);
  if (nb_dtype_bits(dtype) == 0) return nb_fail(NB_EINVAL, "%s: unknown dtype %d", what, dtype);
  if (ndim < 0 || ndim > 6) return nb_fail(NB_EINVAL, "%s: %d dimensions, expected 0 to 6", what, ndim);
  int64_t bits = nb_dtype_bits(dtype);
  for (int i = 0; i < ndim; i++) {
    if (shape[i] < 0)
      return nb_fail(NB_EINVAL, "%s: dimension %d is %lld, expected 0 or more", what, i, (long long)shape[i]);
    if (__builtin_mul_overflow(bits, shape[i], &bits))
      return nb_fail(NB_EINVAL, "%s: the shape's size overflows 64 bits", what);
    t->shape[i] = shape[i];
  }
  if (bits % 8)
    return nb_fail(NB_EINVAL, "%s: %lld bits of %s don't end on a byte", what, (long long)bits,
                   nb_dtype_name(dtype));
  t->ndim = ndim;
  t->dtype = dtype;
  return NB_OK;
}

int64_t nb_tensor_numel(const nb_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

int64_t nb_tensor_bytes(const nb_tensor *t) { return nb_tensor_numel(t) * nb_dtype_bits(t->dtype) / 8; }

const char *nb_tensor_describe(const nb_tensor *t, char *out, size_t bytes) {
  const char *name = nb_dtype_name(t->dtype);
  int used = snprintf(out, bytes, "%s [", name ? name : "?");
  for (int i = 0; i < t->ndim && (size_t)used < bytes; i++)
    used += snprintf(out + used, bytes - (size_t)used, "%s%lld", i ? "x" : "", (long long)t->shape[i]);
  if ((size_t)used < bytes) snprintf(out + used, bytes - (size_t)used, "]");
  return out;
}

int nb_expect_here(const nb_tensor *t, const char *what) {
  char text[160];
  if (!t->device) return NB_OK;
  return nb_fail(NB_EUNSUPPORTED, "%s: %s lies on cuda:%d; copy it to the computer's memory first", what,
                 nb_tensor_describe(t, text, sizeof text), (int)t->device - 1);
}

int nb_expect(const nb_tensor *t, const char *what, int dtype, int ndim, const int64_t *shape) {
  NB_TRY(nb_expect_here(t, what));
  bool ok = t->ndim == ndim && (dtype < 0 || t->dtype == dtype);
  for (int i = 0; ok && i < ndim; i++) ok = shape[i] < 0 || t->shape[i] == shape[i];
  if (ok) return NB_OK;
  char found[160], wanted[160];
  nb_tensor_describe(t, found, sizeof found);
  int used = snprintf(wanted, sizeof wanted, "%s [", dtype < 0 ? "any dtype" : nb_dtype_name(dtype));
  for (int i = 0; i < ndim; i++) {
    size_t left = sizeof wanted - (size_t)used;
    used += shape[i] < 0 ? snprintf(wanted + used, left, "%s*", i ? "x" : "")
                         : snprintf(wanted + used, left, "%s%lld", i ? "x" : "", (long long)shape[i]);
  }
  snprintf(wanted + used, sizeof wanted - (size_t)used, "]");
  return nb_fail(NB_EINVAL, "%s: expected %s, found %s", what, wanted, found);
}

static void free_heap(void *data, int64_t bytes) {
  (void)bytes;
  free(data);
}

/* Large blocks come from mmap'd, hence zeroed, pages; calloc knows that and
 * aligned_alloc doesn't: so over-allocate with calloc and align inside. */
typedef struct heap_block {
  void *start;
} heap_block;

static void free_aligned(void *data, int64_t bytes) {
  (void)bytes;
  free(((heap_block *)data)[-1].start);
}

/* Large blocks ask for huge pages: fewer faults on first touch, fewer misses of the
 * address cache in code that walks many rows at once. */
static void ask_huge_pages(char *start, int64_t bytes) {
  enum { HUGE_PAGE = 2 << 20 };
  if (bytes < 2 * HUGE_PAGE) return;
  uintptr_t from = ((uintptr_t)start + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
  uintptr_t to = ((uintptr_t)start + (uintptr_t)bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
  if (to > from) madvise((void *)from, to - from, MADV_HUGEPAGE);
}

int nb_tensor_new(nb_tensor *out, int dtype, int ndim, const int64_t *shape) {
  NB_TRY(nb_shape_set(out, dtype, ndim, shape, "new tensor"));
  int64_t bytes = nb_tensor_bytes(out);
  char *start = nb_alloc(bytes + 64 + (int64_t)sizeof(heap_block), 1);
  if (!start) return NB_ENOMEM;
  ask_huge_pages(start, bytes);
  uintptr_t at = ((uintptr_t)start + sizeof(heap_block) + 63) & ~(uintptr_t)63;
  ((heap_block *)at)[-1].start = start;
  out->buf = nb_buf_new((void *)at, bytes, free_aligned, true);
  if (!out->buf) {
    free_heap(start, bytes);
    return NB_ENOMEM;
  }
  out->data = (void *)at;
  return NB_OK;
}

int nb_tensor_view(nb_tensor *out, const nb_tensor *t, int dtype, int ndim, const int64_t *shape,
                   int64_t byte_offset) {
  nb_tensor v;
  NB_TRY(nb_shape_set(&v, dtype, ndim, shape, "view"));
  int64_t have = nb_tensor_bytes(t), want = nb_tensor_bytes(&v);
  if (byte_offset < 0 || byte_offset > have || want > have - byte_offset)
    return nb_fail(NB_EINVAL, "view: bytes %lld to %lld lie outside a tensor of %lld bytes",
                   (long long)byte_offset, (long long)(byte_offset + want), (long long)have);
  v.data = (char *)t->data + byte_offset;
  v.device = t->device;
  v.buf = nb_buf_retain(t->buf);
  *out = v;
  return NB_OK;
}

int nb_tensor_rows(nb_tensor *out, const nb_tensor *t, int64_t r0, int64_t r1) {
  if (t->ndim < 1) return nb_fail(NB_EINVAL, "rows: a scalar has no rows");
  if (r0 < 0 || r1 < r0 || r1 > t->shape[0])
    return nb_fail(NB_EINVAL, "rows: [%lld, %lld) lies outside the %lld rows of the tensor", (long long)r0,
                   (long long)r1, (long long)t->shape[0]);
  int64_t bits = nb_dtype_bits(t->dtype), shape[6];
  memcpy(shape, t->shape, sizeof shape);
  for (int i = 1; i < t->ndim; i++) bits *= shape[i];
  if (bits * r0 % 8) return nb_fail(NB_EINVAL, "rows: row %lld doesn't begin on a byte", (long long)r0);
  shape[0] = r1 - r0;
  return nb_tensor_view(out, t, t->dtype, t->ndim, shape, bits * r0 / 8);
}

void nb_tensor_release(nb_tensor *t) {
  nb_buf_release(t->buf);
  t->buf = NULL;
  t->data = NULL;
}

static bool same_shape(const nb_tensor *a, const nb_tensor *b) {
  return a->dtype == b->dtype && a->ndim == b->ndim &&
         memcmp(a->shape, b->shape, sizeof(int64_t) * (size_t)a->ndim) == 0;
}

int nb_tensor_is_mapped(const nb_tensor *t) { return nb_buf_is_mapped(t->buf); }

int nb_tensor_equal(const nb_tensor *a, const nb_tensor *b) {
  if (!same_shape(a, b)) return 0;
  NB_TRY(nb_expect_here(a, "equal"));
  NB_TRY(nb_expect_here(b, "equal"));
  int64_t bytes = nb_tensor_bytes(a), block = 4 << 20, blocks = NB_CEIL(bytes, block);
  bool same = true;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(&& : same) if (blocks > 1)
  for (int64_t i = 0; i < blocks; i++)
    same = same && memcmp((const char *)a->data + i * block, (const char *)b->data + i * block,
                          (size_t)NB_MIN(block, bytes - i * block)) == 0;
  return same;
}

int nb_tensor_copy(nb_tensor *dst, const nb_tensor *src) {
  if (dst->dtype != src->dtype || nb_tensor_numel(dst) != nb_tensor_numel(src)) {
    char a[160], b[160];
    return nb_fail(NB_EINVAL, "copy: expected %s, found %s", nb_tensor_describe(dst, a, sizeof a),
                   nb_tensor_describe(src, b, sizeof b));
  }
  NB_TRY(nb_expect_here(src, "copy"));
  NB_TRY(nb_expect_here(dst, "copy"));
  int64_t bytes = nb_tensor_bytes(src), block = 4 << 20, blocks = NB_CEIL(bytes, block);
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) reduction(| : stopped) if (blocks > 1)
  for (int64_t i = 0; i < blocks; i++) {
    if (nb_stop_requested()) stopped = 1;
    else
      memcpy((char *)dst->data + i * block, (const char *)src->data + i * block,
             (size_t)NB_MIN(block, bytes - i * block));
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_tensor_copy_block(nb_tensor *dst, const nb_tensor *src, int dim, int64_t dst_at, int64_t src_at,
                         int64_t size) {
  bool fits = dst->dtype == src->dtype && dst->ndim == src->ndim && dim >= 0 && dim < dst->ndim;
  for (int i = 0; fits && i < dst->ndim; i++) fits = i == dim || dst->shape[i] == src->shape[i];
  fits = fits && size >= 0 && dst_at >= 0 && src_at >= 0 && size <= dst->shape[dim] - dst_at &&
         size <= src->shape[dim] - src_at && nb_dtype_bits(dst->dtype) % 8 == 0;
  if (!fits) {
    char a[160], b[160];
    return nb_fail(NB_EINVAL, "copy block: %lld slices of dimension %d from %lld to %lld don't fit %s and %s",
                   (long long)size, dim, (long long)src_at, (long long)dst_at,
                   nb_tensor_describe(src, a, sizeof a), nb_tensor_describe(dst, b, sizeof b));
  }
  NB_TRY(nb_expect_here(src, "copy block"));
  NB_TRY(nb_expect_here(dst, "copy block"));
  int64_t inner = nb_dtype_bits(dst->dtype) / 8, outer = 1;
  for (int i = dim + 1; i < dst->ndim; i++) inner *= dst->shape[i];
  for (int i = 0; i < dim; i++) outer *= dst->shape[i];
  char *to = (char *)dst->data + dst_at * inner;
  const char *from = (const char *)src->data + src_at * inner;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (outer * size * inner > 1 << 20)
  for (int64_t i = 0; i < outer; i++)
    memcpy(to + i * dst->shape[dim] * inner, from + i * src->shape[dim] * inner, (size_t)(size * inner));
  return NB_OK;
}

/* One row: the element's width is known at compile time. */
#define GATHER(type) \
  for (int64_t c = 0; c < k; c++) ((type *)to)[c] = ((const type *)from)[order[c]]

static void gather_row(char *to, const char *from, const int32_t *order, int64_t k, int64_t width) {
  if (width == 1) GATHER(uint8_t);
  else if (width == 2) GATHER(uint16_t);
  else GATHER(uint32_t);
}

int nb_columns_gather(nb_tensor *dst, const nb_tensor *src, const nb_tensor *order) {
  int64_t n = src->ndim == 2 ? src->shape[0] : -1, k = src->ndim == 2 ? src->shape[1] : -1;
  int64_t bits = nb_dtype_bits(src->dtype), width = bits / 8;
  if (n < 0 || (bits != 8 && bits != 16 && bits != 32) || !same_shape(dst, src)) {
    char a[160], b[160];
    return nb_fail(NB_EINVAL, "columns: expected two matrices alike of 8, 16 or 32 bits, found %s and %s",
                   nb_tensor_describe(src, a, sizeof a), nb_tensor_describe(dst, b, sizeof b));
  }
  NB_TRY(nb_expect_here(src, "columns"));
  NB_TRY(nb_expect_here(dst, "columns"));
  NB_TRY(nb_expect(order, "columns: order", NB_I32, 1, NB_SHAPE(k)));
  const int32_t *p = order->data;
  for (int64_t c = 0; c < k; c++)
    if (p[c] < 0 || p[c] >= k)
      return nb_fail(NB_EINVAL, "columns: order: %d at position %lld is outside 0..%lld", p[c], (long long)c,
                     (long long)k - 1);
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (n * k > 1 << 18)
  for (int64_t r = 0; r < n; r++)
    gather_row((char *)dst->data + r * k * width, (const char *)src->data + r * k * width, p, k, width);
  return NB_OK;
}

void nb_tensor_drop(const nb_tensor *t) {
  if (!nb_buf_is_mapped(t->buf)) return;
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)t->data;
  uintptr_t to = from + (uintptr_t)nb_tensor_bytes(t);
  from &= ~(page - 1);      /* the shared edges are re-read from the page cache: cheap */
  enum { PART = 16 << 20 }; /* one thread takes a tenth of the time that two read in */
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (to - from > PART)
  for (uintptr_t at = from; at < to; at += PART)
    madvise((void *)at, NB_MIN(to - at, (uintptr_t)PART), MADV_DONTNEED);
}
