/* registry.cpp - the kernels by name, for who launches them. */
#include <cstring>

#include "registry.h"

/* Filled before main by the kernels' own files, in no order. */
static const emu_registered *first;

emu_registered::emu_registered(const emu_kernel &k) : kernel(k), next(first) { first = this; }

const emu_kernel *emu_find(const char *name) {
  for (const emu_registered *k = first; k; k = k->next)
    if (strcmp(k->kernel.name, name) == 0) return &k->kernel;
  return nullptr;
}
