/* switch.h - from one stack to another and back. On x86-64 that is a dozen instructions; elsewhere the C library's,
 * which ask the kernel about signals each time. */
#ifndef NB_EMU_SWITCH_H
#define NB_EMU_SWITCH_H
#include <cstddef>
#include <cstdint>

#ifdef __x86_64__
/* Where a stack was left. */
struct emu_stack {
  void *top;
};

/* What a called function keeps for its caller is kept on the stack that is left. */
extern "C" void emu_switch_stacks(void **left, void *taken);
#define EMU_SWITCH_STACKS \
  asm(".text\n.hidden emu_switch_stacks\n.globl emu_switch_stacks\n.type emu_switch_stacks, @function\n" \
      "emu_switch_stacks:\n" \
      "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n" \
      "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n" \
      "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n" \
      ".size emu_switch_stacks, . - emu_switch_stacks\n");

inline void emu_switch(emu_stack &left, emu_stack &taken) { emu_switch_stacks(&left.top, taken.top); }

/* A new stack, on which entry begins as if it had been called. */
inline void emu_begin(emu_stack &s, char *memory, size_t bytes, void (*entry)()) {
  void **top = (void **)(((uintptr_t)memory + bytes) / 16 * 16);
  *--top = nullptr; /* whom it would return to */
  *--top = (void *)entry;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  s.top = top;
}
#else
#include <ucontext.h>

#define EMU_SWITCH_STACKS
typedef ucontext_t emu_stack;
inline void emu_switch(emu_stack &left, emu_stack &taken) { swapcontext(&left, &taken); }
inline void emu_begin(emu_stack &s, char *memory, size_t bytes, void (*entry)()) {
  getcontext(&s);
  s.uc_stack.ss_sp = memory;
  s.uc_stack.ss_size = bytes;
  s.uc_link = nullptr;
  makecontext(&s, entry, 0);
}
#endif
#endif
