/* marlin.c - Marlin's weight layout, out of GPTQ-like or AWQ words and back
 * (SYSTEMS 2.4, MRL-30 to MRL-35). 4 and 8 bits; 16-bit and 8-bit activations;
 * one matrix or [E,...] experts.
 *
 * A matrix [k,n] is cut into tiles of 1024 codes, tiles row-major; each becomes
 * 32*bits words in a row, in the order in which the 32 lanes of a warp read them.
 *
 *                    16-bit activations            8-bit activations
 *   tile             16 k x 64 n                   32 k x 32 n
 *   lane i, word m   4 bits: i = m/4, j = m%4      4 bits: i = m/4, j = m/2%2, h = m%2
 *                    8 bits: i = m/8, j = m/2%4,   8 bits: i = m/8, j = m/4%2, h = m/2%2,
 *                            h = m%2                       x = m%2
 *   column           16j + i/4 + 8h                16j + i/4 + 8h
 *
 *   rows of lane i   2(i%4) + {0, 1, 8, 9}         4(i%4) + {0..3} and +16
 *   (4 bits, 16-bit: slots 0..7 hold rows 0 8 0 8 1 9 1 9 and h = 0 0 1 1 0 0 1 1)
 */
#include "simd.h"

/* ---- the tile's index table, by formula ------------------------------------- */

/* The code in slot u of word m: k and n inside the tile. */
static void slot_source(int *k, int *n, int m, int u, int bits, bool a8) {
  static const int r4[4] = {0, 1, 8, 9};
  int lane, j, h;
  if (!a8 && bits == 4) {
    int t = nb_awq_order4[u];
    lane = m / 4, j = m % 4, h = t / 4;
    *k = 2 * (lane % 4) + r4[t % 4];
  } else if (!a8) {
    int t = nb_awq_order8[u];
    lane = m / 8, j = m / 2 % 4, h = m % 2;
    *k = 2 * (lane % 4) + r4[t];
  } else if (bits == 4) {
    int r = u / 2 + 4 * (u % 2);
    lane = m / 4, j = m / 2 % 2, h = m % 2;
    *k = 4 * (lane % 4) + r % 4 + 16 * (r / 4);
  } else {
    lane = m / 8, j = m / 4 % 2, h = m / 2 % 2;
    *k = 4 * (lane % 4) + u + 16 * (m % 2);
  }
  *n = 16 * j + lane / 4 + 8 * h;
}

void nb_marlin_tile_init(nb_marlin_tile *t, int bits, bool a8) {
  int pf = 32 / bits, k, n;
  t->k = a8 ? 32 : 16;
  t->n = a8 ? 32 : 64;
  t->bits = bits;
  for (int m = 0; m < 32 * bits; m++)
    for (int u = 0; u < pf; u++) {
      slot_source(&k, &n, m, u, bits, a8);
      t->at[m * pf + u] = (uint16_t)(k * t->n + n);
    }
}

int nb_marlin_weight_perm(nb_tensor *perm, int bits, int a8) {
  NB_TRY(nb_expect(perm, "marlin weight_perm", NB_I32, 1, NB_SHAPE(NB_MARLIN_TILE_CODES)));
  if (bits != 4 && bits != 8)
    return nb_fail(NB_EINVAL, "marlin weight_perm: bits must be 4 or 8, found %d", bits);
  nb_marlin_tile t;
  nb_marlin_tile_init(&t, bits, a8 != 0);
  for (int i = 0; i < NB_MARLIN_TILE_CODES; i++) {
    int k = t.at[i] / t.n, n = t.at[i] % t.n;
    ((int32_t *)perm->data)[i] = 16 * t.k * (n / 16) + 16 * k + n % 16;
  }
  return NB_OK;
}

/* ---- one tile ---------------------------------------------------------------- */

/* Codes of the tile at (k0, n0), row-major, out of the source words. */
static void load_std(uint8_t *codes, const nb_marlin_matrix *x, int64_t k0, int64_t n0) {
  int bits = x->tile->bits, pf = 32 / bits, tn = x->tile->n;
  uint32_t mask = (1u << bits) - 1;
  for (int k = 0; k < x->tile->k; k++) {
    int64_t row = x->perm ? x->perm[k0 + k] : k0 + k;
    const uint32_t *w = x->source + row / pf * x->ld + n0;
    int shift = (int)(row % pf) * bits;
    for (int n = 0; n < tn; n++) codes[k * tn + n] = (uint8_t)(w[n] >> shift & mask);
  }
}

static void load_awq(uint8_t *codes, const nb_marlin_matrix *x, int64_t k0, int64_t n0) {
  int bits = x->tile->bits, pf = 32 / bits, tn = x->tile->n;
  const uint8_t *order = bits == 4 ? nb_awq_order4 : nb_awq_order8;
  uint32_t mask = (1u << bits) - 1;
  for (int k = 0; k < x->tile->k; k++) {
    const uint32_t *w = x->source + (k0 + k) * x->ld + n0 / pf;
    for (int c = 0; c < tn / pf; c++)
      for (int u = 0; u < pf; u++) codes[k * tn + c * pf + order[u]] = (uint8_t)(w[c] >> (u * bits) & mask);
  }
}

static void store_std(const nb_marlin_matrix *x, const uint8_t *codes, int64_t k0, int64_t n0) {
  int bits = x->tile->bits, pf = 32 / bits, tn = x->tile->n;
  uint32_t mask = (1u << bits) - 1;
  for (int k = 0; k < x->tile->k; k++) {
    int64_t row = x->perm ? x->perm[k0 + k] : k0 + k;
    uint32_t *w = x->source + row / pf * x->ld + n0;
    int shift = (int)(row % pf) * bits;
    for (int n = 0; n < tn; n++) w[n] = (w[n] & ~(mask << shift)) | (uint32_t)codes[k * tn + n] << shift;
  }
}

static void pack_tile(uint32_t *words, const uint8_t *codes, const nb_marlin_tile *t) {
  int pf = 32 / t->bits;
  for (int m = 0; m < 32 * t->bits; m++) {
    uint32_t w = 0;
    for (int u = 0; u < pf; u++) w |= (uint32_t)codes[t->at[m * pf + u]] << (u * t->bits);
    words[m] = w;
  }
}

static void unpack_tile(uint8_t *codes, const uint32_t *words, const nb_marlin_tile *t) {
  int pf = 32 / t->bits;
  uint32_t mask = (1u << t->bits) - 1;
  for (int m = 0; m < 32 * t->bits; m++)
    for (int u = 0; u < pf; u++) codes[t->at[m * pf + u]] = (uint8_t)(words[m] >> (u * t->bits) & mask);
}

/* Tile row kt: k0 .. k0 + tile.k, all n. */
static void pack_tile_row(const nb_marlin_matrix *x, int64_t kt) {
  uint8_t codes[NB_MARLIN_TILE_CODES];
  int64_t tiles = x->n / x->tile->n, words = 32 * x->tile->bits;
  for (int64_t nt = 0; nt < tiles; nt++) {
    if (x->order == NB_MARLIN_AWQ) load_awq(codes, x, kt * x->tile->k, nt * x->tile->n);
    else load_std(codes, x, kt * x->tile->k, nt * x->tile->n);
    pack_tile(x->marlin + (kt * tiles + nt) * words, codes, x->tile);
  }
}

static void fast_tile_row(const nb_marlin_matrix *x, int64_t kt) {
  nb_marlin_tile_row_avx2(x, kt, nb_layout_streams(x->marlin, 8, x->k * x->n * x->tile->bits / 8));
}

static void unpack_tile_row(const nb_marlin_matrix *x, int64_t kt) {
  uint8_t codes[NB_MARLIN_TILE_CODES];
  int64_t tiles = x->n / x->tile->n, words = 32 * x->tile->bits;
  for (int64_t nt = 0; nt < tiles; nt++) {
    unpack_tile(codes, x->marlin + (kt * tiles + nt) * words, x->tile);
    store_std(x, codes, kt * x->tile->k, nt * x->tile->n);
  }
}

/* ---- checks ------------------------------------------------------------------ */

int nb_marlin_sizes_of(nb_marlin_sizes *s, const nb_tensor *source, int order, int bits, int a8,
                       const char *what) {
  if (bits != 4 && bits != 8) return nb_fail(NB_EINVAL, "%s: bits must be 4 or 8, found %d", what, bits);
  int d = source->ndim;
  if (d != 2 && d != 3) return nb_expect_words(source, what, 2, NB_SHAPE(-1, -1));
  NB_TRY(nb_expect_words(source, what, d, NB_SHAPE(-1, -1, -1)));
  int pf = 32 / bits;
  s->experts = d == 3 ? source->shape[0] : 1;
  s->k = source->shape[d - 2] * (order == NB_MARLIN_AWQ ? 1 : pf);
  s->n = source->shape[d - 1] * (order == NB_MARLIN_AWQ ? pf : 1);
  nb_marlin_tile_init(&s->tile, bits, a8 != 0);
  if (s->k % s->tile.k)
    return nb_fail(NB_EINVAL, "%s: K = %lld is not a multiple of the tile's %d rows (%d-bit activations)",
                   what, (long long)s->k, s->tile.k, a8 ? 8 : 16);
  if (s->n % s->tile.n)
    return nb_fail(NB_EINVAL, "%s: N = %lld is not a multiple of the tile's %d columns (%d-bit activations)",
                   what, (long long)s->n, s->tile.n, a8 ? 8 : 16);
  return NB_OK;
}

void nb_marlin_shape(int64_t shape[3], const nb_marlin_sizes *s, int ndim) {
  shape[0] = s->experts;
  shape[ndim - 2] = s->k / 16;
  shape[ndim - 1] = s->n * s->tile.bits / 2;
}

static int check_sizes(nb_marlin_sizes *s, const nb_tensor *source, const nb_tensor *marlin, int order,
                       int bits, int a8, const char *what) {
  int64_t shape[3];
  NB_TRY(nb_marlin_sizes_of(s, source, order, bits, a8, what));
  nb_marlin_shape(shape, s, source->ndim);
  return nb_expect_words(marlin, what, source->ndim, shape);
}

int nb_marlin_perm_of(const int32_t **rows, const nb_tensor *perm, const nb_marlin_sizes *s, int ndim, int a8,
                      const char *what) {
  *rows = NULL;
  if (!perm || nb_tensor_numel(perm) == 0) return NB_OK;
  if (a8)
    return nb_fail(NB_EINVAL, "%s: an activation order (perm) cannot be combined with 8-bit activations",
                   what);
  NB_TRY(nb_expect(perm, what, NB_I32, ndim - 1, ndim == 3 ? NB_SHAPE(s->experts, s->k) : NB_SHAPE(s->k)));
  uint8_t *seen = nb_alloc(s->k, 1);
  if (!seen) return NB_ENOMEM;
  const int32_t *p = perm->data;
  for (int64_t i = 0; i < s->experts * s->k; i++) {
    if (i % s->k == 0) memset(seen, 0, (size_t)s->k);
    if (p[i] < 0 || p[i] >= s->k || seen[p[i]]++) {
      bool outside = p[i] < 0 || p[i] >= s->k;
      free(seen);
      return nb_fail(NB_EINVAL, "%s: perm is no permutation of 0..%lld: %d at position %lld %s", what,
                     (long long)s->k - 1, p[i], (long long)i, outside ? "lies outside" : "occurs twice");
    }
  }
  free(seen);
  *rows = p;
  return NB_OK;
}

/* ---- jobs -------------------------------------------------------------------- */

typedef void tile_row_fn(const nb_marlin_matrix *x, int64_t kt);

static int run(const nb_marlin_sizes *s, const nb_marlin_matrix *first, tile_row_fn *tile_row,
               int64_t rows_per_job) {
  int64_t jobs = NB_CEIL(s->k / s->tile.k, rows_per_job), words = s->k * s->n * s->tile.bits / 32;
  int stopped = 0;
#pragma omp parallel for collapse(2) schedule(static) num_threads(nb_threads()) \
    reduction(| \
              : stopped) if (s->experts * s->k * s->n > 1 << 16)
  for (int64_t e = 0; e < s->experts; e++)
    for (int64_t j = 0; j < jobs; j++) {
      if (nb_stop_requested()) {
        stopped = 1;
        continue;
      }
      nb_marlin_matrix x = *first;
      x.source += e * words;
      x.marlin += e * words;
      if (x.perm) x.perm += e * s->k;
      for (int64_t kt = j * rows_per_job; kt < NB_MIN((j + 1) * rows_per_job, s->k / s->tile.k); kt++)
        tile_row(&x, kt);
    }
  return stopped ? nb_fail_stopped() : NB_OK;
}

static nb_marlin_matrix matrix_of(const nb_marlin_sizes *s, const nb_tensor *source, const nb_tensor *marlin,
                                  const int32_t *perm, int order) {
  return (nb_marlin_matrix){.tile = &s->tile,
                            .source = source->data,
                            .marlin = marlin->data,
                            .perm = perm,
                            .k = s->k,
                            .n = s->n,
                            .ld = order == NB_MARLIN_AWQ ? s->n * s->tile.bits / 32 : s->n,
                            .order = order};
}

int nb_marlin_repack(nb_tensor *out, const nb_tensor *words, const nb_tensor *perm, int bits, int a8) {
  nb_marlin_sizes s;
  const int32_t *rows;
  NB_TRY(check_sizes(&s, words, out, NB_MARLIN_STD, bits, a8, "marlin repack"));
  NB_TRY(nb_marlin_perm_of(&rows, perm, &s, words->ndim, a8, "marlin repack"));
  nb_marlin_matrix x = matrix_of(&s, words, out, rows, NB_MARLIN_STD);
  return run(&s, &x, nb_cpu() & NB_CPU_AVX2 ? fast_tile_row : pack_tile_row, 1);
}

int nb_marlin_awq_repack(nb_tensor *out, const nb_tensor *words, int bits, int a8) {
  nb_marlin_sizes s;
  NB_TRY(check_sizes(&s, words, out, NB_MARLIN_AWQ, bits, a8, "marlin awq_repack"));
  nb_marlin_matrix x = matrix_of(&s, words, out, NULL, NB_MARLIN_AWQ);
  return run(&s, &x, nb_cpu() & NB_CPU_AVX2 ? fast_tile_row : pack_tile_row, 1);
}

int nb_marlin_unpack(nb_tensor *words, const nb_tensor *marlin, const nb_tensor *perm, int bits, int a8) {
  nb_marlin_sizes s;
  const int32_t *rows;
  NB_TRY(check_sizes(&s, words, marlin, NB_MARLIN_STD, bits, a8, "marlin unpack"));
  NB_TRY(nb_marlin_perm_of(&rows, perm, &s, words->ndim, a8, "marlin unpack"));
  nb_marlin_matrix x = matrix_of(&s, words, marlin, rows, NB_MARLIN_STD);
  /* With a perm, tile rows write slots of the same words: one job for the whole matrix. */
  return run(&s, &x, unpack_tile_row, rows ? NB_MAX(s.k / s.tile.k, 1) : 1);
}

/* ---- where the words lie ------------------------------------------------------ */

/* A row of tiles takes the bytes that its source rows had: those are copied to a buffer
 * of the cache, rows a little apart from a power of two, and written back as tiles. */
typedef struct here {
  nb_marlin_matrix matrix;
  const uint32_t *zeros;
  int64_t rows, width, ld, per_zero; /* source words of a tile row; rows of words to one of zero-points */
  bool fold;
  tile_row_fn *tile_row;
} here;

static void tile_row_here(const here *h, int64_t kt, uint32_t *buf) {
  nb_marlin_matrix x = h->matrix;
  const uint32_t *from = x.source + kt * h->rows * h->width;
  for (int64_t r = 0; r < h->rows; r++) {
    const uint32_t *z = h->zeros ? h->zeros + (kt * h->rows + r) / h->per_zero * h->width : NULL;
    if (h->fold) nb_marlin_fold_words(buf + r * h->ld, from + r * h->width, z, h->width);
    else memcpy(buf + r * h->ld, from + r * h->width, (size_t)h->width * sizeof *buf);
  }
  x.marlin += kt * h->rows * h->width;
  x.source = buf;
  x.ld = h->ld;
  h->tile_row(&x, 0);
}

static void cached_tile_row(const nb_marlin_matrix *x, int64_t kt) { nb_marlin_tile_row_avx2(x, kt, false); }

static int run_here(const nb_marlin_sizes *s, const here *first, int64_t groups) {
  int64_t tiles = s->k / s->tile.k, words = s->k * s->n * s->tile.bits / 32;
  int stopped = 0, no_memory = 0;
#pragma omp parallel num_threads(nb_threads()) \
    reduction(| \
              : stopped, no_memory) if (s->experts * s->k * s->n > 1 << 16)
  {
    uint32_t *buf = nb_alloc(first->rows * first->ld, sizeof *buf);
    no_memory = !buf;
#pragma omp for collapse(2) schedule(static)
    for (int64_t e = 0; e < s->experts; e++)
      for (int64_t kt = 0; kt < tiles; kt++) {
        if (nb_stop_requested()) stopped = 1;
        if (stopped || !buf) continue;
        here h = *first;
        h.matrix.source += e * words;
        h.matrix.marlin += e * words;
        if (h.zeros) h.zeros += e * groups * h.width;
        tile_row_here(&h, kt, buf);
      }
    free(buf);
  }
  if (no_memory) return nb_fail(NB_ENOMEM, "marlin repack_here: out of memory");
  return stopped ? nb_fail_stopped() : NB_OK;
}

int nb_marlin_repack_here(nb_tensor *words, const nb_tensor *zeros, int awq, int bits, int a8, int fold) {
  enum { APART = 16 };
  const char *what = "marlin repack_here";
  nb_marlin_sizes s;
  if (nb_buf_is_mapped(words->buf)) return nb_fail(NB_EINVAL, "%s: a file's memory cannot be changed", what);
  int order = awq ? NB_MARLIN_AWQ : NB_MARLIN_STD;
  nb_tensor out = *words;
  int d = words->ndim, pf = bits == 8 ? 4 : 8;
  if (d == 2 || d == 3) {
    out.shape[d - 2] = words->shape[d - 2] * (awq ? 1 : pf) / 16;
    out.shape[d - 1] = words->shape[d - 1] * 16 / (awq ? 1 : pf);
  }
  NB_TRY(check_sizes(&s, words, &out, order, bits, a8, what));
  int64_t experts, k, groups = 1;
  if (fold) NB_TRY(nb_marlin_fold_check(words, zeros, bits, &experts, &k, &groups, what));
  here h = {.matrix = matrix_of(&s, words, words, NULL, order), .fold = fold != 0};
  h.rows = awq ? s.tile.k : s.tile.k / pf;
  h.width = h.matrix.ld;
  h.ld = h.width + APART;
  h.tile_row = nb_cpu() & NB_CPU_AVX2 ? cached_tile_row : pack_tile_row;
  if (fold && zeros) h.zeros = zeros->data, h.per_zero = s.k / groups;
  return run_here(&s, &h, groups);
}
