/* quantize_float.cu - round to nearest onto small floats: what core/quant/float.c does on the CPU, bit for bit: FP8 (e4m3)
 * under float scales, NVFP4 (e2m1 under e4m3 scales and a global one), MXFP4 and MXFP8 (under powers of two).
 * quantize.cuh has the way through the weight. */
#include "quantize.cuh"

struct float_grid {
  divisor scale;
};

template <int DTYPE, bool E2M1> struct onto {
  typedef float_grid grid;
  const nb_quantize_float &o;
  global<uint8_t> scales;
  global<uint64_t> failed;

  NB_DEVICE bool multiplies() const { return E2M1 && o.vllm && o.scale_dtype == NB_KERNEL_E4M3; }

  NB_DEVICE float given(int64_t i) const {
    if (o.scale_dtype == NB_KERNEL_E8M0) return e8m0_to_f32(scales[i]);
    if (o.scale_dtype == NB_KERNEL_E4M3) return e4m3_to_f32(scales[i]) / o.global;
    return load_float(cast<const uint8_t>(scales), i, o.scale_dtype);
  }

  /* FP8: absmax / 448. */
  NB_DEVICE float plain(float absmax, int64_t i, bool stores) const {
    const int dtype = o.in_dtype ? DTYPE : o.scale_dtype;
    float s = rounded(absmax / 448, dtype);
    if (!(s > 0)) s = absmax > 0 && !o.in_dtype ? least_of(dtype) : epsilon_of(dtype);
    if (stores) store_float(scales, i, s, o.scale_dtype);
    return s;
  }

  /* NVFP4: absmax / 6 times the global scale, as e4m3; 0 becomes 0.125. vLLM's way weights are multiplied, by reciprocals. */
  NB_DEVICE float e4m3_scale(float absmax, int64_t i, bool stores) const {
    uint32_t code;
    float by;
    if (o.vllm) {
      code = e4m3_of(smaller(mul_rn(o.global, mul_rn(absmax, 1.0f / 6)), 448.0f));
      const float s = mul_rn(e4m3_to_f32(code), 1 / o.global);
      by = 1 / (s == 0 ? 1e8f : s);
    } else {
      code = e4m3_of(mul_rn(rounded(absmax / 6, o.in_dtype ? DTYPE : NB_KERNEL_F32), o.global));
      if (code == 0) code = 0x20;
      by = e4m3_to_f32(code) / o.global;
    }
    if (stores) scales[i] = (uint8_t)code;
    return by;
  }

  /* MX: the exponent of the largest magnitude less that of the element's largest. By compressed-tensors' rule magnitudes
   * from 1.75 * 2^e up count as 2^(e+1); by vLLM's those beyond the element's largest do. */
  NB_DEVICE float e8m0_scale(uint32_t bits, int64_t i, bool stores) const {
    const uint32_t nudge = !o.vllm ? 0x00200000u : E2M1 ? 0x003fffffu : 0x001fffffu;
    const int e = (int)((bits + nudge) >> 23) - (E2M1 ? 2 : 8);
    if (stores) scales[i] = (uint8_t)larger(e, 0);
    return e8m0_to_f32((uint32_t)larger(e, 0));
  }

  NB_DEVICE bool make(grid &g, int64_t i, span s, bool stores) const {
    const uint32_t bits = larger(s.pos, s.neg);
    const bool finite = bits < 0x7f800000u;
    const float absmax = float_of_bits(bits);
    float by = INFINITY;
    if (finite) {
      if (o.given) by = given(i);
      else if (o.scale_dtype == NB_KERNEL_E4M3) by = e4m3_scale(absmax, i, stores);
      else if (o.scale_dtype == NB_KERNEL_E8M0) by = e8m0_scale(bits, i, stores);
      else by = plain(absmax, i, stores);
    }
    const bool small = !o.given && o.scale_dtype >= NB_KERNEL_E4M3; /* may be anything, as on the CPU */
    const bool fine = finite && (small || magnitude_of(by) != 0x7f800000u);
    if (!fine && stores) atomic_max(failed, (uint64_t)1);
    g.scale = divisor_of(by, absmax);
    if (E2M1) g.scale.quick &= by <= 1; /* no quotient becomes 0 then, which would lose its sign */
    return fine;
  }

  /* Where q is NaN, which no quick division makes, a number whose code is what the processor's NaN gets, the largest
   * one's: with the sign of a NaN by, else negative, as a processor's NaN of an invalid operation is. */
  static NB_DEVICE float number(float q, float by) {
    const uint32_t sign = by == by ? 0x80000000u : bits_of_float(by) & 0x80000000u;
    return q == q ? q : float_of_bits(sign | 0x7f7fffffu);
  }

  /* The codes of x[i] to x[i + 3]. Signs are the weights' own where no scale is negative and no sign lost. */
  static NB_DEVICE uint32_t four(const eight<DTYPE> &w, const float *x, int i, bool own) {
    uint32_t c[4], rest = (E2M1 ? e2m1::REST : e4m3::REST) * 0x01010101u;
    for (int j = 0; j < 4; j++) c[j] = E2M1 ? e2m1::magnitude(x[i + j]) : e4m3::magnitude(x[i + j]);
    const uint32_t tops = !E2M1 && own ? w.tops(i) : tops_of(x + i);
    return bytes_of(c) - rest + (E2M1 ? tops >> 4 & 0x08080808u : tops & 0x80808080u);
  }

  template <bool QUICK> NB_DEVICE uint64_t codes(const grid &g, const eight<DTYPE> &w) const {
    float x[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x[i] = w[i];
    if (multiplies()) {
#pragma unroll
      for (int i = 0; i < VECTOR; i++) x[i] = mul_rn(x[i], g.scale.by) + 0.0f; /* -0 becomes 0 */
    } else divide<DTYPE, VECTOR, !E2M1 && !QUICK, QUICK>(x, g.scale);
    if (!QUICK && !g.scale.quick) {
#pragma unroll
      for (int i = 0; i < VECTOR; i++) x[i] = number(x[i], g.scale.by);
    }
    if (!E2M1 && o.in_dtype && o.scale_dtype < NB_KERNEL_E4M3) round_all<DTYPE, VECTOR>(x);
    return join(four(w, x, 0, QUICK), four(w, x, 4, QUICK));
  }
};

/* Codes e4m3, or e2m1 in u8, [n,k] and scales, one a block, from w. failed: 0, or not where a weight isn't finite or a
 * scale is too large for its dtype. Shared memory: nb_quantize_shared. */
#define FLOAT_KERNEL(name, dtype, e2m1) \
  extern "C" __global__ void __launch_bounds__(NB_QUANTIZE_MOST_THREADS, 2) \
      name(nb_quantize_blocks b, nb_quantize_float o, global<const uint8_t> w, global<uint8_t> codes, \
           global<uint8_t> scales, global<uint64_t> failed) { \
    quantize_blocks<dtype>(b, w, codes, onto<dtype, e2m1>{o, scales, failed}); \
  }
FLOAT_KERNEL(nb_quantize_e4m3_f32, NB_KERNEL_F32, false)
FLOAT_KERNEL(nb_quantize_e4m3_bf16, NB_KERNEL_BF16, false)
FLOAT_KERNEL(nb_quantize_e4m3_f16, NB_KERNEL_F16, false)
FLOAT_KERNEL(nb_quantize_e2m1_f32, NB_KERNEL_F32, true)
FLOAT_KERNEL(nb_quantize_e2m1_bf16, NB_KERNEL_BF16, true)
FLOAT_KERNEL(nb_quantize_e2m1_f16, NB_KERNEL_F16, true)
