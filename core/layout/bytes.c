/* bytes.c - weights that files keep in bytes: two e2m1 codes in one (NVFP4, MXFP4: the even
 * column in the low nibble), and signed integers of up to 8 bits, one in each. */
#include "layout.h"

/* ---- two 4-bit codes a byte ------------------------------------------------------ */

static const uint64_t low_nibbles = 0x000f000f000f000fu;

static uint64_t load64(const void *p, size_t bytes) {
  uint64_t v = 0;
  memcpy(&v, p, bytes);
  return v;
}

/* Eight codes to four bytes, in the low half. */
static uint64_t pack8(uint64_t codes) {
  uint64_t b = (codes & low_nibbles) | ((codes >> 8 & low_nibbles) << 4);
  b = (b | b >> 8) & 0x0000ffff0000ffffu;
  return (b | b >> 16) & 0xffffffffu;
}

static uint64_t unpack8(uint64_t bytes) {
  bytes = (bytes | bytes << 16) & 0x0000ffff0000ffffu;
  bytes = (bytes | bytes << 8) & 0x00ff00ff00ff00ffu;
  return (bytes & low_nibbles) | ((bytes >> 4 & low_nibbles) << 8);
}

/* The bits of all codes, to see whether one is too large. */
static uint64_t pack_row(uint8_t *bytes, const uint8_t *codes, int64_t k) {
  uint64_t seen = 0;
  for (int64_t i = 0; i < k; i += 8) {
    size_t count = (size_t)NB_MIN(8, k - i);
    uint64_t c = load64(codes + i, count), b = pack8(c);
    seen |= c;
    memcpy(bytes + i / 2, &b, (count + 1) / 2);
  }
  return seen;
}

static void unpack_row(uint8_t *codes, const uint8_t *bytes, int64_t k) {
  for (int64_t i = 0; i < k; i += 8) {
    size_t count = (size_t)NB_MIN(8, k - i);
    uint64_t c = unpack8(load64(bytes + i / 2, (count + 1) / 2));
    memcpy(codes + i, &c, count);
  }
}

static int check(const nb_tensor *bytes, const nb_tensor *codes, int64_t width, int dtype, int64_t n0,
                 const char *what) {
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(bytes, what, dtype, 2, NB_SHAPE(-1, width)));
  return nb_expect_rows(what, n0, codes->shape[0], bytes->shape[0], 1);
}

int nb_fp4_pack(nb_tensor *bytes, const nb_tensor *codes, int64_t n0) {
  int64_t k = codes->ndim == 2 ? codes->shape[1] : 0, width = NB_CEIL(k, 2);
  NB_TRY(check(bytes, codes, width, NB_U8, n0, "fp4 pack"));
  uint64_t seen = 0;
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (nb_tensor_numel(codes) > 1 << 18) \
    reduction(| \
              : seen, stopped)
  for (int64_t r = 0; r < codes->shape[0]; r++) {
    if (nb_stop_requested()) stopped = 1;
    else seen |= pack_row((uint8_t *)bytes->data + (n0 + r) * width, (const uint8_t *)codes->data + r * k, k);
  }
  if (stopped) return nb_fail_stopped();
  return seen & 0xf0f0f0f0f0f0f0f0u ? nb_codes_check(codes, 4, "fp4 pack") : NB_OK;
}

int nb_fp4_unpack(nb_tensor *codes, const nb_tensor *bytes, int64_t n0) {
  int64_t k = codes->ndim == 2 ? codes->shape[1] : 0, width = NB_CEIL(k, 2);
  NB_TRY(check(bytes, codes, width, NB_U8, n0, "fp4 unpack"));
  int stopped = 0;
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (nb_tensor_numel(codes) > 1 << 18) \
    reduction(| \
              : stopped)
  for (int64_t r = 0; r < codes->shape[0]; r++) {
    if (nb_stop_requested()) stopped = 1;
    else unpack_row((uint8_t *)codes->data + r * k, (const uint8_t *)bytes->data + (n0 + r) * width, k);
  }
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- signed integers ---------------------------------------------------------------- */

int nb_int8_pack(nb_tensor *bytes, const nb_tensor *codes, int bits, int64_t n0) {
  NB_TRY(nb_expect_bits("int8 pack", bits, 2, 8));
  int64_t k = codes->ndim == 2 ? codes->shape[1] : 0;
  NB_TRY(check(bytes, codes, k, NB_I8, n0, "int8 pack"));
  NB_TRY(nb_codes_check(codes, bits, "int8 pack"));
  int8_t *out = (int8_t *)bytes->data + n0 * k;
  const uint8_t *in = codes->data;
  int half = 1 << (bits - 1);
  int64_t numel = nb_tensor_numel(codes);
  for (int64_t i = 0; i < numel; i++) out[i] = (int8_t)(in[i] - half);
  return NB_OK;
}

int nb_int8_unpack(nb_tensor *codes, const nb_tensor *bytes, int bits, int64_t n0, const char *name) {
  NB_TRY(nb_expect_bits("int8 unpack", bits, 2, 8));
  int64_t k = codes->ndim == 2 ? codes->shape[1] : 0, numel = nb_tensor_numel(codes);
  NB_TRY(check(bytes, codes, k, NB_I8, n0, "int8 unpack"));
  const int8_t *in = (const int8_t *)bytes->data + n0 * k;
  uint8_t *out = codes->data;
  int half = 1 << (bits - 1), seen = 0;
  for (int64_t i = 0; i < numel; i++) {
    out[i] = (uint8_t)(in[i] + half);
    seen |= in[i] + half;
  }
  if (!(seen & ~(2 * half - 1))) return NB_OK;
  for (int64_t i = 0; i < numel; i++)
    if (in[i] < -half || in[i] >= half)
      return nb_fail(NB_EFORMAT, "%s: the weight in row %lld, column %lld is %d; %d bits hold %d to %d", name,
                     (long long)(n0 + i / k), (long long)(i % k), in[i], bits, -half, half - 1);
  return NB_OK;
}
