/* direct.c - AWQ, GPTQ and compressed-tensors 4-bit words straight into one another
 * (FORMATS 10), without codes between: turning 8x8 blocks of nibbles. Whole, or by
 * rows of the result; and the check of such rows by the way back.
 *
 *   AWQ    [k, n/8]    word (k,c): eight columns of one k, interleaved
 *   GPTQ   [k/8, n]    word (r,n): eight k of one column
 *   CT     [n, k/8]    the same words as GPTQ's, transposed */
#include "simd.h"

enum { AWQ, GPTQ, CT };

static const struct way {
  int from, to;
  const char *what;
} ways[] = {
    [NB_AWQ_TO_CT] = {AWQ, CT, "awq to ct"},       [NB_CT_TO_AWQ] = {CT, AWQ, "ct to awq"},
    [NB_AWQ_TO_GPTQ] = {AWQ, GPTQ, "awq to gptq"}, [NB_GPTQ_TO_AWQ] = {GPTQ, AWQ, "gptq to awq"},
    [NB_GPTQ_TO_CT] = {GPTQ, CT, "gptq to ct"},    [NB_CT_TO_GPTQ] = {CT, GPTQ, "ct to gptq"},
};

/* One matrix between AWQ words and words along k: (r, n) at along[r*r_ld + n*n_ld]. */
typedef struct pair {
  uint32_t *awq, *along;
  int64_t k, n, awq_ld, r_ld, n_ld;
  bool to_awq, fast, stream;
} pair;

/* ---- one block: k 8r .. 8r+count, columns 8c .. 8c+7 ---------------------------- */

static void block_from_awq(const pair *x, int64_t r, int64_t c) {
  uint32_t w[8] = {0};
  int64_t count = NB_MIN(8, x->k - 8 * r), ld = x->awq_ld;
  for (int64_t i = 0; i < count; i++) {
    uint32_t v = x->awq[(8 * r + i) * ld + c];
    for (int u = 0; u < 8; u++) w[nb_awq_order4[u]] |= (v >> 4 * u & 15) << 4 * i;
  }
  for (int j = 0; j < 8; j++) x->along[r * x->r_ld + (8 * c + j) * x->n_ld] = w[j];
}

static void block_to_awq(const pair *x, int64_t r, int64_t c) {
  uint32_t w[8];
  int64_t count = NB_MIN(8, x->k - 8 * r), ld = x->awq_ld;
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
  int64_t ld = x->awq_ld;
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

/* ---- whole, or by rows of the result -------------------------------------------- */

/* A matrix of words or a part of one, ld words from row to row. */
typedef struct matrix {
  int layout;
  uint32_t *words;
  int64_t ld;
} matrix;

/* A repack of k by n codes; where neither side is AWQ's, eight k stand for a word
 * along k, whatever its bits. */
typedef struct job {
  matrix to, from;
  int64_t k, n;
} job;

static int64_t rows_of(int layout, int64_t k, int64_t n) {
  return layout == AWQ ? k : layout == GPTQ ? NB_CEIL(k, 8) : n;
}
static int64_t words_of(int layout, int64_t k, int64_t n) {
  return layout == AWQ ? n / 8 : layout == GPTQ ? n : NB_CEIL(k, 8);
}

/* The part of m that begins at word r along k and column n. */
static matrix part_of(matrix m, int64_t r, int64_t n) {
  m.words += m.layout == AWQ ? 8 * r * m.ld + n / 8 : m.layout == GPTQ ? r * m.ld + n : n * m.ld + r;
  return m;
}

static bool only_transposes(const job *x) { return x->to.layout != AWQ && x->from.layout != AWQ; }

/* Rows and columns of words that such a job has on its source's side. */
static int64_t source_rows(const job *x) { return x->from.layout == GPTQ ? x->k / 8 : x->n; }
static int64_t source_cols(const job *x) { return x->from.layout == GPTQ ? x->n : x->k / 8; }

static pair pair_of(const job *x) {
  bool to_awq = x->to.layout == AWQ;
  matrix awq = to_awq ? x->to : x->from, along = to_awq ? x->from : x->to;
  return (pair){.awq = awq.words,
                .along = along.words,
                .k = x->k,
                .n = x->n,
                .awq_ld = awq.ld,
                .r_ld = along.layout == CT ? 1 : along.ld,
                .n_ld = along.layout == CT ? along.ld : 1,
                .to_awq = to_awq,
                .fast = nb_cpu() & NB_CPU_AVX2,
                .stream = nb_layout_streams(x->to.words, x->to.ld, x->k * x->n / 2)};
}

static int move(const job *x) {
  const matrix *to = &x->to, *from = &x->from;
  if (only_transposes(x))
    return nb_transpose_words(to->words, to->ld, from->words, from->ld, source_rows(x), source_cols(x));
  pair p = pair_of(x);
  return run(&p);
}

/* Without threads: of AWQ, at most NB_STRIP words along the result's rows. */
static void move_alone(const job *x) {
  const matrix *to = &x->to, *from = &x->from;
  if (only_transposes(x)) {
    nb_transpose_words_alone(to->words, to->ld, from->words, from->ld, source_rows(x), source_cols(x));
    return;
  }
  pair p = pair_of(x);
  rectangle(&p, 0, NB_CEIL(x->k, 8), 0, x->n / 8);
}

void nb_repack_alone(uint32_t *to, int64_t to_ld, uint32_t *from, int64_t from_ld, int way, int64_t k,
                     int64_t n) {
  const struct way *w = &ways[way];
  move_alone(&(job){.to = {w->to, to, to_ld}, .from = {w->from, from, from_ld}, .k = k, .n = n});
}

static int check_rows(const struct way *w, int64_t row0, int64_t count, int64_t rows) {
  if (row0 < 0 || count > rows - row0)
    return nb_fail(NB_EINVAL, "%s: rows [%lld, %lld) lie outside the %lld rows of the result", w->what,
                   (long long)row0, (long long)(row0 + count), (long long)rows);
  bool eights = w->to == AWQ || (w->to == CT && w->from == AWQ);
  if (eights && (row0 % 8 || (w->to == CT && count % 8)))
    return nb_fail(NB_EINVAL, "%s: rows [%lld, %lld) must begin and end on a multiple of 8", w->what,
                   (long long)row0, (long long)(row0 + count));
  return NB_OK;
}

/* out: rows row0.. of what way makes of words. */
static int job_of(job *x, const nb_tensor *out, const nb_tensor *words, int way, int64_t row0) {
  if (way < 0 || way >= (int)(sizeof ways / sizeof *ways))
    return nb_fail(NB_EINVAL, "repack: there is no way %d", way);
  const struct way *w = &ways[way];
  NB_TRY(nb_expect_words(words, w->what, 2, NB_SHAPE(-1, -1)));
  int64_t a = words->shape[0], b = words->shape[1];
  int64_t k = w->from == AWQ ? a : w->from == GPTQ ? 8 * a : 8 * b;
  int64_t n = w->from == AWQ ? 8 * b : w->from == GPTQ ? b : a;
  if (w->to == AWQ && n % 8)
    return nb_fail(NB_EINVAL, "%s: n = %lld is not a multiple of 8", w->what, (long long)n);
  NB_TRY(nb_expect_words(out, w->what, 2, NB_SHAPE(-1, words_of(w->to, k, n))));
  int64_t count = out->shape[0];
  NB_TRY(check_rows(w, row0, count, rows_of(w->to, k, n)));
  *x = (job){.to = {w->to, out->data, out->shape[1]}, .from = {w->from, words->data, b}, .k = k, .n = n};
  if (w->to == CT) {
    x->from = part_of(x->from, 0, row0);
    x->n = count;
  } else {
    int64_t r = w->to == AWQ ? row0 / 8 : row0;
    x->from = part_of(x->from, r, 0);
    x->k = w->to == AWQ ? count : NB_MIN(8 * count, k - 8 * r);
  }
  return NB_OK;
}

int nb_repack_rows(nb_tensor *out, const nb_tensor *words, int way, int64_t row0) {
  job x;
  NB_TRY(job_of(&x, out, words, way, row0));
  return move(&x);
}

/* ---- the check by the way back ---------------------------------------------------- */

enum { TILE_WORDS = 8192 };

/* Whether the tile at (r, n), k by n codes of it, goes back to the source's words. */
static bool check_tile(const job *x, int64_t r, int64_t n, int64_t tile_k, int64_t tile_n) {
  uint32_t words[TILE_WORDS] __attribute__((aligned(64)));
  matrix source = part_of(x->from, r, n);
  int64_t rows = rows_of(source.layout, tile_k, tile_n), width = words_of(source.layout, tile_k, tile_n);
  matrix back = {source.layout, words, width};
  move_alone(&(job){.to = back, .from = part_of(x->to, r, n), .k = tile_k, .n = tile_n});
  for (int64_t i = 0; i < rows; i++)
    if (memcmp(words + i * width, source.words + i * source.ld, (size_t)width * sizeof *words) != 0)
      return false;
  return true;
}

/* The same without a place for the words that come back, where the kernel can compare them itself. */
static bool compares(const job *x) {
  return x->from.layout == AWQ && x->to.layout == CT && x->k % 128 == 0 && x->n % 64 == 0 &&
         (nb_cpu() & NB_CPU_AVX2);
}

static bool compare_tile(const job *x, int64_t r, int64_t n, int64_t tile_k, int64_t tile_n) {
  matrix awq = part_of(x->from, r, n), ct = part_of(x->to, r, n);
  return nb_ct_is_awq4_avx2(awq.words, awq.ld, ct.words, ct.ld, tile_k / 8, tile_n / 8);
}

int nb_repack_check(const nb_tensor *rows, const nb_tensor *words, int way, int64_t row0) {
  job x;
  NB_TRY(job_of(&x, rows, words, way, row0));
  if (x.k % 8)
    return nb_fail(NB_EINVAL, "%s: k = %lld leaves a part of a word that the way back doesn't see",
                   ways[way].what, (long long)x.k);
  bool direct = compares(&x), same = true;
  int64_t dr = direct ? 16 * NB_STRIP : x.from.layout == CT ? NB_STRIP : 16;
  int64_t dn = direct ? 8 * NB_STRIP : TILE_WORDS / dr;
  int stopped = 0;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(nb_threads()) reduction(&& : same) \
    reduction(| : stopped) if (x.k * x.n > 8 * TILE_WORDS)
  for (int64_t r = 0; r < x.k / 8; r += dr)
    for (int64_t n = 0; n < x.n; n += dn) {
      int64_t tile_k = NB_MIN(8 * dr, x.k - 8 * r), tile_n = NB_MIN(dn, x.n - n);
      if (nb_stop_requested()) stopped = 1;
      else if (direct) same = same && compare_tile(&x, r, n, tile_k, tile_n);
      else same = same && check_tile(&x, r, n, tile_k, tile_n);
    }
  return stopped ? nb_fail_stopped() : same;
}

/* ---- the six ways, whole ------------------------------------------------------------ */

static int whole(nb_tensor *out, const nb_tensor *words, int way) {
  const struct way *w = &ways[way];
  NB_TRY(nb_expect_words(words, w->what, 2, NB_SHAPE(-1, -1)));
  int64_t a = words->shape[0], b = words->shape[1];
  if (w->to == AWQ) { /* k is the result's: as many words along it as the source has */
    NB_TRY(nb_expect_words(out, w->what, 2, NB_SHAPE(-1, -1)));
    int64_t k = out->shape[0], n = 8 * out->shape[1], rows = NB_CEIL(k, 8);
    NB_TRY(nb_expect_words(words, w->what, 2, w->from == CT ? NB_SHAPE(n, rows) : NB_SHAPE(rows, n)));
  } else {
    int64_t k = w->from == AWQ ? a : w->from == GPTQ ? 8 * a : 8 * b;
    int64_t n = w->from == AWQ ? 8 * b : w->from == GPTQ ? b : a;
    NB_TRY(nb_expect_words(out, w->what, 2, NB_SHAPE(rows_of(w->to, k, n), words_of(w->to, k, n))));
  }
  return nb_repack_rows(out, words, way, 0);
}

int nb_awq_to_ct(nb_tensor *out, const nb_tensor *awq) { return whole(out, awq, NB_AWQ_TO_CT); }
int nb_ct_to_awq(nb_tensor *out, const nb_tensor *ct) { return whole(out, ct, NB_CT_TO_AWQ); }
int nb_awq_to_gptq(nb_tensor *out, const nb_tensor *awq) { return whole(out, awq, NB_AWQ_TO_GPTQ); }
int nb_gptq_to_awq(nb_tensor *out, const nb_tensor *gptq) { return whole(out, gptq, NB_GPTQ_TO_AWQ); }
int nb_gptq_to_ct(nb_tensor *out, const nb_tensor *gptq) { return whole(out, gptq, NB_GPTQ_TO_CT); }
int nb_ct_to_gptq(nb_tensor *out, const nb_tensor *ct) { return whole(out, ct, NB_CT_TO_GPTQ); }
