/* peak.c - what this machine can do at all: the multiply-adds a second that products are
 * measured against, the rate of reading that jobs over files are. */
#include "peak.h"

#include "base.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef float v4f __attribute__((vector_size(16)));

double nb_peak_portable(long long rounds, double *flops) {
  enum { CHAINS = 8 };
  v4f acc[CHAINS], a = {0.999999f, 0.999999f, 0.999999f, 0.999999f}, b = a * 1e-6f;
  for (int i = 0; i < CHAINS; i++) acc[i] = a * (float)i;
  for (long long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * a + b;
  }
  v4f sum = acc[0];
  for (int i = 1; i < CHAINS; i++) sum += acc[i];
  *flops = 8.0 * CHAINS * (double)rounds;
  return (double)sum[0];
}

double nb_peak_flops(int threads) {
  int cpu = nb_cpu();
  double (*loop)(long long, double *) = (cpu & NB_CPU_AVX512) ? nb_peak_avx512
                                        : (cpu & NB_CPU_AVX2) ? nb_peak_avx2
                                                              : nb_peak_portable;
  double best = 0.0, sink = 0.0;
  for (int trial = 0; trial < 5; trial++) {
    double flops = 0.0, start = nb_now();
#pragma omp parallel num_threads(NB_MAX(threads, 1)) reduction(+ : flops, sink)
    {
      double mine;
      sink += loop(2000000, &mine);
      flops += mine;
    }
    best = NB_MAX(best, flops / (nb_now() - start));
  }
  return sink < 0.0 ? -best : best;
}

double nb_peak_read(const nb_tensor *t, int threads) {
  enum { CHUNK = 1 << 20, LANES = 4 };
  typedef uint64_t v2 __attribute__((vector_size(16)));
  int64_t bytes = nb_tensor_bytes(t) / CHUNK * CHUNK;
  uint64_t seen = 0;
  double start = nb_now();
#pragma omp parallel for num_threads(NB_MAX(threads, 1)) schedule(static) reduction(| : seen)
  for (int64_t at = 0; at < bytes; at += CHUNK) {
    v2 all[LANES] = {0}, v;
    for (int64_t i = 0; i < CHUNK; i += (int64_t)sizeof all)
#pragma GCC unroll 4
      for (int j = 0; j < LANES; j++) {
        memcpy(&v, (const char *)t->data + at + i + j * (int)sizeof v, sizeof v);
        all[j] |= v;
      }
    v = (all[0] | all[1]) | (all[2] | all[3]);
    seen |= v[0] | v[1];
  }
  double seconds = nb_now() - start;
  return (seen == 1 ? -1 : 1) * (double)bytes / seconds; /* so that nothing is optimized away */
}

double nb_peak_file_read(const char *path, int threads) {
  enum { CHUNK = 1 << 20 };
  struct stat file;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  int64_t bytes = fstat(fd, &file) == 0 ? file.st_size : 0, came = 0;
  double start = nb_now();
#pragma omp parallel num_threads(NB_MAX(threads, 1)) reduction(+ : came)
  {
    char *buffer = malloc(CHUNK);
#pragma omp for schedule(static)
    for (int64_t at = 0; at < bytes; at += CHUNK) came += buffer ? pread(fd, buffer, CHUNK, at) : 0;
    free(buffer);
  }
  double seconds = nb_now() - start;
  close(fd);
  return came == bytes ? (double)bytes / seconds : 0;
}
