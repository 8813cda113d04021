/* groups.h - what the methods of integer quantization share: the shapes of a
 * quantized weight, one group's grid (scale, zero-point, bounds), and the two
 * inner loops (largest magnitudes of a group, codes of a group) by instruction
 * set. Codes are unsigned, one a byte: u = q + 2^(b-1) when symmetric. */
#ifndef NB_QUANT_GROUPS_H
#define NB_QUANT_GROUPS_H

#include "base.h"

/* Magnitude bits, in the weights' own dtype, of the largest positive and of the
 * most negative value; 0 where there is none. Floats without their sign order
 * as integers do, so this is exact, needs no conversion, and shows NaN and Inf
 * as the largest values of all. */
typedef struct nb_span {
  uint32_t pos, neg;
} nb_span;

/* code = round_half_even(clamp(x, lo, hi)) + offset, where x = w / scale, and in
 * dtype arithmetic x = rd(rd(w / scale) + add), rd rounding to the weights' dtype. */
typedef struct nb_grid {
  float scale; /* as stored, so after its rounding to the scales' dtype */
  float add, lo, hi;
  int32_t offset;
  int32_t zero; /* the unsigned zero-point: weight = (code - zero) * scale */
} nb_grid;

/* ---- single values of f32, bf16 and f16 ------------------------------------ */

static inline int64_t nb_elem_bytes(int dtype) { return dtype == NB_F32 ? 4 : 2; }

static inline float nb_from_bits(uint32_t bits, int dtype) {
  if (dtype == NB_F32) return nb_f32_from_bits(bits);
  return dtype == NB_BF16 ? nb_bf16_to_f32((uint16_t)bits) : nb_f16_to_f32((uint16_t)bits);
}

static inline float nb_round_to(float f, int dtype) {
  if (dtype == NB_F32) return f;
  return dtype == NB_BF16 ? nb_bf16_to_f32(nb_f32_to_bf16(f)) : nb_f16_to_f32(nb_f32_to_f16(f));
}

static inline float nb_load(const void *at, int64_t i, int dtype) {
  if (dtype == NB_F32) return ((const float *)at)[i];
  return nb_from_bits(((const uint16_t *)at)[i], dtype);
}

static inline void nb_store(void *at, int64_t i, float f, int dtype) {
  if (dtype == NB_F32) ((float *)at)[i] = f;
  else ((uint16_t *)at)[i] = dtype == NB_BF16 ? nb_f32_to_bf16(f) : nb_f32_to_f16(f);
}

/* finfo(dtype).eps, which compressed-tensors stores as the scale of a group of zeros. */
static inline float nb_epsilon(int dtype) {
  if (dtype == NB_F32) return 0x1p-23f;
  return dtype == NB_BF16 ? 0x1p-7f : 0x1p-10f;
}

/* The magnitude bits of infinity. */
static inline uint32_t nb_inf_bits(int dtype) {
  if (dtype == NB_F32) return 0x7f800000u;
  return dtype == NB_BF16 ? 0x7f80u : 0x7c00u;
}

/* ---- inner loops ----------------------------------------------------------- */

/* The definition, and what the vector paths do with the end of a group. dtype and
 * arithmetic are constants where this is called. At 1.5*2^23 a float's last bit
 * is worth 1, so the adder itself rounds half to even. */
static inline __attribute__((always_inline)) void
nb_codes_scalar(uint8_t *codes, const void *w, int64_t len, const nb_grid *g, int dtype, int arithmetic) {
  for (int64_t i = 0; i < len; i++) {
    float x = nb_load(w, i, dtype) / g->scale;
    if (arithmetic == NB_ARITHMETIC_DTYPE) x = nb_round_to(nb_round_to(x, dtype) + g->add, dtype);
    x = x < g->lo ? g->lo : x;
    x = x > g->hi ? g->hi : x;
    codes[i] = (uint8_t)((int32_t)(nb_f32_bits(x + 0x1.8p23f) - 0x4b400000u) + g->offset);
  }
}

static inline nb_span nb_span16(const uint16_t *p, int64_t len) {
  int16_t pos = 0, neg = 0;
  for (int64_t i = 0; i < len; i++) {
    int16_t a = (int16_t)p[i], b = (int16_t)(p[i] ^ 0x8000u);
    pos = NB_MAX(pos, a);
    neg = NB_MAX(neg, b);
  }
  return (nb_span){(uint32_t)pos, (uint32_t)neg};
}

static inline nb_span nb_span32(const uint32_t *p, int64_t len) {
  int32_t pos = 0, neg = 0;
  for (int64_t i = 0; i < len; i++) {
    int32_t a = (int32_t)p[i], b = (int32_t)(p[i] ^ 0x80000000u);
    pos = NB_MAX(pos, a);
    neg = NB_MAX(neg, b);
  }
  return (nb_span){(uint32_t)pos, (uint32_t)neg};
}

static inline nb_span nb_span_max(nb_span a, nb_span b) {
  return (nb_span){NB_MAX(a.pos, b.pos), NB_MAX(a.neg, b.neg)};
}

typedef nb_span nb_span_fn(const void *w, int64_t len);
typedef void nb_codes_fn(uint8_t *codes, const void *w, int64_t len, const nb_grid *grid);

typedef struct nb_group_kernels {
  nb_span_fn *span;
  nb_codes_fn *codes;
} nb_group_kernels;

/* The inner loops for weights of dtype (f32, bf16, f16) under nb_cpu(). */
nb_group_kernels nb_group_kernels_of(int dtype, int arithmetic);
nb_group_kernels nb_group_kernels_avx2(int dtype, int arithmetic);

/* Kernels over span16, span32 and codes(out, w, len, grid, dtype, arithmetic) of the
 * file that says this: one function a dtype and arithmetic, so that both are constants
 * inside, and pick(dtype, arithmetic), which finds it. */
#define NB_GROUP_CODES(name, codes, dtype, arithmetic) \
  static void name(uint8_t *out, const void *w, int64_t len, const nb_grid *g) { \
    codes(out, w, len, g, dtype, arithmetic); \
  }
#define NB_GROUP_KERNELS(pick, codes) \
  NB_GROUP_CODES(codes_f32, codes, NB_F32, NB_ARITHMETIC_F32) \
  NB_GROUP_CODES(codes_bf16, codes, NB_BF16, NB_ARITHMETIC_F32) \
  NB_GROUP_CODES(codes_f16, codes, NB_F16, NB_ARITHMETIC_F32) \
  NB_GROUP_CODES(codes_f32_rd, codes, NB_F32, NB_ARITHMETIC_DTYPE) \
  NB_GROUP_CODES(codes_bf16_rd, codes, NB_BF16, NB_ARITHMETIC_DTYPE) \
  NB_GROUP_CODES(codes_f16_rd, codes, NB_F16, NB_ARITHMETIC_DTYPE) \
  static nb_group_kernels pick(int dtype, int arithmetic) { \
    bool rd = arithmetic == NB_ARITHMETIC_DTYPE; \
    if (dtype == NB_F32) return (nb_group_kernels){span32, rd ? codes_f32_rd : codes_f32}; \
    if (dtype == NB_BF16) return (nb_group_kernels){span16, rd ? codes_bf16_rd : codes_bf16}; \
    return (nb_group_kernels){span16, rd ? codes_f16_rd : codes_f16}; \
  }

/* A checked weight: rows, columns, and how they divide into groups. With
 * per-tensor scales (group 0) the whole tensor is one group. */
typedef struct nb_groups {
  int64_t n, k, group, per_row;
  int w_dtype, s_dtype, bits;
  bool symmetric, per_tensor;
  const char *w;
  uint8_t *codes, *zeros;
  char *scales;
} nb_groups;

/* Fails with a sentence unless the tensors fit each other; what names the method. */
int nb_groups_check(nb_groups *out, const char *what, const nb_tensor *codes, const nb_tensor *scales,
                    const nb_tensor *zeros, const nb_tensor *w, int bits, int symmetric, int64_t group);

/* The grid whose clipping range is [-neg, pos]. False when the scale is too
 * large for the scales' dtype. */
bool nb_grid_make(nb_grid *out, float pos, float neg, const nb_rtn_options *o, int w_dtype, int s_dtype);

/* The sentence for the group that could not be quantized: a NaN or Inf in it,
 * or a scale out of range. index counts groups row by row. */
int nb_groups_fail(const nb_groups *q, const char *what, int64_t index);

/* What nb_rtn_quantize asks of its arguments, and its sentence for group `index`: for who does the same elsewhere. */
int nb_rtn_check(nb_groups *out, const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *zeros,
                 const nb_tensor *w, const nb_rtn_options *o);
int nb_rtn_fail(const nb_groups *q, int64_t index);

/* The same of nb_float_quantize; fail: for a weight with a NaN or Inf, or a scale too large for s_dtype. */
int nb_float_quantize_check(const nb_tensor *codes, const nb_tensor *scales, const nb_tensor *w,
                            const nb_float_options *o);
int nb_float_quantize_fail(const nb_tensor *w, int s_dtype);

/* Fails unless g_idx is i32 [k] of groups 0 to groups-1; what begins the sentence. */
int nb_expect_groups(const nb_tensor *g_idx, const char *what, int64_t k, int64_t groups);

#endif
