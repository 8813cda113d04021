-- Bugs in products of many rows: panels of floats and cuBLASLt.
local LARGE, BIAS, MARLIN = "cuda/product_large.c", "cuda/kernels/product_large.cu", "cuda/kernels/dequantize_marlin.cu"
local PRODUCT = "cuda/product.c"

return {
  spec = "spec/cuda_product_large_spec.lua",
  bugs = {
    { "bias in Marlin's order", LARGE, ".bias = w->bias ? r.bias + first * 2 : NULL",
      ".bias = w->bias ? (char *)w->bias->data + first * 2 : NULL" },
    { "bias of the first panel for all", LARGE, "r.bias + first * 2", "r.bias" },
    { "bias over the panel", LARGE, "r->panel = r->bias + bias;", "r->panel = r->bias;" },
    { "bias: rows for columns", BIAS, "2 * (p / 8) + p % 2 + 8 * (p % 8 / 2)", "p / 8 + 4 * (p % 8)" },
    { "bias: the last ones left out", BIAS, "if (i < n)", "if (i < n - 1)" },
    { "the last panel as wide as the others", LARGE, ".w_pitch = columns", ".w_pitch = r.columns" },
    { "panels beside each other in y", LARGE, "(char *)y->data + first * 2", "(char *)y->data + first" },
    { "columns that y hasn't", LARGE, "NB_MIN(columns, outputs - first)", "columns" },
    { "no smaller panel where memory is short", LARGE, "most >= LEAST_PANEL", "most >= PANEL" },
    { "the first columns in every panel", MARLIN, "nt = w.job.first / TILE_COLUMNS + t % across", "nt = t % across" },
    { "a panel's rows as far apart as the weight's", MARLIN, "(to * w.job.columns + t % across", "(to * w.job.n + t % across" },
    { "fails where the kernels could go on", PRODUCT, "rc == NB_EUNSUPPORTED || rc == NB_ENOMEM ?", "rc == NB_ENOMEM ?" },
    { "an order is looked at amid a graph", PRODUCT, "(p->perm && p->d->capture)", "0" },
    { "one row too early", PRODUCT, "m > LARGE ", "m >= LARGE " },
  },
}
