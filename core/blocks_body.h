/* blocks_body.h - the functions of an nb_blocks, compiled once per instruction set by
 * the file that includes this, which defines VECTOR_BYTES: what its processor adds at
 * once. Eight lanes lie in 64 / VECTOR_BYTES vectors and are added up in one order;
 * nothing is contracted. */
#include "blocks.h"

#include <math.h>

enum { WIDTH = VECTOR_BYTES / 8, PARTS = NB_LANES / WIDTH };

typedef double vec __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t mask __attribute__((vector_size(VECTOR_BYTES)));
typedef float half_vec __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef struct lanes {
  vec v[PARTS];
} lanes;

#define EACH_PART _Pragma("GCC unroll 8") for (int j = 0; j < PARTS; j++)

static inline vec load(const double *x, int part) {
  vec v;
  memcpy(&v, x + part * WIDTH, sizeof v);
  return v;
}

static inline vec choose(mask m, vec a, vec b) { return (vec)((m & (mask)a) | (~m & (mask)b)); }

static inline double sum(const lanes *l) {
  double s[NB_LANES];
  memcpy(s, l, sizeof s);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* Fills x from n on to whole lanes; -> how many elements those are. */
static inline int64_t pad(double *x, int64_t n, double v) {
  int64_t whole = NB_CEIL(n, NB_LANES) * NB_LANES;
  for (int64_t i = n; i < whole; i++) x[i] = v;
  return whole;
}

static void widen(double *out, const float *in, int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) {
    half_vec f;
    memcpy(&f, in + i, sizeof f);
    vec v = __builtin_convertvector(f, vec);
    memcpy(out + i, &v, sizeof v);
  }
  for (; i < n; i++) out[i] = (double)in[i];
}

static bool has_odd(const double *x, int64_t n) {
  lanes odd = {0}; /* NaN in a lane that meets a NaN or an infinity */
  int64_t i = 0;
  for (; i + NB_LANES <= n; i += NB_LANES) EACH_PART odd.v[j] += load(x + i, j) * 0.0;
  double rest = sum(&odd);
  for (; i < n; i++) rest += x[i] * 0;
  return rest != 0;
}

/* Two passes: the mean first, then what is around it. */
static void moments(nb_moments *out, double *x, int64_t n) {
  int64_t whole = pad(x, n, x[0]);
  lanes lo, hi;
  EACH_PART lo.v[j] = hi.v[j] = load(x, j);
  for (int64_t i = NB_LANES; i < whole; i += NB_LANES) EACH_PART {
      vec v = load(x + i, j);
      lo.v[j] = choose(v < lo.v[j], v, lo.v[j]);
      hi.v[j] = choose(v > hi.v[j], v, hi.v[j]);
    }
  pad(x, n, 0);
  lanes s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0};
  mask zeros[PARTS] = {0};
  for (int64_t i = 0; i < whole; i += NB_LANES) EACH_PART {
      vec v = load(x + i, j);
      s1.v[j] += v;
      zeros[j] -= v == 0.0;
    }
  out->n = n;
  out->mean = sum(&s1) / (double)n;
  out->min = out->max = x[0], out->zeros = n - whole;
  for (int k = 0; k < NB_LANES; k++) {
    double least = lo.v[k / WIDTH][k % WIDTH], most = hi.v[k / WIDTH][k % WIDTH];
    out->min = least < out->min ? least : out->min;
    out->max = most > out->max ? most : out->max;
    out->zeros += zeros[k / WIDTH][k % WIDTH];
  }
  pad(x, n, out->mean);
  for (int64_t i = 0; i < whole; i += NB_LANES) EACH_PART {
      vec d = load(x + i, j) - out->mean, d2 = d * d;
      s2.v[j] += d2;
      s3.v[j] += d2 * d;
      s4.v[j] += d2 * d2;
    }
  out->m2 = sum(&s2);
  out->m3 = sum(&s3);
  out->m4 = sum(&s4);
}

static void difference(nb_difference *out, double *x, double *y, int64_t n) {
  int64_t whole = pad(x, n, 0);
  pad(y, n, 0);
  lanes e2 = {0}, a2 = {0}, b2 = {0}, dot = {0}, most = {0};
  for (int64_t i = 0; i < whole; i += NB_LANES) EACH_PART {
      vec a = load(x + i, j), b = load(y + i, j), e = b - a;
      vec size = choose(e < 0.0, -e, e);
      e2.v[j] += e * e;
      a2.v[j] += a * a;
      b2.v[j] += b * b;
      dot.v[j] += a * b;
      most.v[j] = choose(size > most.v[j], size, most.v[j]);
    }
  *out = (nb_difference){sum(&e2), sum(&a2), sum(&b2), sum(&dot), 0};
  for (int k = 0; k < NB_LANES; k++) {
    double size = most.v[k / WIDTH][k % WIDTH];
    out->max_abs = size > out->max_abs ? size : out->max_abs;
  }
}
