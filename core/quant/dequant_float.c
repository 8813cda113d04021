/* dequant_float.c - float codes (e4m3, or e2m1 one a byte) back to weights:
 * code * scale in float32, the scale divided by the tensor's global one first where
 * there is one, and one rounding to the output's dtype. */
#include "dequant_float.h"
#include "groups.h"

const nb_dequant_float_kernels nb_dequant_float_portable = NB_DEQUANT_FLOAT_KERNELS;

static const char what[] = "dequantize float codes";

/* Elements that are done at a time: they stay in the first-level cache as float32. */
enum { BLOCK = 1024 };

typedef struct blocks {
  int64_t n, k, rows, columns, per_row;
  int dtype, s_dtype;
  bool e2m1;
  char *out;
  const uint8_t *codes;
  const void *scales;
  float global; /* 0: none */
  nb_load_fn *load;
  nb_store_fn *store;
  const nb_dequant_float_kernels *kernels;
} blocks;

static float block_scale(const blocks *d, int64_t at) {
  bool small = d->s_dtype == NB_F8_E4M3 || d->s_dtype == NB_F8_E8M0;
  float s = small ? nb_code_values(d->s_dtype)[((const uint8_t *)d->scales)[at]]
                  : nb_load(d->scales, at, d->s_dtype);
  return d->global != 0 ? s / d->global : s;
}

static void dequantize_row(const blocks *d, int64_t r, float *scale) {
  float x[BLOCK];
  for (int64_t g = 0; g < d->per_row; g++) scale[g] = block_scale(d, r / d->rows * d->per_row + g);
  char *out = d->out + r * d->k * nb_elem_bytes(d->dtype);
  for (int64_t at = 0; at < d->k; at += BLOCK) {
    int64_t len = NB_MIN((int64_t)BLOCK, d->k - at);
    if (d->e2m1) d->kernels->e2m1(x, d->codes + r * d->k + at, len);
    else d->load(x, d->codes + r * d->k + at, len);
    d->kernels->multiply(x, len, at, d->columns, scale);
    d->store(out + at * nb_elem_bytes(d->dtype), x, len);
  }
}

static int dequantize_rows(const blocks *d) {
  int64_t rows = NB_MAX(1, 65536 / d->k), tasks = NB_CEIL(d->n, rows);
  int stopped = 0, no_memory = 0;
#pragma omp parallel num_threads(nb_threads()) if (tasks > 1) reduction(| : stopped, no_memory)
  {
    float *scale = nb_alloc(d->per_row, (int64_t)sizeof *scale);
    no_memory |= !scale;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < tasks; b++) {
      if (nb_stop_requested()) stopped |= 1;
      if (stopped || !scale) continue;
      for (int64_t r = b * rows; r < NB_MIN(d->n, (b + 1) * rows); r++) dequantize_row(d, r, scale);
    }
    free(scale);
  }
  if (no_memory) return nb_fail(NB_ENOMEM, "%s: out of memory", what);
  return stopped ? nb_fail_stopped() : NB_OK;
}

static bool is_float(int dtype) { return dtype == NB_F32 || dtype == NB_BF16 || dtype == NB_F16; }

int nb_dequantize_float(nb_tensor *out, const nb_tensor *codes, const nb_tensor *scales,
                        const nb_tensor *global, int64_t rows, int64_t columns) {
  NB_TRY(nb_expect(codes, "dequantize float codes: codes", -1, 2, NB_SHAPE(-1, -1)));
  if (codes->dtype != NB_F8_E4M3 && codes->dtype != NB_F8_E4M3FNUZ && codes->dtype != NB_U8)
    return nb_fail(NB_EINVAL,
                   "%s: codes: expected f8_e4m3, f8_e4m3fnuz, or u8 with one e2m1 code a byte, found %s",
                   what, nb_dtype_name(codes->dtype));
  int64_t n = codes->shape[0], k = codes->shape[1];
  NB_TRY(nb_expect(out, "dequantize float codes: out", -1, 2, NB_SHAPE(n, k)));
  if (!is_float(out->dtype))
    return nb_fail(NB_EINVAL, "%s: out: expected f32, bf16 or f16, found %s", what,
                   nb_dtype_name(out->dtype));
  if (!is_float(scales->dtype) && scales->dtype != NB_F8_E4M3 && scales->dtype != NB_F8_E8M0)
    return nb_fail(NB_EINVAL, "%s: scales: expected f32, bf16, f16, f8_e4m3 or f8_e8m0, found %s", what,
                   nb_dtype_name(scales->dtype));
  if (rows < 1 || columns < 1)
    return nb_fail(NB_EINVAL, "%s: blocks of %lldx%lld, expected at least 1x1", what, (long long)rows,
                   (long long)columns);
  NB_TRY(nb_expect(scales, "dequantize float codes: scales", -1, 2,
                   NB_SHAPE(NB_CEIL(n, rows), NB_CEIL(k, columns))));
  if (global) NB_TRY(nb_expect(global, "dequantize float codes: global", NB_F32, 1, NB_SHAPE(1)));
  float divisor = global ? *(const float *)global->data : 0;
  if (global && !(divisor > 0 && divisor <= 0x1.fffffep127f))
    return nb_fail(NB_EFORMAT, "%s: the global scale is %g, expected a finite number above 0", what,
                   (double)divisor);
  if (n == 0 || k == 0) return NB_OK;
  return dequantize_rows(
      &(blocks){.n = n,
                .k = k,
                .rows = rows,
                .columns = columns,
                .per_row = NB_CEIL(k, columns),
                .dtype = out->dtype,
                .s_dtype = scales->dtype,
                .e2m1 = codes->dtype == NB_U8,
                .out = out->data,
                .codes = codes->data,
                .scales = scales->data,
                .global = divisor,
                .load = nb_load_of(codes->dtype == NB_U8 ? NB_F8_E4M3 : codes->dtype),
                .store = nb_store_of(out->dtype),
                .kernels = nb_cpu() & NB_CPU_AVX2 ? &nb_dequant_float_avx2 : &nb_dequant_float_portable});
}
