/* product_large.c - y = x W on a device for many rows of x: W's columns become 16-bit floats, panel by panel, which
 * cuBLASLt multiplies. The floats cost 2 bytes a weight written and read, which many rows outweigh. */
#include "blas.h"

/* Bytes of a panel at most, and what it is made smaller to where memory is short; columns that it has a multiple of. */
enum { PANEL = 256 << 20, LEAST_PANEL = 1 << 20, COLUMNS = 64, BIAS_THREADS = 256 };

/* A panel and, before it, room for bias in the order of columns. */
typedef struct room {
  char *bias, *panel;
  int64_t columns;
} room;

/* As large as there is memory for; panels are alike, so that cuBLASLt is asked once or twice. */
static int find_room(room *r, nb_cuda_device *d, const nb_marlin_weight *w, int64_t outputs) {
  int64_t bias = NB_CEIL(w->n * 2, (int64_t)256) * 256, column = w->k * 2;
  int rc = NB_ENOMEM;
  for (int64_t most = PANEL; rc == NB_ENOMEM && most >= LEAST_PANEL; most /= 2) {
    int64_t fit = NB_MAX(most / column / COLUMNS, (int64_t)1) * COLUMNS, panels = NB_CEIL(outputs, fit);
    r->columns = NB_CEIL(NB_CEIL(outputs, panels), (int64_t)COLUMNS) * COLUMNS;
    rc = nb_cuda_workspace((void **)&r->bias, d, NB_CUDA_FOR_PANELS, bias + r->columns * column);
  }
  r->panel = r->bias + bias;
  return rc;
}

static int plain_bias(nb_cuda_device *d, char *to, const nb_tensor *bias, int64_t n) {
  int count = (int)n;
  nb_launch at = {{(int32_t)NB_CEIL(n, (int64_t)BIAS_THREADS), 1, 1}, {BIAS_THREADS, 1, 1}, 0};
  return nb_device_launch(d->number, "nb_plain_bias", &at, (void *[]){(void *)&bias->data, &to, &count});
}

static int multiply(const nb_cuda_marlin *m, const nb_tensor *y, const nb_tensor *x) {
  const nb_marlin_weight *w = m->w;
  int64_t outputs = y->shape[1];
  room r = {0};
  NB_TRY(find_room(&r, m->d, w, outputs));
  if (w->bias) NB_TRY(plain_bias(m->d, r.bias, w->bias, w->n));
  for (int64_t first = 0; first < outputs; first += r.columns) {
    int64_t columns = NB_MIN(r.columns, w->n - first);
    if (nb_stop_requested()) return nb_fail_stopped();
    NB_TRY(nb_cuda_marlin_panel(m, r.panel, first, columns));
    nb_cuda_product p = {.m = x->shape[0],
                         .n = NB_MIN(columns, outputs - first),
                         .k = x->shape[1],
                         .x_pitch = x->shape[1],
                         .w_pitch = columns,
                         .y_pitch = outputs,
                         .in = x->dtype,
                         .out = y->dtype,
                         .across = 1,
                         .factor = (float)(w->global / nb_cuda_marlin_unit(w)),
                         .x = x->data,
                         .w = r.panel,
                         .bias = w->bias ? r.bias + first * 2 : NULL,
                         .y = (char *)y->data + first * 2};
    NB_TRY(nb_cuda_gemm(m->d, &p));
  }
  return NB_OK;
}

int nb_cuda_marlin_large(const nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w) {
  nb_cuda_marlin m;
  if (!nb_cublaslt()) return NB_EUNSUPPORTED;
  NB_TRY(nb_cuda_marlin_begin(&m, w, x->dtype));
  int rc = multiply(&m, y, x);
  nb_cuda_marlin_end(&m);
  return rc;
}
