/* registry.h - how a kernel gets into the emulator's list: for the sources that scripts/emu-unit writes, one for
 * each .cu file. */
#ifndef NB_EMU_REGISTRY_H
#define NB_EMU_REGISTRY_H
#include <tuple>
#include <utility>

#include "device.h"

/* An entry of the list; emu_find goes through it. */
struct emu_registered {
  emu_kernel kernel;
  const emu_registered *next;
  explicit emu_registered(const emu_kernel &k);
};

/* An argument as a launch gives it, and as the kernel takes it: a device pointer becomes a checked one. */
template <class A> struct emu_argument {
  typedef A given;
  static A of(const given &v) { return v; }
};
template <class T> struct emu_argument<global<T>> {
  typedef T *given;
  static global<T> of(T *p) { return {p, emu_region_of(p)}; }
};

template <class... A, size_t... I>
std::function<void()> emu_bind(const char *name, void (*kernel)(A...), dim3 grid, dim3 block,
                               size_t shared_bytes, void **args, std::index_sequence<I...>) {
  std::tuple<typename emu_argument<A>::given...> given{*(typename emu_argument<A>::given *)args[I]...};
  return [=] {
    emu_launch(name, grid, block, shared_bytes, [&] { kernel(emu_argument<A>::of(std::get<I>(given))...); });
  };
}
template <class... A>
std::function<void()> emu_bind(const char *name, void (*kernel)(A...), dim3 grid, dim3 block,
                               size_t shared_bytes, void **args) {
  return emu_bind(name, kernel, grid, block, shared_bytes, args, std::index_sequence_for<A...>());
}

#define EMU_KERNEL(name) \
  emu_kernel { \
#name, [](dim3 grid, dim3 block, size_t shared_bytes, \
              void **args) { return emu_bind(#name, name, grid, block, shared_bytes, args); } \
  }
#endif
