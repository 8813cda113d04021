/* repack.c - Marlin's words on a device, out of GPTQ's or AWQ's there: kernels/repack.cu, launched. */
#include "device.h"
#include "kernels/repack.h"

/* The kernel counts tiles in 32 bits and looks some rounds of all warps ahead. */
enum { TILE_K = 16, TILE_N = 64, MOST_TILES = 1 << 30, BLOCKS_PER_SM = 16 };

typedef struct matrices {
  int experts, k, n, bits;
  int64_t tiles;
} matrices;

static int sizes(matrices *m, const nb_tensor *words, int bits, int awq) {
  const char *what = awq ? "marlin awq_repack" : "marlin repack";
  char text[160];
  if (bits != 4 && bits != 8) return nb_fail(NB_EINVAL, "%s: bits must be 4 or 8, found %d", what, bits);
  if ((words->dtype != NB_I32 && words->dtype != NB_U32) || (words->ndim != 2 && words->ndim != 3))
    return nb_fail(NB_EINVAL, "%s: expected i32 words of 2 or 3 dimensions, found %s", what,
                   nb_tensor_describe(words, text, sizeof text));
  int64_t e = words->ndim == 3 ? words->shape[0] : 1, rows = words->shape[words->ndim - 2],
          columns = words->shape[words->ndim - 1], pf = 32 / bits;
  if ((uintptr_t)words->data % 16) /* of a view; the kernel reads 16 bytes at once */
    return nb_fail(NB_EINVAL, "%s: the words begin %d bytes past a multiple of 16", what,
                   (int)((uintptr_t)words->data % 16));
  if (e > INT32_MAX || rows > INT32_MAX || columns > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: %s is more than a launch can count", what,
                   nb_tensor_describe(words, text, sizeof text));
  int64_t k = awq ? rows : rows * pf, n = awq ? columns * pf : columns;
  if (k % TILE_K || n % TILE_N)
    return nb_fail(NB_EINVAL, "%s: k must be a multiple of %d and n of %d, found k %lld and n %lld", what,
                   TILE_K, TILE_N, (long long)k, (long long)n);
  /* No overflow: the words' bits fit into 63. */
  m->tiles = e * (k / TILE_K) * (n / TILE_N);
  if (m->tiles > MOST_TILES || k > INT32_MAX || n > INT32_MAX)
    return nb_fail(NB_EUNSUPPORTED, "%s: %s is more than a launch can count", what,
                   nb_tensor_describe(words, text, sizeof text));
  m->experts = (int)e;
  m->k = (int)k;
  m->n = (int)n;
  m->bits = bits;
  return NB_OK;
}

/* The kernel reads where perm says: it must not say anything outside its expert. */
static int check_perm(const nb_tensor *perm, const matrices *m, int ndim) {
  NB_TRY(nb_expect(perm, "marlin repack: perm", NB_I32, ndim - 1,
                   ndim == 3 ? NB_SHAPE(m->experts, m->k) : NB_SHAPE(m->k)));
  const int32_t *p = perm->data;
  for (int64_t i = 0; i < (int64_t)m->experts * m->k; i++)
    if (p[i] < 0 || p[i] >= m->k)
      return nb_fail(NB_EFORMAT, "marlin repack: perm: %d at position %lld is outside 0..%d", p[i],
                     (long long)i, m->k - 1);
  return NB_OK;
}

static int launch(int number, const matrices *m, nb_tensor *out, const nb_tensor *words,
                  const nb_tensor *perm, int awq) {
  nb_device_info info;
  NB_TRY(nb_device_get(&info, number));
  int shared = (int)(awq ? nb_repack_awq_shared(m->bits) : nb_repack_gptq_shared(m->bits, perm != NULL));
  int fit = NB_MAX(1, NB_MIN((int)BLOCKS_PER_SM, info.shared_bytes / (shared + 1024)));
  int64_t grid = NB_MIN(NB_CEIL(m->tiles, NB_REPACK_WARPS), (int64_t)NB_MAX(info.multiprocessors, 1) * fit);
  nb_launch at = {{(int32_t)grid, 1, 1}, {NB_REPACK_WARPS * 32, 1, 1}, shared};
  const void *from = words->data, *order = perm ? perm->data : NULL, *to = out->data;
  int experts = m->experts, k = m->k, n = m->n, bits = m->bits;
  void *gptq_arguments[] = {&from, &order, &to, &experts, &k, &n, &bits};
  void *awq_arguments[] = {&from, &to, &experts, &k, &n, &bits};
  return awq ? nb_device_launch(number, "nb_repack_awq", &at, awq_arguments)
             : nb_device_launch(number, "nb_repack_gptq", &at, gptq_arguments);
}

int nb_device_marlin_repack(nb_tensor *out, const nb_tensor *words, const nb_tensor *perm, int bits,
                            int awq) {
  matrices m = {0};
  nb_tensor made, order = {0};
  memset(out, 0, sizeof *out);
  if (!words->device)
    return nb_fail(NB_EINVAL, "marlin repack: the words lie in the computer's memory, expected on a device");
  if (perm && awq)
    return nb_fail(NB_EINVAL, "marlin awq_repack: AWQ knows no activation order, found a perm");
  NB_TRY(sizes(&m, words, bits, awq));
  if (perm) NB_TRY(check_perm(perm, &m, words->ndim));
  nb_cuda_device *d;
  NB_TRY(nb_cuda_use(&d, words->device));
  int64_t k16 = m.k / TILE_K, width = (int64_t)m.n * bits / 2;
  NB_TRY(nb_cuda_tensor(&made, d, NB_I32, words->ndim,
                        words->ndim == 3 ? NB_SHAPE(m.experts, k16, width) : NB_SHAPE(k16, width)));
  int rc = perm ? nb_tensor_to(&order, perm, words->device) : NB_OK;
  if (rc == NB_OK && m.tiles) rc = launch(words->device, &m, &made, words, perm ? &order : NULL, awq);
  nb_tensor_release(&order); /* the driver waits for the kernel before it gives memory away */
  if (rc < 0) nb_tensor_release(&made);
  else *out = made;
  return rc;
}
