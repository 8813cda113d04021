/* cells.c - a matrix from afar: one number for each cell of a grid laid over it, of its values or of
 * their differences from another's. Threads cannot be seen in the result: a cell is one thread's. */
#include "blocks.h"
#include "dtype.h"

#include <math.h>

typedef struct grid {
  const nb_tensor *a, *b;
  const nb_blocks *blocks;
  int64_t n, k, rows, columns;
  int kind;
} grid;

typedef struct cell {
  double max_abs, squares, sum;
  int64_t count;
  bool odd;
} cell;

static bool packed(const nb_tensor *t) { return t && nb_dtype_bits(t->dtype) < 8; }

/* The first column of cell c; packed dtypes are cut on multiples of 8 columns, which begin on a byte. */
static int64_t first_column(const grid *g, int64_t c) {
  int64_t at = c * g->k / g->columns;
  return c < g->columns && (packed(g->a) || packed(g->b)) ? at & ~(int64_t)7 : at;
}

/* n <= NB_BLOCK elements from `at` on. */
static void add_block(cell *to, const grid *g, int64_t at, int64_t n) {
  _Alignas(64) double x[NB_BLOCK], y[NB_BLOCK];
  nb_load_f64(x, (const char *)g->a->data + at * nb_dtype_bits(g->a->dtype) / 8, g->a->dtype, n);
  if (g->b) nb_load_f64(y, (const char *)g->b->data + at * nb_dtype_bits(g->b->dtype) / 8, g->b->dtype, n);
  else memset(y, 0, (size_t)n * sizeof *y);
  if (g->blocks->has_odd(x, n) || (g->b && g->blocks->has_odd(y, n))) {
    to->odd = true;
    return;
  }
  nb_difference d;
  if (g->kind == NB_CELLS_MEAN) {
    for (int64_t i = 0; i < n; i++) to->sum += x[i] - y[i];
  } else {
    g->blocks->difference(&d, x, y, n);
    to->squares += d.error2;
    to->max_abs = fmax(to->max_abs, d.max_abs);
  }
  to->count += n;
}

static double value_of(const cell *c, int kind) {
  if (c->odd) return NAN;
  if (c->count == 0) return 0;
  if (kind == NB_CELLS_ABSMAX) return c->max_abs;
  return kind == NB_CELLS_MEAN ? c->sum / (double)c->count : sqrt(c->squares / (double)c->count);
}

static bool fill_row(double *out, const grid *g, int64_t r) {
  for (int64_t c = 0; c < g->columns; c++) {
    cell sums = {0};
    int64_t from = first_column(g, c), to = first_column(g, c + 1);
    for (int64_t row = r * g->n / g->rows; row < (r + 1) * g->n / g->rows; row++) {
      if (nb_stop_requested()) return false;
      for (int64_t at = from; at < to; at += NB_BLOCK)
        add_block(&sums, g, row * g->k + at, NB_MIN((int64_t)NB_BLOCK, to - at));
    }
    out[c] = value_of(&sums, g->kind);
  }
  return true;
}

int nb_cells(nb_tensor *out, const nb_tensor *a, const nb_tensor *b, int kind) {
  NB_TRY(nb_real_only(a, "cells"));
  if (b) NB_TRY(nb_real_only(b, "cells"));
  NB_TRY(nb_expect(a, "cells", -1, 2, NB_SHAPE(-1, -1)));
  if (b) NB_TRY(nb_expect(b, "cells", -1, 2, a->shape));
  NB_TRY(nb_expect(out, "cells: out", NB_F64, 2, NB_SHAPE(-1, -1)));
  grid g = {.a = a,
            .b = b,
            .blocks = nb_blocks_get(),
            .n = a->shape[0],
            .k = a->shape[1],
            .rows = out->shape[0],
            .columns = out->shape[1],
            .kind = kind};
  if (g.rows < 1 || g.rows > g.n || g.columns < 1 || g.columns > g.k)
    return nb_fail(NB_EINVAL, "cells: a grid of %lld by %lld over a matrix of %lld by %lld",
                   (long long)g.rows, (long long)g.columns, (long long)g.n, (long long)g.k);
  if (nb_dtype_bits(a->dtype) * g.k % 8 || (b && nb_dtype_bits(b->dtype) * g.k % 8))
    return nb_fail(NB_EUNSUPPORTED, "cells: rows of %lld elements don't end on a byte", (long long)g.k);
  bool stopped = false;
  double *to = out->data;
#pragma omp parallel for schedule(dynamic) num_threads(nb_threads()) if (g.n * g.k > 1 << 18) \
    reduction(|| \
              : stopped)
  for (int64_t r = 0; r < g.rows; r++) stopped = stopped || !fill_row(to + r * g.columns, &g, r);
  return stopped ? nb_fail_stopped() : NB_OK;
}
