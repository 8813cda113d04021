/* quantize.c - quantization on a device: kernels/quantize*.cu, launched. The checks and the sentences are the CPU's. */
#include "device.h"

#include <stddef.h>
#include <stdio.h>

#include "layout/layout.h"
#include "quant/groups.h"

#include "kernels/quantize.h"

/* ---- tensors ----------------------------------------------------------------------- */

static bool aligned(const nb_tensor *t, uintptr_t bytes) { return (uintptr_t)t->data % bytes == 0; }

/* Words that a kernel leaves for the host, 0 before: what failed, and the range of a tensor. */
typedef struct notes {
  uint64_t failed;
  uint32_t range[2];
} notes;

static int notes_new(nb_tensor *out, int device) {
  nb_cuda_device *d;
  NB_TRY(nb_cuda_use(&d, device));
  return nb_cuda_notes_new(out, d, sizeof(notes) / 4,
                           "no weight can be quantized: what fails could not be told");
}

/* ---- launches ------------------------------------------------------------------------ */

/* Vectors that a thread holds. */
static int64_t held(const nb_tensor *w) {
  return NB_QUANTIZE_HELD_BYTES / (NB_QUANTIZE_VECTOR * nb_elem_bytes(w->dtype));
}
static int64_t vectors_of(const nb_quantize_blocks *b) {
  return b->rows * NB_CEIL((int64_t)b->columns, NB_QUANTIZE_VECTOR);
}

/* How blocks of rows x columns are shared out. */
static int share_out(nb_quantize_blocks *b, const nb_tensor *w, const nb_tensor *codes, int64_t rows,
                     int64_t columns, const char *what) {
  int64_t n = w->shape[0], k = w->shape[1], most = INT32_MAX / (2 * NB_QUANTIZE_VECTOR);
  if (rows == 1 && columns > 0 && k % columns == 0) { /* nothing is cut: one long row */
    k *= n;
    n = NB_MIN(n, 1);
  }
  rows = NB_MIN(rows, n);
  columns = NB_MIN(columns, k);
  int64_t per_row = columns ? NB_CEIL(k, columns) : 1, count = rows ? NB_CEIL(n, rows) * per_row : 0;
  if (count > most || rows * NB_CEIL(columns, NB_QUANTIZE_VECTOR) > most)
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: %lld scales, each for %lldx%lld weights, are more than a launch can count", what,
                   (long long)count, (long long)rows, (long long)columns);
  *b = (nb_quantize_blocks){.n = n,
                            .k = k,
                            .rows = (int32_t)rows,
                            .columns = (int32_t)columns,
                            .per_row = (int32_t)per_row,
                            .count = (int32_t)count,
                            .vectors = k % NB_QUANTIZE_VECTOR == 0 && columns % NB_QUANTIZE_VECTOR == 0 &&
                                       aligned(w, 16) && aligned(codes, 8)};
  int64_t vectors = vectors_of(b);
  b->lanes = vectors < 4 ? 1 : 2; /* two read 32 bytes side by side; one finds a scale for more weights */
  while (b->lanes < 32 && b->lanes * held(w) < vectors) b->lanes *= 2;
  if (b->lanes * held(w) < vectors) b->lanes = 0;
  return NB_OK;
}

/* nb_quantize_KIND of w's dtype, of so many blocks or what the device holds of them at once, at 64 registers a
 * thread. */
static int launch(const char *kind, const nb_tensor *w, int64_t blocks, int64_t threads, void **arguments) {
  static const char *const names[] = {"f32", "bf16", "f16"};
  enum { RESIDENT = 1024 };
  nb_cuda_device *d;
  char kernel[64];
  int64_t most;
  int shared = (int)nb_quantize_shared((unsigned)threads);
  snprintf(kernel, sizeof kernel, "nb_quantize_%s_%s", kind, names[nb_cuda_kernel_dtype(w->dtype)]);
  NB_TRY(nb_cuda_use(&d, w->device));
  NB_TRY(nb_cuda_resident(&most, d, (int)(RESIDENT / threads), shared));
  nb_launch at = {{(int32_t)NB_MIN(blocks, most), 1, 1}, {(int32_t)threads, 1, 1}, shared};
  return nb_device_launch(w->device, kernel, &at, arguments);
}

static int launch_blocks(const char *kind, const nb_tensor *w, const nb_quantize_blocks *b,
                         void **arguments) {
  int64_t threads = NB_QUANTIZE_THREADS;
  if (b->lanes) return launch(kind, w, NB_CEIL(b->count, threads / b->lanes), threads, arguments);
  /* As many as hold a block, if there are. */
  threads = NB_MIN((int64_t)NB_QUANTIZE_MOST_THREADS, NB_CEIL(NB_CEIL(vectors_of(b), held(w)), 32) * 32);
  return launch(kind, w, b->count, threads, arguments);
}

/* The largest values of w into two words of the device; see nb_quantize_span. */
static int launch_span(const nb_tensor *w, void *range, int signs) {
  int64_t numel = nb_tensor_numel(w);
  int vectors = aligned(w, 16);
  const void *from = w->data;
  void *arguments[] = {&from, &range, &numel, &vectors, &signs};
  return launch("span", w, NB_CEIL(numel, NB_QUANTIZE_VECTOR * NB_QUANTIZE_THREADS), NB_QUANTIZE_THREADS,
                arguments);
}

/* ---- round to nearest ------------------------------------------------------------------ */

/* Weights of a whole tensor that a warp takes at once. */
enum { PIECE = 1024 };

static int launch_rtn(nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros, const nb_tensor *w,
                      const nb_groups *q, const nb_rtn_options *o, const nb_tensor *noted) {
  nb_quantize_blocks b;
  nb_tensor flat = *w;
  if (q->per_tensor) {
    flat.shape[1] *= flat.shape[0];
    flat.shape[0] = 1;
  }
  NB_TRY(share_out(&b, &flat, codes, 1, q->per_tensor ? PIECE : q->group, "round to nearest"));
  nb_quantize_rtn options = {.bits = o->bits,
                             .symmetric = q->symmetric,
                             .range = o->range,
                             .in_dtype = o->arithmetic == NB_ARITHMETIC_DTYPE,
                             .scale_dtype = nb_cuda_kernel_dtype(q->s_dtype),
                             .whole = q->per_tensor,
                             .scales = q->n};
  void *failed = noted->data, *range = (char *)noted->data + offsetof(notes, range);
  if (q->per_tensor) NB_TRY(launch_span(w, range, 1));
  const void *from = w->data, *to = codes->data, *s = scales->data, *z = zeros ? zeros->data : NULL;
  void *arguments[] = {&b, &options, &from, &to, &s, &z, &range, &failed};
  return launch_blocks("rtn", w, &b, arguments);
}

int nb_device_rtn_quantize(nb_tensor *codes, nb_tensor *scales, nb_tensor *zeros, const nb_tensor *w,
                           const nb_rtn_options *o) {
  nb_tensor seen[4], noted, here;
  nb_groups q;
  notes found;
  NB_TRY(nb_cuda_operands(seen, NULL, (const nb_tensor *[]){w, codes, scales, zeros}, 4, "round to nearest"));
  NB_TRY(nb_rtn_check(&q, &seen[1], &seen[2], zeros ? &seen[3] : NULL, &seen[0], o));
  if (q.n == 0 || q.k == 0) return NB_OK;
  NB_TRY(notes_new(&noted, w->device));
  int rc = launch_rtn(codes, scales, zeros, w, &q, o, &noted);
  if (rc == NB_OK) rc = nb_cuda_notes_read(&found, &noted);
  nb_tensor_release(&noted);
  if (rc < 0 || !found.failed) return rc;
  NB_TRY(nb_tensor_to(&here, w, 0));
  q.w = here.data;
  rc = nb_rtn_fail(&q, (int64_t)~found.failed);
  nb_tensor_release(&here);
  return rc;
}

/* ---- small floats ------------------------------------------------------------------------ */

/* The CPU's sentence; w comes back for it. */
static int fail_float(const nb_tensor *w, int s_dtype) {
  nb_tensor here;
  NB_TRY(nb_tensor_to(&here, w, 0));
  int rc = nb_float_quantize_fail(&here, s_dtype);
  nb_tensor_release(&here);
  return rc;
}

int nb_device_float_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *w,
                             const nb_float_options *o) {
  nb_tensor seen[3], noted;
  nb_quantize_blocks b;
  notes found;
  NB_TRY(nb_cuda_operands(seen, NULL, (const nb_tensor *[]){w, codes, scales}, 3, "float quantization"));
  NB_TRY(nb_float_quantize_check(&seen[1], &seen[2], &seen[0], o));
  if (nb_tensor_numel(w) == 0) return NB_OK;
  NB_TRY(share_out(&b, w, codes, o->rows, o->columns, "float quantization"));
  nb_quantize_float options = {.global = o->global,
                               .scale_dtype = nb_cuda_kernel_dtype(scales->dtype),
                               .given = o->given != 0,
                               .vllm = o->rule == NB_FLOAT_VLLM,
                               .in_dtype = o->arithmetic == NB_ARITHMETIC_DTYPE};
  NB_TRY(notes_new(&noted, w->device));
  const void *from = w->data, *to = codes->data, *s = scales->data, *failed = noted.data;
  void *arguments[] = {&b, &options, &from, &to, &s, &failed};
  int rc = launch_blocks(codes->dtype == NB_U8 ? "e2m1" : "e4m3", w, &b, arguments);
  if (rc == NB_OK) rc = nb_cuda_notes_read(&found, &noted);
  nb_tensor_release(&noted);
  return rc < 0 || !found.failed ? rc : fail_float(w, scales->dtype);
}

int nb_device_absmax(float *out, const nb_tensor *w) {
  nb_tensor seen, noted;
  notes found;
  NB_TRY(nb_cuda_operands(&seen, NULL, &w, 1, "absmax"));
  if (w->dtype != NB_F32 && w->dtype != NB_BF16 && w->dtype != NB_F16)
    return nb_fail(NB_EINVAL, "absmax: expected f32, bf16 or f16, found %s", nb_dtype_name(w->dtype));
  *out = 0;
  if (nb_tensor_numel(w) == 0) return NB_OK;
  NB_TRY(notes_new(&noted, w->device));
  int rc = launch_span(w, (char *)noted.data + offsetof(notes, range), 0);
  if (rc == NB_OK) rc = nb_cuda_notes_read(&found, &noted);
  nb_tensor_release(&noted);
  if (rc < 0) return rc;
  *out = nb_f32_from_bits(found.range[0]);
  return found.range[0] < 0x7f800000u ? NB_OK : fail_float(w, w->dtype);
}

/* ---- activations -------------------------------------------------------------------------- */

/* A scale for so many columns, but where o has it fixed. */
static int launch_act(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, int64_t columns,
                      nb_quantize_act o) {
  nb_quantize_blocks b;
  nb_tensor flat = *x;
  if (o.fixed) {
    flat.shape[1] *= flat.shape[0];
    flat.shape[0] = 1;
  }
  NB_TRY(share_out(&b, &flat, q, 1, o.fixed ? PIECE : columns, "act_quant"));
  if (b.count == 0 || nb_tensor_numel(scales) == 0) return NB_OK;
  const void *from = x->data, *to = q->data, *s = scales->data;
  void *arguments[] = {&b, &o, &from, &to, &s};
  return launch_blocks("act", x, &b, arguments);
}

int nb_device_act_quant_int8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global) {
  nb_tensor seen[3];
  NB_TRY(nb_cuda_operands(seen, NULL, (const nb_tensor *[]){x, q, scales}, 3, "act_quant int8"));
  NB_TRY(nb_act_int8_check(&seen[1], &seen[2], &seen[0]));
  return launch_act(q, scales, x, x->shape[1], (nb_quantize_act){.int8 = 1, .global = global});
}

/* One scale of the tensor: its range grows in the scale's own place, so that nothing waits for the host. */
static int launch_act_scale(nb_tensor *scale, const nb_tensor *x) {
  nb_launch one = {{1, 1, 1}, {32, 1, 1}, 0};
  int finish = 0;
  void *s = scale->data, *arguments[] = {&s, &finish};
  NB_TRY(nb_device_launch(x->device, "nb_quantize_act_scale", &one, arguments));
  if (nb_tensor_numel(x)) NB_TRY(launch_span(x, s, 0));
  finish = 1;
  return nb_device_launch(x->device, "nb_quantize_act_scale", &one, arguments);
}

int nb_device_act_quant_fp8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, int mode) {
  nb_tensor seen[3];
  NB_TRY(nb_cuda_operands(seen, NULL, (const nb_tensor *[]){x, q, scales}, 3, "act_quant fp8"));
  NB_TRY(nb_act_fp8_check(&seen[1], &seen[2], &seen[0], mode));
  if (mode == NB_ACT_TENSOR) NB_TRY(launch_act_scale(scales, x));
  return launch_act(q, scales, x, mode == NB_ACT_GROUP ? NB_ACT_COLUMNS : x->shape[1],
                    (nb_quantize_act){.fixed = mode == NB_ACT_STATIC || mode == NB_ACT_TENSOR,
                                      .least = nb_act_fp8_least(mode)});
}
