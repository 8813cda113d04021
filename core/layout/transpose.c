/* transpose.c - [n,G] <-> [G,n], whole or as a strip of columns: scales and
 * zero-points lie one way in the canonical form and the other on disk. */
#include "simd.h"

enum { TILE = 32, SERIAL_BYTES = 1 << 15 };

/* dst[j*dst_ld + i] = src[i*src_ld + j] for i < rows, j < cols. */
#define TRANSPOSE(name, type) \
  static void name(type *dst, int64_t dst_ld, const type *src, int64_t src_ld, int64_t rows, int64_t cols) { \
    for (int64_t i0 = 0; i0 < rows; i0 += TILE) \
      for (int64_t j = 0; j < cols; j++) \
        for (int64_t i = i0; i < NB_MIN(i0 + TILE, rows); i++) dst[j * dst_ld + i] = src[i * src_ld + j]; \
  }
TRANSPOSE(transpose8, uint8_t)
TRANSPOSE(transpose16, uint16_t)
TRANSPOSE(transpose32, uint32_t)
TRANSPOSE(transpose64, uint64_t)

static void any_transpose(void *dst, int64_t dst_ld, const void *src, int64_t src_ld, int64_t rows,
                          int64_t cols, int64_t bytes) {
  if (bytes == 1) transpose8(dst, dst_ld, src, src_ld, rows, cols);
  else if (bytes == 2) transpose16(dst, dst_ld, src, src_ld, rows, cols);
  else if (bytes == 4) transpose32(dst, dst_ld, src, src_ld, rows, cols);
  else transpose64(dst, dst_ld, src, src_ld, rows, cols);
}

/* A panel of at most NB_STRIP rows: vectors, then what they leave at the edges. */
static void panel32(uint32_t *dst, int64_t dst_ld, const uint32_t *src, int64_t src_ld, int64_t rows,
                    int64_t cols, bool stream) {
  int64_t r = rows - rows % 8, c = cols - cols % 4;
  nb_words_transpose_avx2(dst, dst_ld, src, src_ld, r, c, stream);
  transpose32(dst + c * dst_ld, dst_ld, src + c, src_ld, r, cols - c);
  transpose32(dst + r, dst_ld, src + r * src_ld, src_ld, rows - r, cols);
}

static void panel16(uint16_t *dst, int64_t dst_ld, const uint16_t *src, int64_t src_ld, int64_t rows,
                    int64_t cols) {
  int64_t r = rows - rows % 16, c = cols - cols % 8;
  nb_halves_transpose_avx2(dst, dst_ld, src, src_ld, r, c);
  transpose16(dst + c * dst_ld, dst_ld, src + c, src_ld, r, cols - c);
  transpose16(dst + r, dst_ld, src + r * src_ld, src_ld, rows - r, cols);
}

/* Narrow strips down all rows; by vectors in flat panels, because those ask ahead
 * along the rows and stream whole runs. */
static int transpose(void *dst, int64_t dst_ld, const void *src, int64_t src_ld, int64_t rows, int64_t cols,
                     int64_t bytes) {
  enum { LONG = 4096 };
  bool fast = (bytes == 4 || bytes == 2) && (nb_cpu() & NB_CPU_AVX2);
  bool stream = fast && bytes == 4 && nb_layout_streams(dst, dst_ld, rows * cols * 4);
  int64_t height = fast ? NB_STRIP : NB_MAX(rows, 1), width = fast ? LONG : TILE;
  int stopped = 0;
#pragma omp parallel for collapse(2) schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (rows * cols * bytes > SERIAL_BYTES)
  for (int64_t i = 0; i < rows; i += height)
    for (int64_t j = 0; j < cols; j += width) {
      int64_t r = NB_MIN(height, rows - i), c = NB_MIN(width, cols - j);
      char *d = (char *)dst + (j * dst_ld + i) * bytes;
      const char *s = (const char *)src + (i * src_ld + j) * bytes;
      if (nb_stop_requested()) stopped = 1;
      else if (!fast) any_transpose(d, dst_ld, s, src_ld, r, c, bytes);
      else if (bytes == 2)
        panel16((uint16_t *)(void *)d, dst_ld, (const uint16_t *)(const void *)s, src_ld, r, c);
      else panel32((uint32_t *)(void *)d, dst_ld, (const uint32_t *)(const void *)s, src_ld, r, c, stream);
    }
  return stopped ? nb_fail_stopped() : NB_OK;
}

static int element_bytes(int64_t *bytes, const nb_tensor *t, const char *what) {
  int64_t bits = nb_dtype_bits(t->dtype);
  if (bits != 8 && bits != 16 && bits != 32 && bits != 64)
    return nb_fail(NB_EINVAL, "%s: elements of 8, 16, 32 or 64 bits are moved, found %s of %lld bits", what,
                   nb_dtype_name(t->dtype), (long long)bits);
  *bytes = bits / 8;
  return NB_OK;
}

/* Checks a tile [r,c] against the columns [col0, col0+r) of a whole [c,n]. */
static int check_strip(const nb_tensor *tile, const nb_tensor *whole, int64_t col0, int64_t *bytes,
                       const char *what) {
  NB_TRY(nb_expect(tile, what, whole->dtype, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(whole, what, -1, 2, NB_SHAPE(tile->shape[1], -1)));
  if (col0 < 0 || tile->shape[0] > whole->shape[1] - col0)
    return nb_fail(NB_EINVAL, "%s: columns [%lld, %lld) lie outside the %lld columns", what, (long long)col0,
                   (long long)(col0 + tile->shape[0]), (long long)whole->shape[1]);
  return element_bytes(bytes, whole, what);
}

void nb_transpose_words_alone(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld,
                              int64_t rows, int64_t cols) {
  bool fast = nb_cpu() & NB_CPU_AVX2;
  for (int64_t i = 0; i < rows; i += NB_STRIP) {
    int64_t r = NB_MIN(NB_STRIP, rows - i);
    if (fast) panel32(to + i, to_ld, from + i * from_ld, from_ld, r, cols, false);
    else transpose32(to + i, to_ld, from + i * from_ld, from_ld, r, cols);
  }
}

int nb_transpose_words(uint32_t *to, int64_t to_ld, const uint32_t *from, int64_t from_ld, int64_t rows,
                       int64_t cols) {
  return transpose(to, to_ld, from, from_ld, rows, cols, 4);
}

int nb_transpose_put(nb_tensor *whole, const nb_tensor *tile, int64_t col0) {
  int64_t bytes;
  NB_TRY(check_strip(tile, whole, col0, &bytes, "transpose"));
  return transpose((char *)whole->data + col0 * bytes, whole->shape[1], tile->data, tile->shape[1],
                   tile->shape[0], tile->shape[1], bytes);
}

int nb_transpose_get(nb_tensor *tile, const nb_tensor *whole, int64_t col0) {
  int64_t bytes;
  NB_TRY(check_strip(tile, whole, col0, &bytes, "transpose"));
  return transpose(tile->data, tile->shape[1], (const char *)whole->data + col0 * bytes, whole->shape[1],
                   tile->shape[1], tile->shape[0], bytes);
}

int nb_transpose(nb_tensor *dst, const nb_tensor *src) {
  if (src->ndim != 3) {
    if (src->ndim == 2)
      NB_TRY(nb_expect(dst, "transpose", src->dtype, 2, NB_SHAPE(src->shape[1], src->shape[0])));
    return nb_transpose_put(dst, src, 0);
  }
  int64_t e = src->shape[0], r = src->shape[1], c = src->shape[2], bytes;
  NB_TRY(nb_expect(dst, "transpose", src->dtype, 3, NB_SHAPE(e, c, r)));
  NB_TRY(element_bytes(&bytes, src, "transpose"));
  for (int64_t i = 0; i < e; i++)
    NB_TRY(transpose((char *)dst->data + i * r * c * bytes, r, (const char *)src->data + i * r * c * bytes, c,
                     r, c, bytes));
  return NB_OK;
}
