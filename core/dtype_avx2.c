/* dtype_avx2.c - the short formats to f32 and back, eight values at a time. The
 * same bytes as dtype.c's portable functions. */
#include "dtype.h"

#include <immintrin.h>

static void load_bf16(float *out, const void *in, int64_t n) {
  const uint16_t *p = in;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + i)));
    __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + i + 8)));
    _mm256_storeu_si256((__m256i *)(out + i), _mm256_slli_epi32(a, 16));
    _mm256_storeu_si256((__m256i *)(out + i + 8), _mm256_slli_epi32(b, 16));
  }
  for (; i < n; i++) out[i] = nb_bf16_to_f32(p[i]);
}

static void load_f16(float *out, const void *in, int64_t n) {
  const uint16_t *p = in;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + i))));
  for (; i < n; i++) out[i] = nb_f16_to_f32(p[i]);
}

/* e5m2 is the upper byte of an f16. */
static void load_f8_e5m2(float *out, const void *in, int64_t n) {
  const uint8_t *p = in;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m128i h = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(p + i))), 8);
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
  }
  const float *v = nb_code_values(NB_F8_E5M2);
  for (; i < n; i++) out[i] = v[p[i]];
}

/* e4m3 in an f16's place has the value divided by 2^8; its NaN, 0x7f, becomes f16's
 * with the same mantissa. */
static void load_f8_e4m3(float *out, const void *in, int64_t n) {
  const uint8_t *p = in;
  const __m128i low = _mm_set1_epi16(0x3f80), sign = _mm_set1_epi16((short)0x8000);
  const __m128i nan = _mm_set1_epi16(0x7f80);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m128i c = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(p + i)));
    __m128i mag = _mm_and_si128(_mm_slli_epi16(c, 7), low);
    mag = _mm_blendv_epi8(mag, nan, _mm_cmpeq_epi16(mag, low));
    mag = _mm_or_si128(mag, _mm_and_si128(_mm_slli_epi16(c, 8), sign));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_cvtph_ps(mag), _mm256_set1_ps(256.0f)));
  }
  const float *v = nb_code_values(NB_F8_E4M3);
  for (; i < n; i++) out[i] = v[p[i]];
}

/* Nearest even by integer arithmetic; NaN keeps its sign and upper bits, made quiet. */
static inline __m256i round_bf16(const float *in) {
  __m256 f = _mm256_loadu_ps(in);
  __m256i u = _mm256_castps_si256(f);
  __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  __m256 nan = _mm256_cmp_ps(f, f, _CMP_UNORD_Q);
  r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(nan));
  return _mm256_srli_epi32(r, 16);
}

static void store_bf16(void *out, const float *in, int64_t n) {
  uint16_t *p = out;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) { /* the pack works per 128-bit lane: put the quarters in order */
    __m256i both = _mm256_packus_epi32(round_bf16(in + i), round_bf16(in + i + 8));
    _mm256_storeu_si256((__m256i *)(p + i), _mm256_permute4x64_epi64(both, 0xd8));
  }
  for (; i < n; i++) p[i] = nb_f32_to_bf16(in[i]);
}

static void store_f16(void *out, const float *in, int64_t n) {
  uint16_t *p = out;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; i++) p[i] = nb_f32_to_f16(in[i]);
}

/* ---- to the small floats and integers: eight codes, each in 32 bits ------------- */

typedef struct small_vectors {
  __m256i least, magic, odd, over, over_code, nan_code, sign_bit, signed_nan, fnuz;
  __m256i rebias;
  __m128i shift, sign_shift;
} small_vectors;

static inline __m256i flag(bool f) { return _mm256_set1_epi32(f ? -1 : 0); }

/* nb_f32_to_small's constants. */
static inline small_vectors small_vectors_of(const nb_small_float *s) {
  int shift = 23 - s->mbits, width = s->ebits + s->mbits;
  return (small_vectors){
      .least = _mm256_set1_epi32((128 - s->bias) << 23),
      .magic = _mm256_set1_epi32((127 + shift + 1 - s->bias) << 23),
      .odd = _mm256_set1_epi32((1 << (shift - 1)) - 1),
      .over = _mm256_set1_epi32((int)s->over - 1),
      .over_code = _mm256_set1_epi32(s->over_code),
      .nan_code = _mm256_set1_epi32(s->nan_code),
      .sign_bit = _mm256_set1_epi32(1 << width),
      .signed_nan = flag(s->signed_nan),
      .fnuz = flag(s->code_0x80_is_nan),
      .rebias = _mm256_set1_epi32((127 - s->bias) << s->mbits),
      .shift = _mm_cvtsi32_si128(shift),
      .sign_shift = _mm_cvtsi32_si128(31 - width),
  };
}

/* nb_f32_to_small of eight values, step by step. */
static inline __m256i round_small(const float *in, const small_vectors *k, bool drops_negative_zero) {
  const __m256i one = _mm256_set1_epi32(1), zero = _mm256_setzero_si256();
  __m256i u = _mm256_loadu_si256((const __m256i *)in), a = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
  __m256i sign = _mm256_and_si256(_mm256_srl_epi32(u, k->sign_shift), k->sign_bit);
  __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(k->magic));
  __m256i low = _mm256_sub_epi32(_mm256_castps_si256(sum), k->magic);
  __m256i lsb = _mm256_and_si256(_mm256_srl_epi32(a, k->shift), one);
  __m256i rounded = _mm256_srl_epi32(_mm256_add_epi32(a, _mm256_add_epi32(k->odd, lsb)), k->shift);
  __m256i code =
      _mm256_blendv_epi8(_mm256_sub_epi32(rounded, k->rebias), low, _mm256_cmpgt_epi32(k->least, a));
  __m256i over = _mm256_cmpgt_epi32(a, k->over), nan = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(0x7f800000));
  __m256i unsigned_ = _mm256_and_si256(_mm256_cmpeq_epi32(code, zero), k->fnuz);
  if (drops_negative_zero) unsigned_ = _mm256_cmpeq_epi32(a, zero);
  unsigned_ = _mm256_or_si256(unsigned_, _mm256_and_si256(over, k->fnuz));
  unsigned_ = _mm256_or_si256(unsigned_, _mm256_andnot_si256(k->signed_nan, nan));
  code = _mm256_blendv_epi8(code, k->over_code, over);
  code = _mm256_blendv_epi8(code, k->nan_code, nan);
  return _mm256_or_si256(code, _mm256_andnot_si256(unsigned_, sign));
}

/* 8 x 32 bits of codes below 256 to 8 bytes. */
static inline void put_bytes(uint8_t *p, __m256i codes) {
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
}

static inline void store_small(uint8_t *p, const float *in, int64_t n, const nb_small_float *s) {
  small_vectors k = small_vectors_of(s);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) put_bytes(p + i, round_small(in + i, &k, false));
  for (; i < n; i++) p[i] = nb_f32_to_small(in[i], s);
}
static void store_f8_e4m3(void *out, const float *in, int64_t n) {
  store_small(out, in, n, nb_small_of(NB_F8_E4M3));
}
static void store_f8_e5m2(void *out, const float *in, int64_t n) {
  store_small(out, in, n, nb_small_of(NB_F8_E5M2));
}
static void store_f8_e4m3fnuz(void *out, const float *in, int64_t n) {
  store_small(out, in, n, nb_small_of(NB_F8_E4M3FNUZ));
}
static void store_f8_e5m2fnuz(void *out, const float *in, int64_t n) {
  store_small(out, in, n, nb_small_of(NB_F8_E5M2FNUZ));
}

/* Two codes to a byte, the low nibble first: 16 codes to 8 bytes. */
static inline void put_nibbles(uint8_t *p, __m256i first, __m256i second) {
  const __m256i weights = _mm256_set1_epi16(0x1001); /* low + 16 * high of each pair of bytes */
  __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
  __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  __m128i pairs = _mm_maddubs_epi16(bytes, _mm256_castsi256_si128(weights));
  _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(pairs, pairs));
}

static void store_f4(void *out, const float *in, int64_t n) {
  const nb_small_float *s = nb_small_of(NB_F4);
  small_vectors k = small_vectors_of(s);
  uint8_t *p = out;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    put_nibbles(p + i / 2, round_small(in + i, &k, true), round_small(in + i + 8, &k, true));
  for (; i < n; i += 2) p[i / 2] = (uint8_t)(nb_f32_to_small(in[i], s) | nb_f32_to_small(in[i + 1], s) << 4);
}

/* Half to even into [lo, hi]; NaN is 0. The bounds are whole, so clamping first is the same. */
static inline __m256i round_int(const float *in, __m256 lo, __m256 hi) {
  __m256 f = _mm256_loadu_ps(in);
  f = _mm256_and_ps(f, _mm256_cmp_ps(f, f, _CMP_ORD_Q));
  f = _mm256_min_ps(_mm256_max_ps(f, lo), hi);
  return _mm256_cvtps_epi32(_mm256_round_ps(f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline void store_int8(uint8_t *p, const float *in, int64_t n, float lo, float hi) {
  const __m256i byte = _mm256_set1_epi32(0xff);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    put_bytes(p + i, _mm256_and_si256(round_int(in + i, _mm256_set1_ps(lo), _mm256_set1_ps(hi)), byte));
  for (; i < n; i++) p[i] = (uint8_t)nb_round_clamp(in[i], lo, hi);
}
static void store_i8(void *out, const float *in, int64_t n) { store_int8(out, in, n, -128, 127); }
static void store_u8(void *out, const float *in, int64_t n) { store_int8(out, in, n, 0, 255); }

static inline void store_int4(uint8_t *p, const float *in, int64_t n, float lo, float hi) {
  const __m256i nibble = _mm256_set1_epi32(15);
  const __m256 l = _mm256_set1_ps(lo), h = _mm256_set1_ps(hi);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    put_nibbles(p + i / 2, _mm256_and_si256(round_int(in + i, l, h), nibble),
                _mm256_and_si256(round_int(in + i + 8, l, h), nibble));
  for (; i < n; i += 2)
    p[i / 2] =
        (uint8_t)((nb_round_clamp(in[i], lo, hi) & 15) | (nb_round_clamp(in[i + 1], lo, hi) & 15) << 4);
}
static void store_i4(void *out, const float *in, int64_t n) { store_int4(out, in, n, -8, 7); }
static void store_u4(void *out, const float *in, int64_t n) { store_int4(out, in, n, 0, 15); }

nb_load_fn *nb_load_avx2(int dtype) {
  switch (dtype) {
  case NB_BF16: return load_bf16;
  case NB_F16: return load_f16;
  case NB_F8_E5M2: return load_f8_e5m2;
  case NB_F8_E4M3: return load_f8_e4m3;
  default: return NULL;
  }
}

nb_store_fn *nb_store_avx2(int dtype) {
  switch (dtype) {
  case NB_BF16: return store_bf16;
  case NB_F16: return store_f16;
  case NB_F8_E4M3: return store_f8_e4m3;
  case NB_F8_E5M2: return store_f8_e5m2;
  case NB_F8_E4M3FNUZ: return store_f8_e4m3fnuz;
  case NB_F8_E5M2FNUZ: return store_f8_e5m2fnuz;
  case NB_F4: return store_f4;
  case NB_I8: return store_i8;
  case NB_U8: return store_u8;
  case NB_I4: return store_i4;
  case NB_U4: return store_u4;
  default: return NULL;
  }
}
