/* numbers.h - dtypes, as who launches a kernel names them: for C and C++. */
#ifndef NB_NUMBERS_H
#define NB_NUMBERS_H
enum {
  NB_KERNEL_F32,
  NB_KERNEL_BF16,
  NB_KERNEL_F16,
  NB_KERNEL_E4M3,
  NB_KERNEL_E8M0,
  NB_KERNEL_E4M3FNUZ,
  NB_KERNEL_S0E5M3 /* bits 14 to 7 of an f16: nb_marlin_nvfp4_scales */
};
#endif
