/* peak.h - loops that do nothing but multiply and add, one per instruction set. */
#ifndef NB_PEAK_H
#define NB_PEAK_H

/* Runs the given number of rounds; the operations done come back in *flops, and a
 * number that depends on all of them, so that none is optimized away. */
double nb_peak_portable(long long rounds, double *flops);
double nb_peak_avx2(long long rounds, double *flops);
double nb_peak_avx512(long long rounds, double *flops);

#endif
