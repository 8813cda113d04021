/* numbers.h - dtypes, as who launches a kernel names them: for C and C++. */
#ifndef NB_NUMBERS_H
#define NB_NUMBERS_H
enum { NB_KERNEL_F32, NB_KERNEL_BF16, NB_KERNEL_F16, NB_KERNEL_E4M3, NB_KERNEL_E8M0, NB_KERNEL_E4M3FNUZ };
#endif
