/* gptq.c - GPTQ's packing: qweight I32 [ceil(k*b/32), n] along k, qzeros
 * I32 [G, ceil(n*b/32)] along n, both dense LSB-first streams (FORMATS 3, MRL-10).
 *
 * v1 files hold zero-points minus one. That is done field by field, mod 2^b: the
 * packed-word subtraction of 0x11111111 borrows from the neighbour when a field is 0. */
#include "layout.h"

static int check_bits(const char *what, int bits) {
  if (bits == 2 || bits == 3 || bits == 4 || bits == 8) return NB_OK;
  return nb_fail(
      NB_EUNSUPPORTED,
      "%s: GPTQ packs 2, 3, 4 or 8 bits, found %d (5 to 7 exist only as GPTQModel's planar gptq_p)", what,
      bits);
}

static int weight_plane(nb_plane *p, const nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0,
                        const char *what) {
  NB_TRY(check_bits(what, bits));
  NB_TRY(nb_expect(codes, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t r = codes->shape[0], k = codes->shape[1];
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(nb_plane_width(k, bits, false), -1)));
  int64_t n = words->shape[1];
  NB_TRY(nb_expect_rows(what, n0, r, n, 1));
  *p = (nb_plane){.words = (uint32_t *)words->data + n0,
                  .codes = codes->data,
                  .bits = bits,
                  .total = k,
                  .count = k,
                  .streams = r,
                  .word_step = n,
                  .word_stream = 1,
                  .code_step = 1,
                  .code_stream = k};
  return NB_OK;
}

int nb_gptq_pack(nb_tensor *words, const nb_tensor *codes, int bits, int64_t n0) {
  nb_plane p;
  NB_TRY(weight_plane(&p, words, codes, bits, n0, "gptq pack"));
  return nb_plane_pack(&p, codes, "gptq pack");
}

int nb_gptq_unpack(nb_tensor *codes, const nb_tensor *words, int bits, int64_t n0) {
  nb_plane p;
  NB_TRY(weight_plane(&p, words, codes, bits, n0, "gptq unpack"));
  return nb_plane_unpack(&p);
}

static int zeros_plane(nb_plane *p, const nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0,
                       int64_t n, int minus_one, const char *what) {
  NB_TRY(check_bits(what, bits));
  NB_TRY(nb_expect(zeros, what, NB_U8, 2, NB_SHAPE(-1, -1)));
  int64_t r = zeros->shape[0], groups = zeros->shape[1], width = nb_plane_width(n, bits, false);
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(groups, width)));
  NB_TRY(nb_expect_rows(what, n0, r, n, 8));
  *p = (nb_plane){.words = words->data,
                  .codes = zeros->data,
                  .bits = bits,
                  .minus_one = minus_one != 0,
                  .total = n,
                  .first = n0,
                  .count = r,
                  .streams = groups,
                  .word_step = 1,
                  .word_stream = width,
                  .code_step = groups,
                  .code_stream = 1};
  return NB_OK;
}

int nb_gptq_pack_zeros(nb_tensor *words, const nb_tensor *zeros, int bits, int64_t n0, int64_t n,
                       int minus_one) {
  nb_plane p;
  NB_TRY(zeros_plane(&p, words, zeros, bits, n0, n, minus_one, "gptq pack_zeros"));
  return nb_plane_pack(&p, zeros, "gptq pack_zeros");
}

int nb_gptq_unpack_zeros(nb_tensor *zeros, const nb_tensor *words, int bits, int64_t n0, int64_t n,
                         int minus_one) {
  nb_plane p;
  NB_TRY(zeros_plane(&p, words, zeros, bits, n0, n, minus_one, "gptq unpack_zeros"));
  return nb_plane_unpack(&p);
}
