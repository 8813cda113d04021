/* device.h - a device in use: its primary context, its kernels, and what became of it. */
#ifndef NB_CUDA_DEVICE_H
#define NB_CUDA_DEVICE_H

#include "driver.h"
#include "nibble_cuda.h"

enum { NB_CUDA_DEVICES = 64, NB_CUDA_LEAST_SM = 80 };

/* Who keeps device memory for a stream's work: nb_cuda_workspace. */
enum {
  NB_CUDA_FOR_BLAS,
  NB_CUDA_FOR_PRODUCT,
  NB_CUDA_FOR_PANELS,
  NB_CUDA_FOR_SCALES,
  NB_CUDA_FOR_FORWARD,
  NB_CUDA_USERS
};

typedef struct nb_cuda_device {
  const nb_cuda_driver *cu;
  int number;          /* as nb_tensor.device: from 1 */
  int ordinal;         /* the driver's number: from 0 */
  nb_device_info info; /* asked for once */
  void *context;       /* the primary one, which other libraries of the process share; NULL: not used yet */
  void **modules;      /* its kernels, by their files; NULL: not loaded yet (launch.c) */
  nb_graph *capture;   /* the graph that is being captured (stream.c) */
  void *blas;          /* cuBLASLt's handle; NULL: not used yet (blas.c) */
  void *workspaces[NB_CUDA_USERS]; /* the default stream's (nb_cuda_workspace); NULL: not used yet */
  char last[64];                   /* the kernel launched last: a failure shows later, in another call */
  char lost[640];                  /* not empty: the sentence of the failure after which nothing works */
} nb_cuda_device;

/* Device `number` with its context current on this thread; NB_EUNSUPPORTED without driver, device or sm_80,
 * NB_EIO once it is lost. */
int nb_cuda_use(nb_cuda_device **out, int number);
/* Leaves a sentence for a driver's code other than 0 and gives nibble's; what: what was being done. A code after
 * which no call works any more marks the device as lost. */
int nb_cuda_failed(nb_cuda_device *d, int code, const char *what, ...) NB_PRINTF(3, 4);
/* Room for out's shape on a device, undefined contents. */
int nb_cuda_tensor(nb_tensor *out, nb_cuda_device *d, int dtype, int ndim, const int64_t *shape);

/* Device memory that no tensor counts, held once; nb_cuda_room_drop lets go of it. */
int nb_cuda_room_new(void **room, nb_cuda_device *d, int64_t bytes);
nb_cuda_ptr nb_cuda_room_at(const void *room);
int64_t nb_cuda_room_bytes(const void *room);
void nb_cuda_room_drop(void *room);

/* ---- operands of device functions (operands.c) ---- */

/* t as if it lay in the computer's memory, for the CPU's checks of dtype and shape, and its device, ready for use.
 * Fails where it lies in the computer's memory, on another device than *d (NULL: any), or does not begin on a
 * multiple of 16 bytes, which kernels take at once. what: who asks. The seen tensor is not to be released. */
int nb_cuda_operand(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *t, const char *what);
/* The same on a multiple of so many bytes. */
int nb_cuda_operand_at(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *t, int64_t alignment,
                       const char *what);
/* The same for several, each on a multiple of its elements' size: seen[i] is tensors[i]; NULL is none. d may be NULL. */
int nb_cuda_operands(nb_tensor *seen, nb_cuda_device **d, const nb_tensor *const *tensors, int count,
                     const char *what);
/* nb_expect of a tensor that must lie on this device, its elements on multiples of their size. */
int nb_cuda_expect(const nb_tensor *t, const char *what, int device, int dtype, int ndim,
                   const int64_t *shape);
/* The tensor to fill: out where it is one, which must have this dtype and shape on d; a new one where out is empty
 * (all 0). Afterwards nb_cuda_finish gives it to out, or releases what was new where rc < 0; it gives rc. */
int nb_cuda_result(nb_tensor *to, const nb_tensor *out, nb_cuda_device *d, int dtype, int ndim,
                   const int64_t *shape, const char *what);
int nb_cuda_finish(nb_tensor *out, nb_tensor *to, int rc);
/* A dtype as kernels know it (kernels/numbers.h); -1: they don't. nb_cuda_is_plain: one of f32, bf16 and f16. */
int nb_cuda_kernel_dtype(int dtype);
bool nb_cuda_is_plain(int dtype);
/* Fails unless t is of those. */
int nb_cuda_expect_plain(const nb_tensor *t, const char *what);
/* Words of 32 bits on the device, 0, in which a kernel leaves what the host must know; refused while a graph is
 * captured: what then can't be. Reading them, into as many bytes, waits for the kernel. */
int nb_cuda_notes_new(nb_tensor *notes, nb_cuda_device *d, int64_t words, const char *refused);
int nb_cuda_notes_read(void *out, const nb_tensor *notes);
/* Blocks that d holds at once: so many to a processor, or as many as its shared memory has room for. */
int nb_cuda_resident(int64_t *blocks, const nb_cuda_device *d, int to_processor, int shared_bytes);

/* ---- Marlin's weights on a device (marlin_weight.c) ---- */

/* Whether kernels take a weight of this kind and size; what: who asks. Its tensors are not looked at, but the dtype of
 * scales by the second. */
int nb_cuda_marlin_kind(const nb_marlin_weight *w, const char *what);
int nb_cuda_marlin_scales(const nb_marlin_weight *w, const char *what);
/* Its size alone; k is to be a multiple of tile_k. */
int nb_cuda_marlin_sizes(const nb_marlin_weight *w, int tile_k, const char *what);
/* What its codes and its scales are: NB_CODES_* and NB_KERNEL_*. */
int nb_cuda_marlin_codes(const nb_marlin_weight *w);
int nb_cuda_marlin_scale(const nb_marlin_weight *w);

/* ---- weights in Marlin's order as floats, panel by panel (dequantize_marlin.c) ---- */

typedef struct nb_cuda_marlin {
  nb_cuda_device *d;
  const nb_marlin_weight *w;
  nb_tensor perm, g_idx; /* on d; empty without */
  int dtype;
} nb_cuda_marlin;

/* Checks the weight, as nb_device_marlin_dequantize does, which is one panel of all columns. */
int nb_cuda_marlin_begin(nb_cuda_marlin *m, const nb_marlin_weight *w, int dtype);
void nb_cuda_marlin_end(nb_cuda_marlin *m);
/* Columns from `first` on, both multiples of 64, to out [k, columns] on the device: times nb_cuda_marlin_unit what
 * products are made of. */
int nb_cuda_marlin_panel(const nb_cuda_marlin *m, void *out, int64_t first, int64_t columns);
double nb_cuda_marlin_unit(const nb_marlin_weight *w);

/* ---- streams and graphs (stream.c) ---- */

/* The driver's handle of the calling thread's current stream; NULL: the default one. */
void *nb_cuda_stream(const nb_cuda_device *d);
/* Refuses what cannot be part of a graph while one is captured on the device; what: "nothing can wait". */
int nb_cuda_no_capture(nb_cuda_device *d, const char *what);
/* Gives one hold on a room (memory.c) to the graph that is being captured; false: there is none. */
bool nb_cuda_keep(nb_cuda_device *d, void *room);
/* Device memory that the current stream keeps for one user of it, at least so many bytes, all 0 when it is made or grows:
 * gone with the stream; a graph has its own. What runs in the stream uses it in turn. */
int nb_cuda_workspace(void **at, nb_cuda_device *d, int user, int64_t bytes);

#endif
