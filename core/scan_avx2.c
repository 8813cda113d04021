/* scan_avx2.c - the counts of scan_body.h with AVX2. */
#define SCAN nb_count_avx2
#include "scan_body.h"
