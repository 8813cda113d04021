/* driver.h - the CUDA driver as cuda/ uses it: a table of its functions, filled at run time, so that
 * nibble builds, links and starts where there is neither a driver nor a toolkit. */
#ifndef NB_CUDA_DRIVER_H
#define NB_CUDA_DRIVER_H

#include "base.h"

typedef uint64_t nb_cuda_ptr; /* an address on a device: CUdeviceptr */

/* Every function taken from the driver: name and parameters. All give a CUresult, 0 where all is well. */
#define NB_CUDA_FUNCTIONS(X) \
  X(cuInit, (unsigned flags)) \
  X(cuDriverGetVersion, (int *version)) \
  X(cuDeviceGetCount, (int *count)) \
  X(cuDeviceGet, (int *device, int ordinal)) \
  X(cuDeviceGetName, (char *name, int bytes, int device)) \
  X(cuDeviceGetAttribute, (int *value, int attribute, int device)) \
  X(cuDeviceTotalMem_v2, (size_t * bytes, int device)) \
  X(cuDevicePrimaryCtxRetain, (void **context, int device)) \
  X(cuCtxSetCurrent, (void *context)) \
  X(cuCtxSynchronize, (void)) \
  X(cuMemGetInfo_v2, (size_t * free, size_t * total)) \
  X(cuMemAlloc_v2, (nb_cuda_ptr * at, size_t bytes)) \
  X(cuMemFree_v2, (nb_cuda_ptr at)) \
  X(cuMemcpyHtoDAsync_v2, (nb_cuda_ptr to, const void *from, size_t bytes, void *stream)) \
  X(cuMemcpyDtoHAsync_v2, (void *to, nb_cuda_ptr from, size_t bytes, void *stream)) \
  X(cuMemcpyDtoDAsync_v2, (nb_cuda_ptr to, nb_cuda_ptr from, size_t bytes, void *stream)) \
  X(cuMemsetD8Async, (nb_cuda_ptr at, unsigned char value, size_t bytes, void *stream)) \
  X(cuModuleLoadData, (void **module, const void *image)) \
  X(cuModuleGetFunction, (void **function, void *module, const char *name)) \
  X(cuFuncSetAttribute, (void *function, int attribute, int value)) \
  X(cuLaunchKernel, \
    (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
     unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **extra)) \
  X(cuStreamCreate, (void **stream, unsigned flags)) \
  X(cuStreamDestroy_v2, (void *stream)) \
  X(cuStreamSynchronize, (void *stream)) \
  X(cuStreamWaitEvent, (void *stream, void *event, unsigned flags)) \
  X(cuEventCreate, (void **event, unsigned flags)) \
  X(cuEventDestroy_v2, (void *event)) \
  X(cuEventRecord, (void *event, void *stream)) \
  X(cuEventSynchronize, (void *event)) \
  X(cuEventElapsedTime, (float *ms, void *from, void *to)) \
  X(cuStreamBeginCapture_v2, (void *stream, int mode)) \
  X(cuStreamEndCapture, (void *stream, void **graph)) \
  X(cuGraphLaunch, (void *exec, void *stream)) \
  X(cuGraphDestroy, (void *graph)) \
  X(cuGraphExecDestroy, (void *exec)) \
  X(cuGetErrorName, (int code, const char **name)) \
  X(cuGetErrorString, (int code, const char **text))

/* Functions that younger drivers alone have; NULL: not here, which who uses them tells. */
#define NB_CUDA_YOUNGER_FUNCTIONS(X) \
  X(cuGraphInstantiateWithFlags, (void **exec, void *graph, unsigned long long flags)) /* 11.4 */

/* CUresult codes and attributes that nibble looks at, as the driver numbers them. */
enum { CUDA_OUT_OF_MEMORY = 2, CUDA_NO_DEVICE = 100, CUDA_NO_BINARY = 209, CUDA_NOT_FOUND = 500 };
enum {
  CUDA_MULTIPROCESSORS = 16,
  CUDA_SM_MAJOR = 75,
  CUDA_SM_MINOR = 76,
  CUDA_SHARED_BYTES_OPTIN = 97, /* of a device: shared memory that a block may ask for */
  CUDA_FUNCTION_SHARED_BYTES = 8
};

#define NB_CUDA_MEMBER(name, parameters) int(*name) parameters;
typedef struct nb_cuda_driver {
  NB_CUDA_FUNCTIONS(NB_CUDA_MEMBER)
  NB_CUDA_YOUNGER_FUNCTIONS(NB_CUDA_MEMBER)
  int version, count; /* 13000: CUDA 13.0; devices that it lists */
  bool stand_in;      /* the emulator's, which brings its own kernels */
} nb_cuda_driver;

/* The driver, opened by the first call: libcuda.so.1, or what NB_CUDA_DRIVER names. NULL leaves the sentence
 * (NB_EUNSUPPORTED), every time the same one. Any thread. */
const nb_cuda_driver *nb_cuda_driver_open(void);
/* "CUDA_ERROR_OUT_OF_MEMORY (2), out of memory" into out. */
const char *nb_cuda_reason(const nb_cuda_driver *cu, int code, char *out, size_t bytes);

#endif
