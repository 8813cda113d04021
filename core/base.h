/* base.h - what every C file of nibble shares and nothing outside sees:
 * failing with a sentence, checked allocation, blocks of rows over threads. */
#ifndef NB_BASE_H
#define NB_BASE_H

#include "nibble.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NB_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define NB_MIN(a, b) ((a) < (b) ? (a) : (b))
#define NB_MAX(a, b) ((a) > (b) ? (a) : (b))
#define NB_CEIL(a, b) (((a) + (b)-1) / (b))

/* Leaves the sentence and returns code: `return nb_fail(NB_EINVAL, ...)`. */
int nb_fail(int code, const char *fmt, ...) NB_PRINTF(2, 3);
/* The same with the system's reason (errno) at the end. */
int nb_fail_errno(int code, const char *fmt, ...) NB_PRINTF(2, 3);
/* NB_EINTR with its sentence, for a job that saw the stop flag. */
int nb_fail_stopped(void);

/* Allocation that obeys nb_debug_fail_alloc. nb_alloc gives zeroed memory; NULL
 * leaves the sentence. Free with free(). */
void *nb_alloc(int64_t count, int64_t size);
void *nb_realloc(void *p, int64_t bytes);
char *nb_strdup(const char *s);

/* A buffer that owns data; free_fn(data, bytes) runs when the last reference
 * goes. counted: whether bytes appear in nb_live_bytes. NULL on no memory, and
 * then data is not freed. */
typedef void nb_free_fn(void *data, int64_t bytes);
nb_buf *nb_buf_new(void *data, int64_t bytes, nb_free_fn *free_fn, bool counted);
nb_buf *nb_buf_retain(nb_buf *b);
void nb_buf_release(nb_buf *b);
bool nb_buf_is_mapped(const nb_buf *b);
/* Maps a whole file, open for reading, as a U8 tensor [bytes]; fd may be closed
 * afterwards. path names it in sentences. */
int nb_fd_map(nb_tensor *out, int fd, const char *path);

/* Fills shape fields; checks ndim, sizes and overflow. what names the tensor. */
int nb_shape_set(nb_tensor *t, int dtype, int ndim, const int64_t *shape, const char *what);
/* "i32 [256x32]" into out. */
const char *nb_tensor_describe(const nb_tensor *t, char *out, size_t bytes);
/* Fails with a sentence when t's elements are on a device, where the processor can't read them; what names it. */
int nb_expect_here(const nb_tensor *t, const char *what);
/* Fails with a sentence unless t is in the computer's memory and has this dtype (-1: any) and shape (-1: any size). */
int nb_expect(const nb_tensor *t, const char *what, int dtype, int ndim, const int64_t *shape);
#define NB_SHAPE(...) ((const int64_t[]){__VA_ARGS__})
#define NB_TRY(expr) \
  do { \
    int nb_rc_ = (expr); \
    if (nb_rc_ < 0) return nb_rc_; \
  } while (0)

/* From now on jobs that this thread begins have so many threads; 0: as others have. */
void nb_threads_here(int n);

/* ---- hashes by pages (hash.c): what nb_tensor_hash is made of ------------- */

enum { NB_HASH_PAGE = 4096 };
typedef struct nb_digest {
  unsigned char bytes[16];
} nb_digest;
/* Hashes of data's pages, of which the last may be shorter; _avx2: where nb_cpu() has it. */
void nb_hash_pages(nb_digest *out, const void *data, int64_t bytes);
void nb_hash_pages_avx2(nb_digest *out, const void *data, int64_t bytes);
/* The tensor's hash from those of all its pages: 32 hex digits and a NUL. */
void nb_hash_of_pages(char *out, const nb_digest *pages, int64_t count);

/* ---- number formats, one value (the vector paths live in dtype.c) --------- */

static inline float nb_f32_from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline uint32_t nb_f32_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
static inline float nb_bf16_to_f32(uint16_t h) { return nb_f32_from_bits((uint32_t)h << 16); }
static inline uint16_t nb_f32_to_bf16(float f) {
  uint32_t u = nb_f32_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float nb_f16_to_f32(uint16_t h) {
  /* Place the 15 bits as an f32 with a too small exponent, then scale by 2^112;
   * exact for subnormals too. Inf and NaN get their exponent by hand; NaN becomes
   * quiet, as the processor's own conversion makes it. */
  uint32_t u = (uint32_t)(h & 0x7fffu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
  if (u > 0x0f800000u) u |= 0x00400000u;
  if (u >= 0x0f800000u) return nb_f32_from_bits(sign | 0x70000000u | u);
  return nb_f32_from_bits(sign | nb_f32_bits(nb_f32_from_bits(u) * 0x1p112f));
}
static inline uint16_t nb_f32_to_f16(float f) {
  uint32_t u = nb_f32_bits(f), a = u & 0x7fffffffu;
  uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x1ffu));
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (a < 0x38800000u) { /* subnormal: let the adder round at bit 2^-24 */
    uint32_t r = nb_f32_bits(nb_f32_from_bits(a) + 0.5f) - 0x3f000000u;
    return (uint16_t)(sign | r);
  }
  a += 0xfffu + ((a >> 13) & 1u);
  return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
}

#endif
