/* moe_align.cu - (token, expert) pairs in the order of their experts, as core/compute/moe.c puts them: a stable counting
 * sort, so that the result is the same whatever the order of threads.
 *
 * One block does it in one launch. Each of its warps takes a run of the pairs, 32 at a time, and has its own count
 * for every expert: first to count, then, when the counts have become places, to put each pair where it belongs. Pairs
 * of one expert among the 32 find their order by a match. What limits it is the chain of these steps in one processor, one
 * for each 1024 pairs; the products that follow have far more work to each pair. Which counts 32 pairs meet is the
 * data's: beyond 32 experts some lie in one bank. */
#include "../ptx.cuh"
#include "moe_align.h"

namespace moe_align_kernels {
enum { LANES = 32 };

/* The warps' counts of each expert, and which pairs a warp has. */
struct sorter {
  const nb_moe_pairs &o;
  global<const int> ids, map;
  shared<int> counts; /* [warps, experts] */
  int warps, warp, lane;

  NB_DEVICE sorter(const nb_moe_pairs &o_, global<const int> ids_, global<const int> map_)
      : o(o_), ids(ids_), map(map_), counts(cast<int>(shared_words())), warps((int)blockDim.x / LANES),
        warp((int)threadIdx.x / LANES), lane((int)threadIdx.x % LANES) {}

  /* The expert by which pair i is sorted; -1: it is left out. */
  NB_DEVICE int expert_of(int i) const {
    const int id = ids[i];
    if ((unsigned)id >= (unsigned)o.known) return -1;
    const int e = map && !o.marked ? map[id] : id;
    return (unsigned)e < (unsigned)o.experts ? e : -1;
  }

  /* Calls put(i, e, place) for each pair of this warp in order, and counts it: the place is what the expert's count was. */
  template <class PUT> NB_DEVICE void each(PUT put) const {
    shared<int> mine = counts + warp * o.experts;
    const int run = ((o.pairs + LANES - 1) / LANES + warps - 1) / warps * LANES, from = warp * run;
    const int end = from + run < o.pairs ? from + run : o.pairs;
    int next = from + lane < end ? expert_of(from + lane) : -1;
    for (int base = from; base < end; base += LANES) {
      const int i = base + lane, e = next;
      next = i + LANES < end ? expert_of(i + LANES) : -1;
      const uint32_t same = match_any((uint32_t)e);
      const int before = count_ones(same & ((1u << lane) - 1));
      int place = 0;
      if (e >= 0) {
        place = mine[e] + before;
        put(i, e, place);
      }
      __syncwarp(); /* all have read the count */
      if (e >= 0 && before == 0) mine[e] = place + count_ones(same);
      __syncwarp();
    }
  }

  /* Counts all pairs. */
  NB_DEVICE void count() const {
    for (int i = (int)threadIdx.x; i < warps * o.experts; i += (int)blockDim.x) counts[i] = 0;
    __syncthreads();
    each([](int, int, int) {});
    __syncthreads();
  }

  /* The counts of expert e become each warp's first place, from `start` on; gives the place behind the last. */
  NB_DEVICE int places_from(int e, int start) const {
    for (int w = 0; w < warps; w++) {
      const int n = counts[w * o.experts + e];
      counts[w * o.experts + e] = start;
      start += n;
    }
    return start;
  }

  /* The counts become places, one expert behind the other, each from a multiple of `block` on; to the lane that
   * has it, begin(e, start) for each. The places in use, to all threads; the whole block comes. */
  template <class BEGIN> NB_DEVICE int places(int block, shared<int> total, BEGIN begin) const {
    if (warp == 0) {
      int start = 0;
      for (int tile = 0; tile < o.experts; tile += LANES) {
        const int e = tile + lane;
        int n = 0;
        for (int w = 0; w < warps && e < o.experts; w++) n += counts[w * o.experts + e];
        const int padded = (n + block - 1) / block * block;
        int behind = padded; /* the sum of the lanes up to this one */
        for (int d = 1; d < LANES; d *= 2) {
          const int before = (int)shuffle_from((uint32_t)behind, lane >= d ? lane - d : lane);
          if (lane >= d) behind += before;
        }
        if (e < o.experts) {
          begin(e, start + behind - padded);
          places_from(e, start + behind - padded);
        }
        start += (int)shuffle_from((uint32_t)behind, LANES - 1);
      }
      if (lane == 0) total[0] = start;
    }
    __syncthreads();
    return total[0];
  }

  /* Behind the places of expert e, once all pairs are put: the last warp's count. */
  NB_DEVICE int behind(int e) const { return counts[(warps - 1) * o.experts + e]; }
  NB_DEVICE shared<int> spare() const { return counts + warps * o.experts; }
};
} // namespace moe_align_kernels

/* nb_moe_align: pairs by expert, blocks filled up with the number of pairs; the expert of each block, and how many
 * places are in use. */
extern "C" __global__ void __launch_bounds__(NB_MOE_ALIGN_WARPS * 32, 1)
    nb_moe_align(global<const int> ids, global<const int> map, global<int> sorted, global<int> owners,
                 global<int> total, const __grid_constant__ nb_moe_pairs o) {
  const moe_align_kernels::sorter s(o, ids, map);
  const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
  s.count();
  const int used = s.places(o.block, s.spare(), [](int, int) {});
  if (thread == 0) total[0] = used;
  for (int i = used + thread; i < o.places; i += threads) sorted[i] = o.pairs;
  for (int i = used / o.block + thread; i < (o.places + o.block - 1) / o.block; i += threads) owners[i] = -1;
  s.each([&](int i, int e, int place) {
    sorted[place] = i;
    if (place % o.block) return;
    /* A block has a pair at its first place; nobody's blocks are those of an expert that is elsewhere. */
    const int owner = map && o.marked ? map[e] : e;
    owners[place / o.block] = (unsigned)owner < (unsigned)o.experts ? owner : -1;
  });
  __syncthreads();
  for (int e = thread; e < o.experts; e += threads)
    for (int place = s.behind(e); place % o.block; place++) sorted[place] = o.pairs;
}

/* nb_moe_group: tokens and weights by expert, and where each expert's begin. *outside grows to the number of pairs
 * less the first that has no expert here. */
extern "C" __global__ void __launch_bounds__(NB_MOE_ALIGN_WARPS * 32, 1)
    nb_moe_group(global<const int> ids, global<const int> map, global<const float> weights, global<int> rows,
                 global<float> row_weights, global<int> offsets, global<uint32_t> outside,
                 const __grid_constant__ nb_moe_pairs o) {
  const moe_align_kernels::sorter s(o, ids, map);
  s.count();
  const int used = s.places(1, s.spare(), [&](int e, int start) { offsets[e] = start; });
  if (threadIdx.x == 0) offsets[o.experts] = used;
  s.each([&](int i, int, int place) {
    rows[place] = i / o.top;
    row_weights[place] = weights[i];
  });
  if (outside && used < o.pairs)
    for (int i = (int)threadIdx.x; i < o.pairs; i += (int)blockDim.x)
      if (s.expert_of(i) < 0) atomic_max(outside, (uint32_t)(o.pairs - i));
}

/* nb_moe_place: each expert has `block` places of its own: the token in each, each pair's place (-1: none here, or
 * no room) and how many pairs each expert has. */
extern "C" __global__ void __launch_bounds__(NB_MOE_ALIGN_WARPS * 32, 1)
    nb_moe_place(global<const int> ids, global<const int> map, global<int> tokens, global<int> places,
                 global<int> counts, const __grid_constant__ nb_moe_pairs o) {
  const moe_align_kernels::sorter s(o, ids, map);
  const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
  s.count();
  for (int e = thread; e < o.experts; e += threads) counts[e] = s.places_from(e, e * o.block) - e * o.block;
  for (int i = thread; i < o.pairs; i += threads) places[i] = -1;
  __syncthreads();
  s.each([&](int i, int e, int place) {
    if (place >= (e + 1) * o.block) return;
    tokens[place] = i / o.top;
    places[i] = place;
  });
}
