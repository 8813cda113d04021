/* direct.c - AWQ, GPTQ and compressed-tensors 4-bit words straight into one another
 * (FORMATS 10), without codes between: turning 8x8 blocks of nibbles.
 *
 *   AWQ    [k, n/8]    word (k,c): eight columns of one k, interleaved
 *   GPTQ   [k/8, n]    word (r,n): eight k of one column
 *   CT     [n, k/8]    the same words as GPTQ's, transposed */
#include "simd.h"

/* One matrix between AWQ words and words along k: (r, n) at along[r*r_ld + n*n_ld]. */
typedef struct pair {
  uint32_t *awq, *along;
  int64_t k, n, r_ld, n_ld;
  bool to_awq, fast, stream;
} pair;

/* ---- one block: k 8r .. 8r+count, columns 8c .. 8c+7 ---------------------------- */

static void block_from_awq(const pair *x, int64_t r, int64_t c) {
  uint32_t w[8] = {0};
  int64_t count = NB_MIN(8, x->k - 8 * r), ld = x->n / 8;
  for (int64_t i = 0; i < count; i++) {
    uint32_t v = x->awq[(8 * r + i) * ld + c];
    for (int u = 0; u < 8; u++) w[nb_awq_order4[u]] |= (v >> 4 * u & 15) << 4 * i;
  }
  for (int j = 0; j < 8; j++) x->along[r * x->r_ld + (8 * c + j) * x->n_ld] = w[j];
}

static void block_to_awq(const pair *x, int64_t r, int64_t c) {
  uint32_t w[8];
  int64_t count = NB_MIN(8, x->k - 8 * r), ld = x->n / 8;
  for (int u = 0; u < 8; u++) w[u] = x->along[r * x->r_ld + (8 * c + nb_awq_order4[u]) * x->n_ld];
  for (int64_t i = 0; i < count; i++) {
    uint32_t v = 0;
    for (int u = 0; u < 8; u++) v |= (w[u] >> 4 * i & 15) << 4 * u;
    x->awq[(8 * r + i) * ld + c] = v;
  }
}

static void blocks(const pair *x, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  for (int64_t r = r0; r < r1; r++)
    for (int64_t c = c0; c < c1; c++) {
      if (x->to_awq) block_to_awq(x, r, c);
      else block_from_awq(x, r, c);
    }
}

/* ---- a rectangle: what vectors can do, then its edges --------------------------- */

static void fast_rectangle(const pair *x, int64_t r0, int64_t rows, int64_t c0, int64_t words) {
  int64_t ld = x->n / 8;
  uint32_t *awq = x->awq + 8 * r0 * ld + c0, *along = x->along + r0 * x->r_ld + 8 * c0 * x->n_ld;
  if (x->r_ld == 1) {
    if (x->to_awq) nb_ct_to_awq4_avx2(awq, ld, along, x->n_ld, rows, words, x->stream);
    else nb_awq4_to_ct_avx2(along, x->n_ld, awq, ld, rows, words, x->stream);
    return;
  }
  for (int64_t r = 0; r < rows; r++) {
    if (x->to_awq) nb_gptq_to_awq4_rows_avx2(awq + 8 * r * ld, ld, along + r * x->r_ld, words);
    else nb_awq4_to_gptq_row_avx2(along + r * x->r_ld, awq + 8 * r * ld, ld, words);
  }
}

static void rectangle(const pair *x, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  int64_t r_fast = r0, c_fast = c0; /* from here on block by block */
  if (x->fast) {
    int64_t whole = NB_MIN(r1, x->k / 8) - r0,
            r_unit = x->r_ld != 1 ? 1
                     : x->to_awq  ? 16
                                  : 8,
            c_unit = x->r_ld == 1 && !x->to_awq ? 16 : 8;
    r_fast = r0 + whole / r_unit * r_unit;
    c_fast = c0 + (c1 - c0) / c_unit * c_unit;
    if (r_fast > r0 && c_fast > c0) fast_rectangle(x, r0, r_fast - r0, c0, c_fast - c0);
    else r_fast = r0;
  }
  blocks(x, r0, r_fast, c_fast, c1);
  blocks(x, r_fast, r1, c0, c1);
}

/* A streamed run is NB_STRIP words of a row of the result; the other way many
 * strips follow one another, each asking for the next one's lines. */
static int run(const pair *x) {
  enum { LONG = 1024 };
  int64_t rows = NB_CEIL(x->k, 8), words = x->n / 8;
  int64_t dr = x->to_awq ? LONG : NB_STRIP, dc = x->to_awq ? NB_STRIP : LONG;
  int stopped = 0;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (rows * words > 1 << 10)
  for (int64_t r = 0; r < rows; r += dr)
    for (int64_t c = 0; c < words; c += dc) {
      if (nb_stop_requested()) stopped = 1;
      else rectangle(x, r, NB_MIN(r + dr, rows), c, NB_MIN(c + dc, words));
    }
  return stopped ? nb_fail_stopped() : NB_OK;
}

/* ---- the six ways ---------------------------------------------------------------- */

/* ct: words along k are [n, k/8], else [k/8, n]. */
static int between(const nb_tensor *awq, const nb_tensor *along, bool ct, bool to_awq, const char *what) {
  NB_TRY(nb_expect_words(awq, what, 2, NB_SHAPE(-1, -1)));
  int64_t k = awq->shape[0], n = 8 * awq->shape[1], rows = NB_CEIL(k, 8);
  NB_TRY(nb_expect_words(along, what, 2, ct ? NB_SHAPE(n, rows) : NB_SHAPE(rows, n)));
  pair x = {.awq = awq->data,
            .along = along->data,
            .k = k,
            .n = n,
            .to_awq = to_awq,
            .r_ld = ct ? 1 : n,
            .n_ld = ct ? rows : 1,
            .fast = nb_cpu() & NB_CPU_AVX2};
  int64_t bytes = k * n / 2;
  x.stream =
      to_awq ? nb_layout_streams(x.awq, n / 8, bytes) : nb_layout_streams(x.along, ct ? rows : n, bytes);
  return run(&x);
}

int nb_awq_to_ct(nb_tensor *out, const nb_tensor *awq) { return between(awq, out, true, false, "awq to ct"); }
int nb_ct_to_awq(nb_tensor *out, const nb_tensor *ct) { return between(out, ct, true, true, "ct to awq"); }
int nb_awq_to_gptq(nb_tensor *out, const nb_tensor *awq) {
  return between(awq, out, false, false, "awq to gptq");
}
int nb_gptq_to_awq(nb_tensor *out, const nb_tensor *gptq) {
  return between(out, gptq, false, true, "gptq to awq");
}

static int transposed(nb_tensor *out, const nb_tensor *words, const char *what) {
  NB_TRY(nb_expect_words(words, what, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(out, what, words->dtype, 2, NB_SHAPE(words->shape[1], words->shape[0])));
  return nb_transpose(out, words);
}

int nb_gptq_to_ct(nb_tensor *out, const nb_tensor *gptq) { return transposed(out, gptq, "gptq to ct"); }
int nb_ct_to_gptq(nb_tensor *out, const nb_tensor *ct) { return transposed(out, ct, "ct to gptq"); }
