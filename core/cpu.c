/* cpu.c - which instruction sets this processor grants, and test limits on them. */
#include "base.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static int detected = -1, limit = -1;

/* Intel: AMX tile data must be asked for from the kernel before first use. */
static bool amx_granted(void) {
#ifdef SYS_arch_prctl
  enum { REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
  return false;
#endif
}

static int detect(void) {
  int f = 0;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("f16c"))
    f |= NB_CPU_AVX2;
  if ((f & NB_CPU_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    f |= NB_CPU_AVX512;
  if (f & NB_CPU_AVX512) {
    if (__builtin_cpu_supports("avx512vnni")) f |= NB_CPU_AVX512_VNNI;
    if (__builtin_cpu_supports("avx512bf16")) f |= NB_CPU_AVX512_BF16;
    if (__builtin_cpu_supports("avx512vbmi")) f |= NB_CPU_AVX512_VBMI;
    unsigned a, b, c, d;
    bool tile = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 25 & 1) && (d >> 22 & 1);
    if (tile && amx_granted()) f |= NB_CPU_AMX;
  }
  return f;
}

int nb_cpu_detected(void) {
  if (detected < 0) {
    const char *env = getenv("NB_CPU");
    int avx512 = NB_CPU_AVX2 | NB_CPU_AVX512 | NB_CPU_AVX512_VNNI | NB_CPU_AVX512_BF16 | NB_CPU_AVX512_VBMI;
    detected = detect();
    if (env && limit < 0) {
      if (strcmp(env, "portable") == 0) limit = 0;
      else if (strcmp(env, "avx2") == 0) limit = NB_CPU_AVX2;
      else if (strcmp(env, "avx512") == 0) limit = avx512;
    }
  }
  return detected;
}

int nb_cpu(void) { return nb_cpu_detected() & limit; }

void nb_cpu_limit(int features) {
  nb_cpu_detected();
  limit = features;
}

const char *nb_cpu_name(void) {
  static char name[49];
  if (!name[0]) {
    unsigned r[12] = {0}, i = 0;
    for (; i < 3; i++)
      if (!__get_cpuid(0x80000002u + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3])) break;
    memcpy(name, r, 48);
    if (i < 3) strcpy(name, "unknown processor");
  }
  return name;
}
