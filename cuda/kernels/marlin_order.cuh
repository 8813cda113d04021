/* marlin_order.cuh - one weight at a time out of Marlin's form, for kernels that take weights so: where a column's scale
 * lies, what a scale is worth, and what a code is (core/layout/marlin_scales.c, core/compute/marlin.c). Exact, but for a
 * NaN's other bits. */
#ifndef NB_MARLIN_ORDER_CUH
#define NB_MARLIN_ORDER_CUH
#include "dequantize.cuh"

namespace marlin {

/* Where column c of 64 has its scale, or bias, where there is one for all rows: and where there are groups. */
NB_DEVICE int single_place(int c) { return c / 32 * 32 + c % 8 / 2 * 8 + c % 32 / 8 * 2 + c % 2; }
NB_DEVICE int grouped_place(int c) { return c % 8 * 8 + c / 8; }
/* Bytes, of which the second and third of four have changed places. */
NB_DEVICE int byte_place(int place) { return (place & ~3) | (place & 1) << 1 | (place & 2) >> 1; }
NB_DEVICE int scale_place(int c, bool grouped, int scale) {
  const int place = grouped ? grouped_place(c) : single_place(c);
  return scale == NB_KERNEL_E8M0 || scale == NB_KERNEL_S0E5M3 ? byte_place(place) : place;
}

/* Scale i of this dtype. */
NB_DEVICE float scale_at(global<const uint8_t> scales, int64_t i, int scale) {
  if (scale == NB_KERNEL_E8M0) return e8m0_to_f32(scales[i]);
  if (scale == NB_KERNEL_S0E5M3) return float_of_f16((uint16_t)(scales[i] << 7));
  uint32_t bits = scale == NB_KERNEL_F32 ? cast<const uint32_t>(scales)[i] : cast<const uint16_t>(scales)[i];
  return dequantize::plain(bits, scale);
}

/* Code c of NB_CODES_*; zero: of integers, as dequantize::whole() gives it. */
NB_DEVICE float value(uint32_t c, int codes, float zero) {
  return codes == NB_CODES_INT    ? dequantize::whole(c) - zero
         : codes == NB_CODES_E4M3 ? dequantize::e4m3(c, false)
                                  : dequantize::e2m1(c);
}

} // namespace marlin
#endif
