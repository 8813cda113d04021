/* statistics.c - what calibration asks of activations on a device: kernels/statistics.cu, launched. The checks and the sentences
 * are the CPU's. */
#include "device.h"

#include <math.h>

#include "quant/act_grid.h"

#include "kernels/forward.h"
#include "kernels/statistics.h"

static const char what[] = "activations";

/* A matrix of plain floats; seen: as f32, for the CPU's checks. */
static int take(nb_cuda_device **d, nb_tensor *seen, const nb_tensor *x, const char *name) {
  NB_TRY(nb_cuda_operand_at(seen, d, x, NB_MAX(nb_dtype_bits(x->dtype) / 8, 1), name));
  NB_TRY(nb_cuda_expect_plain(seen, name));
  seen->dtype = NB_F32;
  return nb_expect(seen, name, NB_F32, 2, NB_SHAPE(-1, -1));
}

static bool whole_of(const nb_tensor *t, int64_t width) {
  return width % NB_FORWARD_EIGHT == 0 && (uintptr_t)t->data % 16 == 0;
}

/* Lanes of a team for so many numbers. */
static int lanes_for(int64_t width) {
  int lanes = 1;
  while (lanes < 32 && lanes * NB_FORWARD_EIGHT < width) lanes *= 2;
  return width > 32 * NB_FORWARD_EIGHT * 4 ? NB_STATISTICS_THREADS : lanes;
}

static int launch(nb_cuda_device *d, const char *kernel, int64_t units, int lanes, void **arguments) {
  int64_t blocks = NB_CEIL(units, NB_STATISTICS_THREADS / lanes);
  if (blocks > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: %lld groups are more than a launch can count", what,
                   (long long)units);
  nb_launch at = {{(int32_t)blocks, 1, 1}, {NB_STATISTICS_THREADS, 1, 1}, NB_STATISTICS_SHARED};
  return nb_device_launch(d->number, kernel, &at, arguments);
}

int nb_device_column_squares(nb_tensor *sums, const nb_tensor *x) {
  nb_cuda_device *d = NULL;
  nb_tensor seen;
  NB_TRY(take(&d, &seen, x, "column squares: x"));
  int64_t m = x->shape[0], k = x->shape[1];
  NB_TRY(nb_cuda_operand_at(&seen, &d, sums, 8, "column squares: sums"));
  NB_TRY(nb_expect(&seen, "column squares: sums", NB_F64, 1, NB_SHAPE(k)));
  int64_t blocks = NB_CEIL(k, NB_STATISTICS_COLUMNS);
  if (m == 0 || k == 0) return NB_OK;
  if (blocks > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "column squares: %lld columns are more than a launch can count",
                   (long long)k);
  int dtype = nb_cuda_kernel_dtype(x->dtype);
  nb_launch at = {{(int32_t)blocks, 1, 1}, {NB_STATISTICS_COLUMNS, 1, 1}, 0};
  return nb_device_launch(d->number, "nb_statistics_squares", &at,
                          (void *[]){&sums->data, (void *)&x->data, &m, &k, &dtype});
}

/* What `share` units of `width` numbers each have in common into three words each. */
static int launch_extents(nb_cuda_device *d, void *words, const nb_tensor *x, int64_t units, int64_t width,
                          int64_t share, int rounding) {
  int across = (int)width, dtype = nb_cuda_kernel_dtype(x->dtype), lanes = lanes_for(width),
      whole = whole_of(x, width);
  return launch(
      d, "nb_statistics_extents", units, lanes,
      (void *[]){&words, (void *)&x->data, &units, &across, &share, &dtype, &rounding, &lanes, &whole});
}

static float ordered(uint32_t order) {
  return nb_f32_from_bits(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

int nb_device_act_extent(float lohi[2], const nb_tensor *x) {
  nb_cuda_device *d = NULL;
  nb_tensor seen, words;
  uint32_t found[NB_STATISTICS_WORDS];
  NB_TRY(take(&d, &seen, x, what));
  if (nb_tensor_numel(x) == 0) return NB_OK;
  if (x->shape[1] > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: rows of %lld are longer than 2^31-1", what, (long long)x->shape[1]);
  NB_TRY(nb_cuda_notes_new(&words, d, NB_STATISTICS_WORDS, "the extent of activations can't be told"));
  int rc = launch_extents(d, words.data, x, x->shape[0], x->shape[1], x->shape[0], NB_KERNEL_F32);
  if (rc == NB_OK) rc = nb_cuda_notes_read(found, &words);
  nb_tensor_release(&words);
  if (rc < 0) return rc;
  float lo = ordered(~found[2]), hi = ordered(found[1]);
  if (!(fabsf(lo) < INFINITY && fabsf(hi) < INFINITY))
    return nb_fail(NB_EFORMAT, "%s: they hold NaN or infinite values", what);
  lohi[0] = fminf(lohi[0], lo);
  lohi[1] = fmaxf(lohi[1], hi);
  return NB_OK;
}

static nb_statistics_quant options_of(const nb_act_options *o, const nb_act_grid *g) {
  return (nb_statistics_quant){.is_float = g->is_float,
                               .bits = o->bits,
                               .symmetric = o->symmetric != 0,
                               .dynamic = o->dynamic != 0,
                               .scale_dtype = nb_cuda_kernel_dtype(o->scale_dtype),
                               .dtype = nb_cuda_kernel_dtype(o->dtype),
                               .shift = g->shift,
                               .normal = g->normal,
                               .magic = g->magic,
                               .min = g->min,
                               .max = g->max,
                               .scale = o->scale,
                               .zero = g->is_float ? 0 : o->zero_point,
                               .global = o->global};
}

/* Three words for each of so many tensors, 0, in the stream's workspace. */
static int words_of(void **words, nb_cuda_device *d, int64_t tensors) {
  nb_tensor t = {.shape = {tensors * NB_STATISTICS_WORDS}, .ndim = 1, .dtype = NB_I32, .device = d->number};
  NB_TRY(nb_cuda_workspace(words, d, NB_CUDA_FOR_FORWARD, nb_tensor_bytes(&t)));
  t.data = *words;
  return nb_device_zero(&t);
}

int nb_device_act_fake_quant(nb_tensor *out, const nb_tensor *x, const nb_act_options *o) {
  nb_cuda_device *d = NULL;
  nb_tensor seen, to;
  nb_act_grid grid;
  NB_TRY(take(&d, &seen, x, what));
  NB_TRY(take(&d, &to, out, what));
  NB_TRY(nb_act_fake_quant_check(&grid, &to, &seen, o));
  int64_t m = x->shape[0], k = x->shape[1], width = o->group > 0 ? o->group : k;
  if (m == 0 || k == 0) return NB_OK;
  if (width > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: groups of %lld are longer than 2^31-1", what, (long long)width);
  int64_t units = m * (k / width), share = o->span > 0 ? o->span : m;
  nb_statistics_quant q = options_of(o, &grid);
  void *words = NULL;
  if (o->dynamic && o->group == 0) {
    NB_TRY(words_of(&words, d, NB_CEIL(m, share)));
    NB_TRY(launch_extents(d, words, x, units, width, share, q.dtype));
  }
  int across = (int)width, out_dtype = nb_cuda_kernel_dtype(out->dtype),
      x_dtype = nb_cuda_kernel_dtype(x->dtype), lanes = lanes_for(width),
      whole = whole_of(x, width) && whole_of(out, width);
  return launch(d, "nb_statistics_quantize", units, lanes,
                (void *[]){&out->data, (void *)&x->data, &words, &units, &across, &share, &q, &out_dtype,
                           &x_dtype, &lanes, &whole});
}

int nb_device_act_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *x, const nb_act_options *o) {
  nb_cuda_device *d = NULL;
  nb_tensor seen, to, factors;
  nb_act_grid grid;
  NB_TRY(take(&d, &seen, x, what));
  NB_TRY(nb_cuda_operand_at(&to, &d, codes, 1, what));
  NB_TRY(nb_cuda_operand_at(&factors, &d, scales, 4, what));
  NB_TRY(nb_act_quantize_check(&grid, &to, &factors, &seen, o));
  int64_t m = x->shape[0], k = x->shape[1], share = o->span > 0 ? o->span : m;
  if (m == 0 || k == 0) return NB_OK;
  if (k > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: rows of %lld are longer than 2^31-1", what, (long long)k);
  nb_statistics_quant q = options_of(o, &grid);
  void *words = NULL;
  if (o->dynamic && o->group == 0) {
    NB_TRY(words_of(&words, d, NB_CEIL(m, share)));
    NB_TRY(launch_extents(d, words, x, m, k, share, q.dtype));
  }
  int across = (int)k, x_dtype = nb_cuda_kernel_dtype(x->dtype), lanes = lanes_for(k),
      whole = whole_of(x, k) && (uintptr_t)codes->data % 8 == 0;
  return launch(d, "nb_statistics_codes", m, lanes,
                (void *[]){&codes->data, &scales->data, (void *)&x->data, &words, &m, &across, &share, &q,
                           &x_dtype, &lanes, &whole});
}

/* ---- of experts ---------------------------------------------------------------------------- */

static const char what_pairs[] = "experts' activations";

/* out = x's rows for the pairs of ids, all checked. */
static int quantize_pairs(nb_cuda_device *d, nb_tensor *out, const nb_tensor *x, const nb_tensor *ids,
                          const nb_tensor *map, const nb_tensor *scales, nb_statistics_pairs p, int64_t width,
                          const nb_act_options *o, const nb_act_grid *grid) {
  nb_statistics_quant q = options_of(o, grid);
  int64_t units = out->shape[0] * p.each;
  int across = (int)width, dtype = nb_cuda_kernel_dtype(x->dtype), lanes = lanes_for(width),
      whole = whole_of(x, width) && whole_of(out, width);
  void *words = NULL, *from = x->data, *of = map ? map->data : NULL, *own = scales ? scales->data : NULL;
  if (o->dynamic && o->group == 0) {
    NB_TRY(words_of(&words, d, p.experts));
    NB_TRY(launch(d, "nb_statistics_pair_extents", units, lanes,
                  (void *[]){&words, &from, (void *)&ids->data, &of, &units, &across, &p, &dtype, &q.dtype,
                             &lanes, &whole}));
  }
  return launch(d, "nb_statistics_pair_quantize", units, lanes,
                (void *[]){&out->data, &from, &words, (void *)&ids->data, &of, &own, &units, &across, &p, &q,
                           &dtype, &dtype, &lanes, &whole});
}

int nb_device_moe_fake_quant(nb_tensor *out, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *map,
                             const nb_tensor *scales, int64_t experts, const nb_act_options *o) {
  nb_cuda_device *d = NULL;
  nb_tensor seen, to;
  nb_act_grid grid;
  NB_TRY(take(&d, &seen, x, what_pairs));
  NB_TRY(nb_act_fake_quant_check(&grid, &seen, &seen, o));
  int64_t pairs = nb_tensor_numel(ids), tokens = x->shape[0], k = x->shape[1],
          width = o->group > 0 ? o->group : k;
  NB_TRY(nb_cuda_expect(ids, "experts' activations: ids", x->device, NB_I32, ids->ndim, ids->shape));
  if (map) NB_TRY(nb_cuda_expect(map, "experts' activations: map", x->device, NB_I32, 1, NB_SHAPE(-1)));
  if (scales)
    NB_TRY(nb_cuda_expect(scales, "experts' activations: scales", x->device, NB_F32, 1, NB_SHAPE(experts)));
  if (tokens ? pairs % tokens != 0 : pairs > 0)
    return nb_fail(NB_EINVAL, "%s: %lld ids for %lld tokens, expected as many for each", what_pairs,
                   (long long)pairs, (long long)tokens);
  if (experts < 1 || experts > INT32_MAX || pairs > INT32_MAX || k > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: %lld experts, %lld pairs and rows of %lld are more than a launch can count",
                   what_pairs, (long long)experts, (long long)pairs, (long long)k);
  NB_TRY(nb_cuda_result(&to, out, d, x->dtype, 2, NB_SHAPE(pairs, k), "experts' activations: out"));
  int rc = NB_OK;
  if (pairs && k && to.data == x->data) rc = nb_fail(NB_EINVAL, "%s: cannot be done in place", what_pairs);
  else if (pairs && k)
    rc = quantize_pairs(d, &to, x, ids, map, scales,
                        (nb_statistics_pairs){.each = (int)(k / width),
                                              .top = (int)(pairs / tokens),
                                              .entries = map ? (int)map->shape[0] : 0,
                                              .experts = (int)experts},
                        width, o, &grid);
  return nb_cuda_finish(out, &to, rc);
}
