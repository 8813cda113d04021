/* statistics.cu - what calibration asks of activations, in the processor's bytes: sums of squares of columns, the smallest and
 * the largest value, and values quantized and dequantized again (core/stats.c, core/quant/activations.c).
 *
 * Memory limits them, but for the sums: rows are added in order, so that only as many threads work as there are columns, each
 * with 32 rows on their way. */
#include "plain.cuh"
#include "statistics.h"

namespace statistics {
using plain::EIGHT;

/* The largest magnitude's bits (NaN and infinity above all numbers); of smallest and largest as whole numbers in the floats'
 * order without a sign: the largest, and the complement of the smallest. 0: none yet. */
struct extent {
  uint32_t absmax, high, low;

  NB_DEVICE void see(float v) {
    const uint32_t b = bits_of_float(v), order = b ^ (b >> 31 ? 0xffffffffu : 0x80000000u);
    absmax = larger(absmax, b & 0x7fffffffu);
    high = larger(high, order);
    low = larger(low, ~order);
  }
  NB_DEVICE void see(const extent &o) {
    absmax = larger(absmax, o.absmax);
    high = larger(high, o.high);
    low = larger(low, o.low);
  }
};
NB_DEVICE float float_of_order(uint32_t order) {
  return float_of_bits(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

/* Of a team's lanes: some of a warp, a power of two, or the whole block. */
NB_DEVICE extent extent_of(extent e, int lanes) {
  for (int m = (lanes < 32 ? lanes : 32) / 2; m; m /= 2)
    e.see({shuffle_xor(e.absmax, m), shuffle_xor(e.high, m), shuffle_xor(e.low, m)});
  if (lanes <= 32) return e;
  shared<uint32_t> part = shared_words();
  if (threadIdx.x % 32 == 0) {
    shared<uint32_t> mine = part + threadIdx.x / 32 * 3;
    mine[0] = e.absmax, mine[1] = e.high, mine[2] = e.low;
  }
  __syncthreads();
  for (int i = 0; i < NB_STATISTICS_THREADS / 32; i++) {
    const uint32_t absmax = part[3 * i], high = part[3 * i + 1], low = part[3 * i + 2];
    e.see({absmax, high, low});
  }
  return e;
}

struct scale {
  float by, zero;
};
NB_DEVICE float symmetric_scale(uint32_t absmax, const nb_statistics_quant &o, float global) {
  if (absmax >= 0x7f800000u) return float_of_bits(0x7fc00000u); /* all that shares the scale is NaN */
  if (o.scale_dtype == NB_KERNEL_E8M0) {
    const int e = (int)((absmax + 0x00200000u) >> 23) - (o.bits == 4 ? 2 : 8);
    return e8m0_to_f32((uint32_t)larger(e, 0));
  }
  const float s = float_of_bits(absmax) / ((o.max - o.min) / 2);
  if (o.scale_dtype == NB_KERNEL_E4M3) {
    const float e = e4m3_to_f32(e4m3_of(mul_rn(global, s)));
    return (e == 0 ? 0.125f : e) / global;
  }
  return s == 0 ? 0x1p-23f : s;
}
NB_DEVICE scale scale_of(const extent &e, const nb_statistics_quant &o, float global) {
  if (o.symmetric) return {symmetric_scale(e.absmax, o, global), 0};
  /* 0 belongs to the range. */
  const float lo = float_of_order(~larger(e.low, 0x7fffffffu)),
              hi = float_of_order(larger(e.high, 0x80000000u));
  if (magnitude_of(lo) >= 0x7f800000u || magnitude_of(hi) >= 0x7f800000u)
    return {float_of_bits(0x7fc00000u), 0};
  const float s = (hi - lo) / (o.max - o.min), z = o.min - lo / s;
  const float inside = z < o.min ? o.min : z > o.max ? o.max : z;
  return {s == 0 ? 0x1p-23f : s, z != z ? 0 : (float)(int)rintf(inside)};
}

/* The value on the grid, less the zero-point. */
NB_DEVICE float rounded(float x, scale s, const nb_statistics_quant &o) {
  float v = x / s.by + s.zero;
  v = v < o.min ? o.min : v;
  v = v > o.max ? o.max : v;
  if (!o.is_float) return rintf(v) - s.zero;
  const uint32_t u = bits_of_float(v), a = u & 0x7fffffffu, unit = 1u << o.shift;
  uint32_t r = (a + (unit / 2 - 1) + (a >> o.shift & 1)) & ~(unit - 1);
  if (a < o.normal) r = bits_of_float(float_of_bits(a) + o.magic - o.magic);
  if (a > 0x7f800000u) r = a;
  return float_of_bits((u & 0x80000000u) | r);
}
NB_DEVICE uint32_t code_of(float v, bool is_float) {
  if (v != v) return 0;
  return is_float ? e4m3_of(v) : (uint32_t)(int)v & 0xffu;
}

/* Where this thread's team stands: its unit, of `width` numbers side by side, and the thread's place in it. */
struct team {
  int64_t unit;
  int lane;
};
NB_DEVICE team team_of(int lanes) {
  return {(int64_t)blockIdx.x * (NB_STATISTICS_THREADS / lanes) + (int)threadIdx.x / lanes,
          (int)threadIdx.x % lanes};
}

NB_DEVICE extent look(global<const uint8_t> x, int64_t first, int width, const team &me, int lanes,
                      int x_dtype, int rounding, bool whole) {
  extent e = {0, 0, 0};
  for (int i = me.lane * EIGHT; i < width; i += lanes * EIGHT) {
    const int count = smaller((int)EIGHT, width - i);
    float v[EIGHT];
    plain::load<true>(v, x, first + i, count, x_dtype, whole);
    plain::round(v, rounding);
#pragma unroll
    for (int j = 0; j < EIGHT; j++)
      if (j < count) e.see(v[j]);
  }
  return e;
}

/* Which unit of x a unit of out is made of; whose extent or numbers are its own, -1: it is left out; its static scale and its
 * global scale. Rows as they are, `share` units to an extent: */
struct plain_rows {
  int64_t share;
  NB_DEVICE int64_t source(int64_t unit) const { return unit; }
  NB_DEVICE int64_t owner(int64_t unit) const { return unit / share; }
  NB_DEVICE float static_scale(int64_t, const nb_statistics_quant &o) const { return o.scale; }
  NB_DEVICE float global_scale(int64_t, const nb_statistics_quant &o) const { return o.global; }
};
/* Rows of pairs of a token and one of its experts, `each` units to a row. */
struct pair_rows {
  global<const int> ids, map;
  global<const float> scales;
  nb_statistics_pairs o;

  NB_DEVICE int64_t source(int64_t unit) const { return unit / o.each / o.top * o.each + unit % o.each; }
  NB_DEVICE int64_t owner(int64_t unit) const {
    int e = ids[unit / o.each];
    if (map) e = e >= 0 && e < o.entries ? map[e] : -1;
    return e >= 0 && e < o.experts ? e : -1;
  }
  NB_DEVICE float static_scale(int64_t e, const nb_statistics_quant &q) const {
    return scales ? scales[e] : q.scale;
  }
  NB_DEVICE float global_scale(int64_t e, const nb_statistics_quant &q) const {
    return scales ? scales[e] : q.global;
  }
};

template <class ROWS>
NB_DEVICE void extents(const ROWS &rows, global<uint32_t> words, global<const uint8_t> x, int64_t units,
                       int width, int x_dtype, int rounding, int lanes, int whole) {
  const team me = team_of(lanes);
  const int64_t owner = me.unit < units ? rows.owner(me.unit) : -1;
  extent e = {0, 0, 0};
  if (owner >= 0) e = look(x, rows.source(me.unit) * width, width, me, lanes, x_dtype, rounding, whole);
  e = extent_of(e, lanes);
  if (me.lane || owner < 0) return;
  global<uint32_t> to = words + owner * NB_STATISTICS_WORDS;
  atomic_max(to, e.absmax);
  atomic_max(to + 1, e.high);
  atomic_max(to + 2, e.low);
}

template <class ROWS>
NB_DEVICE void quantize(const ROWS &rows, global<uint8_t> out, global<const uint8_t> x,
                        global<const uint32_t> words, int64_t units, int width, const nb_statistics_quant &o,
                        int out_dtype, int x_dtype, int lanes, int whole) {
  const team me = team_of(lanes);
  const int64_t owner = me.unit < units ? rows.owner(me.unit) : -1;
  const bool here = owner >= 0;
  const int64_t first = here ? rows.source(me.unit) * width : 0, to = me.unit * width;
  scale s = {0, o.zero};
  if (here && !o.dynamic) s.by = rows.static_scale(owner, o);
  if (o.dynamic && words) {
    if (here) {
      global<const uint32_t> from = words + owner * NB_STATISTICS_WORDS;
      s = scale_of({from[0], from[1], from[2]}, o, rows.global_scale(owner, o));
    }
  } else if (o.dynamic) {
    extent e = {0, 0, 0};
    if (here) e = look(x, first, width, me, lanes, x_dtype, o.dtype, whole);
    e = extent_of(e, lanes);
    if (here) s = scale_of(e, o, rows.global_scale(owner, o));
  }
  for (int i = me.lane * EIGHT; here && i < width; i += lanes * EIGHT) {
    const int count = smaller((int)EIGHT, width - i);
    float v[EIGHT];
    plain::load<true>(v, x, first + i, count, x_dtype, whole);
    plain::round(v, o.dtype);
#pragma unroll
    for (int j = 0; j < EIGHT; j++) v[j] = mul_rn(rounded(v[j], s, o), s.by);
    plain::store(out, v, to + i, count, out_dtype, whole);
  }
}
} // namespace statistics

/* sums[c] += x[r][c]^2, rows in order, in double. A thread to a column. */
extern "C" __global__ void __launch_bounds__(NB_STATISTICS_COLUMNS)
    nb_statistics_squares(global<double> sums, global<const uint8_t> x, int64_t m, int64_t k, int dtype) {
  enum { AHEAD = NB_STATISTICS_AHEAD };
  const int64_t c = (int64_t)blockIdx.x * NB_STATISTICS_COLUMNS + (int)threadIdx.x;
  if (c >= k) return;
  double sum = sums[c];
  for (int64_t r = 0; r < m; r += AHEAD) {
    float v[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      v[i] = 0; /* adds nothing: no sum is -0 */
      if (r + i >= m) continue;
      const int64_t at = (r + i) * k + c;
      if (dtype == NB_KERNEL_F32) v[i] = cast<const float>(x)[at];
      else v[i] = float_of_half(cast<const uint16_t>(x)[at], dtype);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) sum += (double)v[i] * (double)v[i]; /* the product is exact */
  }
  sums[c] = sum;
}

/* words: what `extent` knows of `units` times `width` numbers, `share` units to every three words. */
extern "C" __global__ void __launch_bounds__(NB_STATISTICS_THREADS)
    nb_statistics_extents(global<uint32_t> words, global<const uint8_t> x, int64_t units, int width,
                          int64_t share, int x_dtype, int rounding, int lanes, int whole) {
  statistics::extents(statistics::plain_rows{share}, words, x, units, width, x_dtype, rounding, lanes, whole);
}

/* out = x quantized and dequantized again: `units` of `width` numbers with a scale each, or (words) one for `share` units, whose
 * extents are known. out may be x. Four blocks to a processor: for more the compiler would spill. */
extern "C" __global__ void __launch_bounds__(NB_STATISTICS_THREADS, 4)
    nb_statistics_quantize(global<uint8_t> out, global<const uint8_t> x, global<const uint32_t> words,
                           int64_t units, int width, int64_t share,
                           const __grid_constant__ nb_statistics_quant o, int out_dtype, int x_dtype,
                           int lanes, int whole) {
  statistics::quantize(statistics::plain_rows{share}, out, x, words, units, width, o, out_dtype, x_dtype,
                       lanes, whole);
}

/* The same of pairs of a token and one of its experts: `each` units to a pair's row, of its token's in x; extents, static scales
 * and global scales are an expert's. Rows of pairs without an expert here stay as they are. */
extern "C" __global__ void __launch_bounds__(NB_STATISTICS_THREADS)
    nb_statistics_pair_extents(global<uint32_t> words, global<const uint8_t> x, global<const int> ids,
                               global<const int> map, int64_t units, int width,
                               const __grid_constant__ nb_statistics_pairs p, int x_dtype, int rounding,
                               int lanes, int whole) {
  statistics::extents(statistics::pair_rows{ids, map, {}, p}, words, x, units, width, x_dtype, rounding,
                      lanes, whole);
}
extern "C" __global__ void __launch_bounds__(NB_STATISTICS_THREADS, 4)
    nb_statistics_pair_quantize(global<uint8_t> out, global<const uint8_t> x, global<const uint32_t> words,
                                global<const int> ids, global<const int> map, global<const float> scales,
                                int64_t units, int width, const __grid_constant__ nb_statistics_pairs p,
                                const __grid_constant__ nb_statistics_quant o, int out_dtype, int x_dtype,
                                int lanes, int whole) {
  statistics::quantize(statistics::pair_rows{ids, map, scales, p}, out, x, words, units, width, o, out_dtype,
                       x_dtype, lanes, whole);
}

/* codes, one byte a number, and scales of m rows of k numbers: a scale each, or (words) one for `share` rows, whose extents are
 * known. */
extern "C" __global__ void __launch_bounds__(NB_STATISTICS_THREADS, 4)
    nb_statistics_codes(global<uint8_t> codes, global<float> scales, global<const uint8_t> x,
                        global<const uint32_t> words, int64_t m, int k, int64_t share,
                        const __grid_constant__ nb_statistics_quant o, int x_dtype, int lanes, int whole) {
  using statistics::EIGHT;
  const statistics::team me = statistics::team_of(lanes);
  const bool here = me.unit < m;
  const int64_t first = me.unit * k;
  statistics::scale s = {o.scale, 0};
  statistics::extent e = {0, 0, 0};
  if (here) e = statistics::look(x, first, k, me, lanes, x_dtype, o.dtype, whole);
  e = statistics::extent_of(e, lanes);
  const bool is_number = e.absmax <= 0x7f800000u;
  if (!here) return;
  if (words) {
    global<const uint32_t> from = words + me.unit / share * NB_STATISTICS_WORDS;
    e = {from[0], from[1], from[2]};
  }
  if (o.dynamic) s = statistics::scale_of(e, o, o.global);
  if (me.lane == 0) scales[me.unit] = is_number ? s.by : float_of_bits(0x7fc00000u);
  for (int i = me.lane * EIGHT; i < k; i += lanes * EIGHT) {
    const int count = smaller((int)EIGHT, k - i);
    float v[EIGHT];
    uint32_t low = 0, high = 0;
    plain::load<true>(v, x, first + i, count, x_dtype, whole);
    plain::round(v, o.dtype);
#pragma unroll
    for (int j = 0; j < EIGHT; j++) {
      const uint32_t code = statistics::code_of(statistics::rounded(v[j], s, o), o.is_float);
      (j < 4 ? low : high) |= code << j % 4 * 8;
      if (!whole && j < count) codes[first + i + j] = (uint8_t)code;
    }
    if (whole) cast<uint2>(codes)[(first + i) / 8] = make_uint2(low, high);
  }
}
