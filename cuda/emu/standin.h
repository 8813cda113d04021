// standin.h - what the parts of the stand-in driver share: driver.cpp (devices, memory, kernels) and queue.cpp
// (streams, events, graphs: when what was asked for is done).
#ifndef NB_EMU_STANDIN_H
#define NB_EMU_STANDIN_H
#include <functional>
#include <mutex>

enum {
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_CONTEXT = 201,
  NO_DEVICE = 100,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_IMPLICIT = 906
};

extern std::mutex guard;                        // held by every function of the driver
extern thread_local int current;                // device of this thread's context, -1: none
extern int lost;                                // the code that every call gives from now on
long setting(const char *name, long otherwise); // of the environment
// The code that this call of the named function must give; 0: go on.
int begin(const char *name, bool needs_context);

// Every function begins so; EARLY: before there is a context.
#define EARLY \
  std::lock_guard<std::mutex> held(guard); \
  if (int code = begin(__func__, false)) return code
#define BEGIN \
  std::lock_guard<std::mutex> held(guard); \
  if (int code = begin(__func__, true)) return code

// Something to be done on a device: a kernel, a copy. Gives a code.
typedef std::function<int()> Work;
// Whether these bytes are device memory, and fn() with all of it open to the process.
bool on_device(const void *p, size_t bytes);
int open_memory(const std::function<void()> &fn);

// Work at the end of a stream (nullptr: the default one), done when something waits for it.
int enqueue(void *stream, Work work);
// Does what a stream, or all of the current device, has left to do. The code of what failed.
int settle(void *stream);
int settle_device();
#endif
