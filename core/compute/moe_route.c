/* moe_route.c - which experts a token goes to: the best of its scores, among all experts
 * or first among groups of them, with the correction that balances their load. */
#include "moe.h"
#include "vector.h"

#include <math.h>

enum { MAX_EXPERTS = NB_MOE_ROUTE_EXPERTS };

/* The index of the greatest of n scores that is not taken yet; the lowest wins a tie. */
static int64_t best(const float *p, const uint8_t *taken, int64_t n) {
  int64_t at = -1;
  for (int64_t i = 0; i < n; i++)
    if (!taken[i] && (at < 0 || p[i] > p[at])) at = i;
  return at;
}

/* A group's score: its best expert's, or with a correction the sum of its best two. */
static float group_score(const float *p, int64_t n, bool corrected) {
  float first = -INFINITY, second = -INFINITY;
  for (int64_t i = 0; i < n; i++) {
    if (p[i] > first) {
      second = first;
      first = p[i];
    } else if (p[i] > second) second = p[i];
  }
  return corrected && n > 1 ? first + second : first;
}

/* Takes the experts of all but the best groups out of the choice. */
static void keep_groups(uint8_t *taken, const float *choice, int64_t e, const nb_moe_router *o,
                        bool corrected) {
  float score[MAX_EXPERTS];
  uint8_t kept[MAX_EXPERTS] = {0};
  int64_t size = e / o->groups;
  for (int64_t g = 0; g < o->groups; g++) score[g] = group_score(choice + g * size, size, corrected);
  for (int64_t i = 0; i < o->top_groups; i++) kept[best(score, kept, o->groups)] = 1;
  for (int64_t g = 0; g < o->groups; g++)
    if (!kept[g]) memset(taken + g * size, 1, (size_t)size);
}

static void route_row(int32_t *id, float *w, int64_t top, const float *logits, int64_t e, const float *bias,
                      const nb_moe_router *o, const nb_vector *v) {
  float p[MAX_EXPERTS], corrected[MAX_EXPERTS], total = 0.0f;
  uint8_t taken[MAX_EXPERTS];
  memcpy(p, logits, (size_t)e * sizeof *p);
  memset(taken, 0, (size_t)e);
  (o->scoring == NB_ROUTE_SIGMOID ? v->sigmoid : v->softmax)(p, e);
  const float *choice = p;
  if (bias) {
    for (int64_t i = 0; i < e; i++) corrected[i] = p[i] + bias[i];
    choice = corrected;
  }
  if (o->groups > 0) keep_groups(taken, choice, e, o, bias != NULL);
  for (int64_t t = 0; t < top; t++) {
    int64_t at = best(choice, taken, e);
    taken[at] = 1;
    id[t] = (int32_t)at;
    w[t] = p[at];
    total += p[at];
  }
  for (int64_t t = 0; o->normalize && t < top; t++) w[t] /= total;
  for (int64_t t = 0; o->scale != 1.0f && t < top; t++) w[t] *= o->scale;
}

static int check(int64_t e, int64_t top, const nb_moe_router *o) {
  if (e < 1 || e > MAX_EXPERTS || top < 1 || top > e)
    return nb_fail(NB_EINVAL, "moe route: the top %lld of %lld experts, expected 1 <= top <= experts <= %d",
                   (long long)top, (long long)e, MAX_EXPERTS);
  if (o->scoring != NB_ROUTE_SOFTMAX && o->scoring != NB_ROUTE_SIGMOID)
    return nb_fail(NB_EINVAL, "moe route: unknown scoring %d", o->scoring);
  if (o->groups == 0) return NB_OK;
  if (o->groups < 1 || e % o->groups)
    return nb_fail(NB_EINVAL, "moe route: %lld groups do not divide %lld experts", (long long)o->groups,
                   (long long)e);
  if (o->top_groups < 1 || o->top_groups > o->groups)
    return nb_fail(NB_EINVAL, "moe route: the top %lld of %lld groups, expected 1 to all of them",
                   (long long)o->top_groups, (long long)o->groups);
  if (top > o->top_groups * (e / o->groups))
    return nb_fail(NB_EINVAL, "moe route: the top %lld experts of %lld groups of %lld", (long long)top,
                   (long long)o->top_groups, (long long)(e / o->groups));
  return NB_OK;
}

int nb_moe_route_check(const nb_tensor *experts, const nb_tensor *weights, const nb_tensor *logits,
                       const nb_tensor *bias, const nb_moe_router *o) {
  NB_TRY(nb_expect(logits, "moe route: logits", NB_F32, 2, NB_SHAPE(-1, -1)));
  NB_TRY(nb_expect(experts, "moe route: experts", NB_I32, 2, NB_SHAPE(logits->shape[0], -1)));
  int64_t m = logits->shape[0], e = logits->shape[1], top = experts->shape[1];
  NB_TRY(nb_expect(weights, "moe route: weights", NB_F32, 2, NB_SHAPE(m, top)));
  if (bias) NB_TRY(nb_expect(bias, "moe route: score correction bias", NB_F32, 1, NB_SHAPE(e)));
  return check(e, top, o);
}

int nb_moe_route(nb_tensor *experts, nb_tensor *weights, const nb_tensor *logits, const nb_tensor *bias,
                 const nb_moe_router *o) {
  NB_TRY(nb_moe_route_check(experts, weights, logits, bias, o));
  int64_t m = logits->shape[0], e = logits->shape[1], top = experts->shape[1];
  const nb_vector *v = nb_vector_here();
#pragma omp parallel for schedule(static) num_threads(nb_threads()) if (m > 64)
  for (int64_t row = 0; row < m; row++)
    route_row((int32_t *)experts->data + row * top, (float *)weights->data + row * top, top,
              (const float *)logits->data + row * e, e, bias ? bias->data : NULL, o, v);
  return NB_OK;
}
