/* driver.c - opens the CUDA driver, or says in one sentence why there is none to use. */
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

/* The first version that knows sm_80. */
enum { LEAST_VERSION = 11000 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static nb_cuda_driver driver;
static char why[512]; /* empty: the driver can be used */

const char *nb_cuda_reason(const nb_cuda_driver *cu, int code, char *out, size_t bytes) {
  const char *name = NULL, *text = NULL;
  if (cu->cuGetErrorName(code, &name) || !name) name = "an unknown error";
  if (cu->cuGetErrorString(code, &text) || !text) text = "no more is known";
  snprintf(out, bytes, "%s (%d), %s", name, code, text);
  return out;
}

#define WHY(...) ((void)snprintf(why, sizeof why, __VA_ARGS__))

static bool load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    WHY("there is no CUDA driver here: %s; install NVIDIA's driver to use a GPU", dlerror());
    return false;
  }
#define LOAD(name, parameters) \
  *(void **)&driver.name = dlsym(library, #name); \
  if (!driver.name) { \
    WHY("the CUDA driver is too old: %s has no %s; nibble needs CUDA 11.0 (driver 450) or later", path, \
        #name); \
    dlclose(library); \
    return false; \
  }
  NB_CUDA_FUNCTIONS(LOAD)
#define LOAD_IF_THERE(name, parameters) *(void **)&driver.name = dlsym(library, #name);
  NB_CUDA_YOUNGER_FUNCTIONS(LOAD_IF_THERE)
  int (*emulated)(void);
  *(void **)&emulated = dlsym(library, "nb_emulated_driver");
  driver.stand_in = emulated && emulated();
  return true;
}

/* Programs hide devices by this variable, and people forget it. */
static void why_no_device(void) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  WHY("there is no CUDA device here: the driver (CUDA %d.%d) lists none%s%s%s", driver.version / 1000,
      driver.version % 1000 / 10, visible ? ", CUDA_VISIBLE_DEVICES is \"" : "", visible ? visible : "",
      visible ? "\"" : "");
}

static void open_driver(void) {
  const char *path = getenv("NB_CUDA_DRIVER");
  char reason[256];
  if (!load(path && *path ? path : "libcuda.so.1")) return;
  /* A version that cannot be had is no reason: cuInit then says more. */
  if (!driver.cuDriverGetVersion(&driver.version) && driver.version < LEAST_VERSION) {
    WHY("the CUDA driver is too old: it is for CUDA %d.%d, nibble needs 11.0 (driver 450) or later",
        driver.version / 1000, driver.version % 1000 / 10);
    return;
  }
  int code = driver.cuInit(0);
  if (code == CUDA_NO_DEVICE) {
    why_no_device();
  } else if (code) {
    WHY("the CUDA driver is here, but does not start: %s",
        nb_cuda_reason(&driver, code, reason, sizeof reason));
  } else if ((code = driver.cuDeviceGetCount(&driver.count))) {
    WHY("the CUDA driver does not list its devices: %s",
        nb_cuda_reason(&driver, code, reason, sizeof reason));
  } else if (driver.count <= 0) {
    why_no_device();
  }
}

const nb_cuda_driver *nb_cuda_driver_open(void) {
  pthread_once(&once, open_driver);
  if (!*why) return &driver;
  nb_fail(NB_EUNSUPPORTED, "%s", why);
  return NULL;
}
