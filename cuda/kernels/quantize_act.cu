/* quantize_act.cu - activations to one byte, int8 a token or fp8 e4m3 by tensor, token or group: what core/layout/act_quant.c
 * does on the CPU, bit for bit, NaN and Inf included. quantize.cuh has the way through them. */
#include "quantize.cuh"

/* The scale of what is not finite. */
enum : uint32_t { NAN_BITS = 0x7fc00000u };

struct act_grid {
  divisor scale; /* with int8 or one that is there, a factor */
};

template <int DTYPE> struct act {
  typedef act_grid grid;
  const nb_quantize_act &o;
  global<float> scales;

  NB_DEVICE bool make(grid &g, int64_t i, span s, bool stores) const {
    const uint32_t most = larger(s.pos, s.neg);
    const bool finite = most < 0x7f800000u;
    float absmax = float_of_bits(most);
    if (o.fixed) { /* as one factor */
      g.scale = {1 / scales[0], 0, true};
    } else if (o.int8) {
      absmax = larger(absmax, 1e-10f);
      if (stores) scales[i] = finite ? mul_rn(absmax / 127.0f, o.global) : float_of_bits(NAN_BITS);
      g.scale = {finite ? 127.0f / absmax : float_of_bits(NAN_BITS), 0, true};
    } else {
      const float by = finite ? larger(absmax / 448.0f, o.least) : float_of_bits(NAN_BITS);
      if (stores) scales[i] = by;
      g.scale = divisor_of(by, absmax);
    }
    return true;
  }

  template <bool QUICK> NB_DEVICE uint64_t codes(const grid &g, const eight<DTYPE> &w) const {
    float x[VECTOR];
    uint32_t c[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x[i] = w[i];
    if (o.fixed || o.int8) {
#pragma unroll
      for (int i = 0; i < VECTOR; i++) x[i] = mul_rn(x[i], g.scale.by);
    } else divide<DTYPE, VECTOR, true, QUICK>(x, g.scale);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) /* NaN that a scale makes becomes the largest */
      if (o.int8) c[i] = (uint32_t)(int)fmaxf(-127.0f, fminf(roundf(x[i]), 127.0f)) & 0xffu;
      else c[i] = w[i] != w[i] ? 0x7fu : e4m3_of(fmaxf(-448.0f, fminf(x[i], 448.0f)));
    return join(bytes_of(c), bytes_of(c + 4));
  }
};

/* Codes i8 or e4m3 [m,k] from x; one scale a block, or (o.fixed) the one that is there. Shared memory: nb_quantize_shared. */
#define ACT_KERNEL(name, dtype) \
  extern "C" __global__ void __launch_bounds__(NB_QUANTIZE_MOST_THREADS, 2) \
      name(nb_quantize_blocks b, nb_quantize_act o, global<const uint8_t> x, global<uint8_t> codes, \
           global<float> scales) { \
    quantize_blocks<dtype>(b, x, codes, act<dtype>{o, scales}); \
  }
ACT_KERNEL(nb_quantize_act_f32, NB_KERNEL_F32)
ACT_KERNEL(nb_quantize_act_bf16, NB_KERNEL_BF16)
ACT_KERNEL(nb_quantize_act_f16, NB_KERNEL_F16)

/* The scale of a tensor before and after nb_quantize_span grows its largest magnitude there. */
extern "C" __global__ void nb_quantize_act_scale(global<float> scale, int finish) {
  if (threadIdx.x) return;
  const float most = scale[0];
  scale[0] = !finish ? 0 : bits_of_float(most) < 0x7f800000u ? most / 448.0f : float_of_bits(NAN_BITS);
}
