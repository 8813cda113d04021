/* product_routes.cuh - a product's arguments, and where its rows of x and y lie and whose weight multiplies them, by one
 * of two policies, which the other product_*.cuh ask.
 *
 *   plain    m rows of x and y one below the other, one weight; gridDim.y shares the rows
 *   experts  pairs of a token and one of its experts, in blocks of one expert each, as nb_device_moe_align lists them:
 *            pair p is row p of y, and row p / top of x; weights lie one expert behind the other */
#ifndef NB_PRODUCT_ROUTES_CUH
#define NB_PRODUCT_ROUTES_CUH
#include "../ptx.cuh"

namespace product {

/* Of experts: places sorted [most * block], blocks' owners [most], total [1]: places in use; weights [pairs], of
 * y, globals [experts], of the product, and skip [experts], not 0: leave its blocks alone; each of them or null. */
struct routes {
  global<const int> sorted, owners, total, skip;
  global<const float> weights, globals;
  int block, most, top, experts;
};

/* A launch's arguments (product.cu). m: rows of y. */
struct job {
  global<const uint4> x, words, scales, zeros;
  global<const uint32_t> bias;
  global<const float> row_scale;
  global<uint32_t> y;
  global<float4> parts;
  global<int> arrived;
  int m, n, k, group, outputs;
  float factor;
  routes to;          /* of experts only */
  bool whole = false; /* of product_a8.cuh: 16-bit scales are whole numbers */
};

struct plain {
  static constexpr bool EXPERTS = false;
  static NB_DEVICE int blocks(const job &) { return 1; }
  static NB_DEVICE int owner(const job &, int) { return 0; }
  static NB_DEVICE int row(const job &j, int, int r) { return r < j.m ? r : -1; }
  static NB_DEVICE int source(const job &, int row) { return row; }
  static NB_DEVICE float weight(const job &, int) { return 1; }
  static NB_DEVICE float global_scale(const job &, int) { return 1; }
};

struct experts {
  static constexpr bool EXPERTS = true;
  /* Blocks of pairs in use. */
  static NB_DEVICE int blocks(const job &j) {
    const int used = j.to.total[0] / j.to.block;
    return used < j.to.most ? used : j.to.most;
  }
  /* Whose block it is; -1: nobody's here. */
  static NB_DEVICE int owner(const job &j, int block) {
    const int e = j.to.owners[block];
    return e >= 0 && e < j.to.experts && !(j.to.skip && j.to.skip[e]) ? e : -1;
  }
  /* The row of y in row r of a block, and of x that it comes from; -1: none, and then the block's next ones are none
   * either. */
  static NB_DEVICE int row(const job &j, int block, int r) {
    if (r >= j.to.block) return -1;
    const int pair = j.to.sorted[(int64_t)block * j.to.block + r];
    return pair >= 0 && pair < j.m ? pair : -1;
  }
  static NB_DEVICE int source(const job &j, int row) { return row / j.to.top; }
  static NB_DEVICE float weight(const job &j, int row) { return j.to.weights ? j.to.weights[row] : 1; }
  static NB_DEVICE float global_scale(const job &j, int expert) {
    return j.to.globals ? j.to.globals[expert] : 1;
  }
};

} // namespace product
#endif
