/* ct.c - compressed-tensors "pack-quantized": I32 [n, ceil(k*b/32)] along k, and
 * zero-points I32 [ceil(n*b/32), G] along n (FORMATS 4).
 *
 * Writers before dense packing put floor(32/b) codes in a word; the width of the
 * words tells which (the two never agree on a k that is a multiple of 32, unless
 * b divides 32 and they are the same). */
#include "layout.h"

/* Which packing `found` words hold; fails when neither. */
static int packing_of(bool *legacy, int64_t found, int64_t total, int bits, const char *what,
                      const char *axis) {
  int64_t dense = nb_plane_width(total, bits, false), old = nb_plane_width(total, bits, true);
  *legacy = found != dense;
  if (found == dense || found == old) return NB_OK;
  if (dense == old)
    return nb_fail(NB_EINVAL, "%s: %lld codes of %d bits along %s take %lld words, found %lld", what,
                   (long long)total, bits, axis, (long long)dense, (long long)found);
  return nb_fail(
      NB_EINVAL,
      "%s: %lld codes of %d bits along %s take %lld words (or %lld in the legacy packing), found %lld", what,
      (long long)total, bits, axis, (long long)dense, (long long)old, (long long)found);
}

static int weight_plane(nb_plane *p, const nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0,
                        const char *what) {
  NB_TRY(nb_expect_bits(what, bits, 1, 8));
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(-1, -1)));
  int64_t r = codes->shape[0], k = codes->shape[1], width = words->shape[1];
  bool legacy;
  NB_TRY(packing_of(&legacy, width, k, bits, what, "k"));
  NB_TRY(nb_expect_rows(what, n0, r, words->shape[0], 1));
  *p = (nb_plane){.words = (uint32_t *)words->data + n0 * width,
                  .codes = codes->data,
                  .bits = bits,
                  .legacy = legacy,
                  .total = k,
                  .count = k,
                  .streams = r,
                  .word_step = 1,
                  .word_stream = width,
                  .code_step = 1,
                  .code_stream = k};
  return NB_OK;
}

int nb_ct_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0) {
  nb_plane p;
  NB_TRY(weight_plane(&p, words, codes, bits, n0, "ct pack"));
  return nb_plane_pack(&p, codes, "ct pack");
}

int nb_ct_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0) {
  nb_plane p;
  NB_TRY(weight_plane(&p, words, codes, bits, n0, "ct unpack"));
  return nb_plane_unpack(&p);
}

/* n: all rows of the weight, which the words' height alone does not tell. */
static int zeros_plane(nb_plane *p, const nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0,
                       int64_t n, const char *what) {
  NB_TRY(nb_expect_bits(what, bits, 1, 8));
  NB_TRY(nb_expect(zeros, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t r = zeros->shape[0], groups = zeros->shape[1];
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(-1, groups)));
  bool legacy;
  NB_TRY(packing_of(&legacy, words->shape[0], n, bits, what, "n"));
  NB_TRY(nb_expect_rows(what, n0, r, n, 8));
  *p = (nb_plane){.words = words->data,
                  .codes = zeros->data,
                  .bits = bits,
                  .legacy = legacy,
                  .total = n,
                  .first = n0,
                  .count = r,
                  .streams = groups,
                  .word_step = groups,
                  .word_stream = 1,
                  .code_step = groups,
                  .code_stream = 1};
  return NB_OK;
}

int nb_ct_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0, int64_t n) {
  nb_plane p;
  NB_TRY(zeros_plane(&p, words, zeros, bits, n0, n, "ct pack_zeros"));
  return nb_plane_pack(&p, zeros, "ct pack_zeros");
}

int nb_ct_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0, int64_t n) {
  nb_plane p;
  NB_TRY(zeros_plane(&p, words, zeros, bits, n0, n, "ct unpack_zeros"));
  return nb_plane_unpack(&p);
}
