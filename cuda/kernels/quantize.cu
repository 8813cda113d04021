/* quantize.cu - round to nearest onto integers, one code a byte: what core/quant/rtn.c and groups.c do on the CPU, bit for
 * bit. quantize.cuh has the way through the weight. */
#include "quantize.cuh"

/* code = round_half_even(clamp(x, lo, hi)) + offset; groups.h tells more. */
struct rtn_grid {
  divisor scale;
  float add, lo, hi;
  int offset, zero;
};

NB_DEVICE float divided(float pos, float neg, const nb_quantize_rtn &o) {
  const float qmax = (float)((1 << (o.bits - 1)) - 1), qmin = (float)(1 << (o.bits - 1));
  if (o.range == 2) return larger(pos / qmax, neg / qmin); /* tight */
  return larger(pos, neg) / (o.range == 1 ? qmax : (qmax + qmin) / 2);
}

/* 1.5 * 2^23: a float's last bit is worth 1 there, so the adder rounds half to even. */
#define WHOLE 0x1.8p23f
#define WHOLE_BITS 0x4b400000u

/* False where the scale is infinite. */
NB_DEVICE bool grid_float32(rtn_grid &g, float pos, float neg, const nb_quantize_rtn &o) {
  const int levels = (1 << o.bits) - 1, half = 1 << (o.bits - 1);
  float s = rounded(o.symmetric ? divided(pos, neg, o) : (pos + neg) / (float)levels, o.scale_dtype);
  if (magnitude_of(s) >= 0x7f800000u) return false;
  if (s == 0) s = pos == 0 && neg == 0 ? epsilon_of(o.scale_dtype) : least_of(o.scale_dtype);
  int zero = half;
  if (!o.symmetric) zero = (int)((smaller(neg / s, (float)levels) + WHOLE) - WHOLE);
  g = {divisor_of(s, larger(pos, neg)), 0, (float)-zero, (float)(levels - zero), zero, zero};
  return true;
}

template <int DTYPE>
NB_DEVICE bool grid_in_dtype(rtn_grid &g, float pos, float neg, const nb_quantize_rtn &o) {
  const int levels = (1 << o.bits) - 1, half = 1 << (o.bits - 1);
  const bool tight = o.range == 2;
  float z = 0, s = o.symmetric ? divided(pos, neg, o) : rounded(pos + neg, DTYPE) / (float)levels;
  s = rounded(s, DTYPE);
  if (magnitude_of(s) >= 0x7f800000u) return false;
  if (!o.symmetric && (neg > 0 || s > 0)) {
    float down = rounded(neg / s, DTYPE); /* infinite where s is 0 */
    if (tight) down = rintf(smaller(down, (float)levels));
    z = rounded(down - (float)half, DTYPE);
    z = rintf(smaller(larger(z, (float)-half), (float)(half - 1)));
  }
  const int zero = (int)z + half;
  g = {divisor_of(s > 0 ? s : epsilon_of(DTYPE), larger(pos, neg)),
       z,
       (float)-half,
       (float)(half - 1),
       half,
       zero};
  if (tight) { /* the zero-point is added to the rounded value */
    g.add = 0;
    g.lo = (float)-zero;
    g.hi = (float)(levels - zero);
    g.offset = zero;
  }
  return true;
}

template <int DTYPE> struct rtn {
  typedef rtn_grid grid;
  const nb_quantize_rtn &o;
  global<uint8_t> scales, zeros;
  global<const uint32_t> range; /* of the whole tensor */
  global<uint64_t> failed;

  NB_DEVICE bool grid_of(grid &g, span s) const {
    if (larger(s.pos, s.neg) >= 0x7f800000u) return false;
    return o.in_dtype ? grid_in_dtype<DTYPE>(g, float_of_bits(s.pos), float_of_bits(s.neg), o)
                      : grid_float32(g, float_of_bits(s.pos), float_of_bits(s.neg), o);
  }
  NB_DEVICE void leave(const grid &g, int64_t i) const {
    store_float(scales, i, g.scale.by, o.scale_dtype);
    if (zeros) zeros[i] = (uint8_t)g.zero;
  }
  NB_DEVICE bool make(grid &g, int64_t i, span s, bool stores) const {
    if (o.whole) s = {range[0], range[1]};
    const bool fine = grid_of(g, s);
    if (!stores || o.whole) return fine;
    if (fine) leave(g, i);
    else atomic_max(failed, ~(uint64_t)i); /* the first one stays */
    return fine;
  }
  /* The whole tensor's scale, in each row. */
  NB_DEVICE void leave_all() const {
    const int64_t me = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    grid g;
    if (grid_of(g, {range[0], range[1]}))
      for (int64_t i = me; i < o.scales; i += (int64_t)gridDim.x * blockDim.x) leave(g, i);
    else if (me == 0) atomic_max(failed, ~(uint64_t)0);
  }

  template <bool QUICK> NB_DEVICE uint64_t codes(const grid &g, const eight<DTYPE> &w) const {
    const uint32_t base = ((uint32_t)g.offset - WHOLE_BITS) * 0x01010101u;
    float x[VECTOR];
    uint32_t c[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x[i] = w[i];
    divide<DTYPE, VECTOR, false, QUICK>(x, g.scale);
    if (o.in_dtype) {
      round_all<DTYPE, VECTOR>(x);
#pragma unroll
      for (int i = 0; i < VECTOR; i++) x[i] += g.add;
      round_all<DTYPE, VECTOR>(x);
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
      x[i] = fminf(fmaxf(x[i], g.lo), g.hi);
      c[i] = bits_of_float(x[i] + WHOLE);
    }
    return join(bytes_of(c) + base, bytes_of(c + 4) + base);
  }
};

template <int DTYPE>
NB_DEVICE void rtn_quantize(const nb_quantize_blocks &b, const nb_quantize_rtn &o, global<const uint8_t> w,
                            global<uint8_t> codes, global<uint8_t> scales, global<uint8_t> zeros,
                            global<const uint32_t> range, global<uint64_t> failed) {
  const rtn<DTYPE> method = {o, scales, zeros, range, failed};
  if (o.whole) method.leave_all();
  quantize_blocks<DTYPE>(b, w, codes, method);
}

/* Codes u8 [n,k], scales and zeros (or null) one a block, from w. range: null, or with o.whole two words, what
 * nb_quantize_span left; blocks are then any pieces of the tensor. failed: 0, or ~i of the first block that can't be
 * quantized, whose codes are not written. Shared memory: nb_quantize_shared. */
#define RTN_KERNEL(name, dtype) \
  extern "C" __global__ void __launch_bounds__(NB_QUANTIZE_MOST_THREADS, 2) \
      name(nb_quantize_blocks b, nb_quantize_rtn o, global<const uint8_t> w, global<uint8_t> codes, \
           global<uint8_t> scales, global<uint8_t> zeros, global<const uint32_t> range, \
           global<uint64_t> failed) { \
    rtn_quantize<dtype>(b, o, w, codes, scales, zeros, range, failed); \
  }
RTN_KERNEL(nb_quantize_rtn_f32, NB_KERNEL_F32)
RTN_KERNEL(nb_quantize_rtn_bf16, NB_KERNEL_BF16)
RTN_KERNEL(nb_quantize_rtn_f16, NB_KERNEL_F16)

/* Looks at `count` weights: range[0] and [1], 0 before, become the largest positive one's bits and the most negative
 * one's magnitude, or without signs range[0] alone the larger of them. */
template <int DTYPE>
NB_DEVICE void span_of(global<const uint8_t> w, global<uint32_t> range, int64_t count, int vectors,
                       int signs) {
  constexpr int HELD = eight<DTYPE>::HELD;
  const int64_t threads = (int64_t)gridDim.x * blockDim.x,
                me = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  look<DTYPE> all;
  for (int64_t at = me * VECTOR; at < count; at += threads * VECTOR * HELD) {
    eight<DTYPE> held[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int64_t from = at + j * threads * VECTOR;
      if (vectors && from + VECTOR <= count) held[j].load(w, from);
      else held[j].load_some(w, from, (int)smaller((int64_t)VECTOR, count - from));
    }
#pragma unroll
    for (int j = 0; j < HELD; j++) all.at(held[j]);
  }
  const span s = largest(all.seen(), 32, 0);
  if (threadIdx.x % 32) return;
  atomic_max(range, signs ? s.pos : larger(s.pos, s.neg));
  if (signs) atomic_max(range + 1, s.neg);
}

#define SPAN_KERNEL(name, dtype) \
  extern "C" __global__ void __launch_bounds__(NB_QUANTIZE_THREADS, 4) \
      name(global<const uint8_t> w, global<uint32_t> range, int64_t count, int vectors, int signs) { \
    span_of<dtype>(w, range, count, vectors, signs); \
  }
SPAN_KERNEL(nb_quantize_span_f32, NB_KERNEL_F32)
SPAN_KERNEL(nb_quantize_span_bf16, NB_KERNEL_BF16)
SPAN_KERNEL(nb_quantize_span_f16, NB_KERNEL_F16)
