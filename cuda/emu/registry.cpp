/* registry.cpp - the kernels by name, for who launches them: each .cu file compiled here,
 * for the host. */
#include <cstring>
#include <utility>

#include "device.h"

#include "../kernels/permute.cu"
#include "../kernels/repack.cu"
#include "faults.cu"

namespace {
/* An argument as a launch gives it, by its address: a device pointer becomes a checked one. */
template <class A> struct argument {
  static A of(void *p) { return *(A *)p; }
};
template <class T> struct argument<global<T>> {
  static global<T> of(void *p) { return {*(T **)p, emu_region_of(*(T **)p)}; }
};

template <class... A, size_t... I> void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
  kernel(argument<A>::of(args[I])...);
}
template <class... A> void call(void (*kernel)(A...), void **args) {
  call(kernel, args, std::index_sequence_for<A...>());
}

#define KERNEL(name) \
  { \
#name, [](dim3 grid, dim3 block, size_t shared_bytes, \
              void **args) { emu_launch(#name, grid, block, shared_bytes, [args] { call(name, args); }); } \
  }

const emu_kernel kernels[] = {
    KERNEL(nb_repack_gptq),    KERNEL(nb_repack_gptq_ordered), KERNEL(nb_repack_awq),
    KERNEL(nb_permute_scales), KERNEL(nb_permute_zero_points),
    KERNEL(emu_copy_shifted),  KERNEL(emu_misaligned),
    KERNEL(emu_reverse),       KERNEL(emu_neighbour),
    KERNEL(emu_copy_async),    KERNEL(emu_divergent),
    KERNEL(emu_turns),         KERNEL(emu_strided),
};
} // namespace

const emu_kernel *emu_find(const char *name) {
  for (const emu_kernel &k : kernels)
    if (strcmp(k.name, name) == 0) return &k;
  return nullptr;
}
