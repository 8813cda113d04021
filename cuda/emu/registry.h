/* registry.h - how a kernel gets into the emulator's list: for the sources that scripts/emu-unit writes, one for
 * each .cu file. */
#ifndef NB_EMU_REGISTRY_H
#define NB_EMU_REGISTRY_H
#include <utility>

#include "device.h"

/* An entry of the list; emu_find goes through it. */
struct emu_registered {
  emu_kernel kernel;
  const emu_registered *next;
  emu_registered(const char *name, void (*run)(dim3, dim3, size_t, void **));
};

/* An argument as a launch gives it, by its address: a device pointer becomes a checked one. */
template <class A> struct emu_argument {
  static A of(void *p) { return *(A *)p; }
};
template <class T> struct emu_argument<global<T>> {
  static global<T> of(void *p) { return {*(T **)p, emu_region_of(*(T **)p)}; }
};

template <class... A, size_t... I>
void emu_call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
  kernel(emu_argument<A>::of(args[I])...);
}
template <class... A> void emu_call(void (*kernel)(A...), void **args) {
  emu_call(kernel, args, std::index_sequence_for<A...>());
}

#define EMU_KERNEL(name) \
#name, [](dim3 grid, dim3 block, size_t shared_bytes, \
            void **args) { emu_launch(#name, grid, block, shared_bytes, [args] { emu_call(name, args); }); }
#endif
