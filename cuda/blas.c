/* blas.c - products of plain floats on a device by cuBLASLt, which is opened when the first is asked for. */
#include "blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

/* Bytes of it for a stream, as NVIDIA advises for Hopper. */
enum { WORKSPACE = 32 << 20 };

/* ---- the library ------------------------------------------------------------------- */

typedef struct library {
  NB_LT_FUNCTIONS(NB_CUDA_MEMBER)
} library;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static library lt;
static size_t version;           /* 120901: 12.9.1 */
static char name[512], why[640]; /* why: empty where the library can be used */

#define WHY(...) ((void)snprintf(why, sizeof why, __VA_ARGS__))

/* Whether a file is there and has what is needed; else the reason is in `why`. */
static bool load(const char *path) {
  void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!file) {
    WHY("there is no cuBLASLt here: %s; install NVIDIA's CUDA libraries, or let NB_CUBLASLT name "
        "libcublasLt.so",
        dlerror());
    return false;
  }
#define LOAD(function, parameters) \
  *(void **)&lt.function = dlsym(file, #function); \
  if (!lt.function) { \
    WHY("%s is no cuBLASLt that nibble knows: it has no " #function, path); \
    dlclose(file); \
    return false; \
  }
  NB_LT_FUNCTIONS(LOAD)
  size_t (*get_version)(void);
  *(void **)&get_version = dlsym(file, "cublasLtGetVersion");
  version = get_version ? get_version() : 0;
  snprintf(name, sizeof name, "%s", path);
  *why = 0;
  return true;
}

/* That of the driver's CUDA version or an older one: a library younger than the driver does not start. */
static void open_library(void) {
  const char *given = getenv("NB_CUBLASLT"), *driver = getenv("NB_CUDA_DRIVER");
  const nb_cuda_driver *cu = nb_cuda_driver_open();
  if (!cu) {
    WHY("%s", nb_error());
    return;
  }
  if (given && *given) {
    load(given);
    return;
  }
  if (driver && *driver && load(driver)) return; /* the stand-in's own */
  int newest = NB_MIN(cu->version / 1000, 13);
  char path[64], first[sizeof why] = "";
  for (int major = newest; major >= 11; major--) {
    snprintf(path, sizeof path, "libcublasLt.so.%d", major);
    if (load(path)) return;
    if (!*first) memcpy(first, why, sizeof first);
  }
  if (load("/usr/local/cuda/lib64/libcublasLt.so")) return; /* where the toolkit lies, not always searched */
  memcpy(why, first, sizeof first);
}

static int open_once(void) {
  pthread_once(&once, open_library);
  return *why ? nb_fail(NB_EUNSUPPORTED, "%s", why) : NB_OK;
}

const char *nb_cublaslt(void) { return open_once() == NB_OK ? name : NULL; }

static int failed(nb_cuda_device *d, int status, const char *doing) {
  static const struct {
    int status;
    const char *name;
  } known[] = {{1, "NOT_INITIALIZED"}, {3, "ALLOC_FAILED"},   {7, "INVALID_VALUE"},
               {8, "ARCH_MISMATCH"},   {11, "MAPPING_ERROR"}, {13, "EXECUTION_FAILED"},
               {14, "INTERNAL_ERROR"}, {15, "NOT_SUPPORTED"}, {16, "LICENSE_ERROR"}};
  const char *text = "an unknown status";
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i].status == status) text = known[i].name;
  /* It may be that a kernel failed before: the driver then says so. */
  int code = status == LT_EXECUTION_FAILED && !d->capture ? d->cu->cuCtxSynchronize() : 0;
  if (code) return nb_cuda_failed(d, code, "cuBLASLt: %s", doing);
  return nb_fail(status == LT_NOT_SUPPORTED ? NB_EUNSUPPORTED : NB_EIO,
                 "cuda:%d: cuBLASLt (%s) fails: %s: CUBLAS_STATUS_%s (%d)", d->ordinal, name, doing, text,
                 status);
}

/* The library's handle on a device, made by its first product there. */
static int handle_of(void **handle, nb_cuda_device *d) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&lock);
  int status = d->blas ? 0 : lt.cublasLtCreate(&d->blas);
  if (status) d->blas = NULL;
  *handle = d->blas;
  pthread_mutex_unlock(&lock);
  return status ? failed(d, status, "starting it") : NB_OK;
}

/* ---- one product ------------------------------------------------------------------- */

/* The library counts columns first: to it y is y^T [n, m] = w^T x^T, x and y are transposed as they lie, and so is w where
 * it lies across; else it is told to. */
typedef struct call {
  void *what, *w, *x, *y, *preference;
} call;

static int type_of(int dtype) {
  switch (dtype) {
  case NB_F32: return LT_F32;
  case NB_F16: return LT_F16;
  case NB_F8_E4M3: return LT_E4M3;
  case NB_U8: return LT_E2M1;
  default: return LT_BF16;
  }
}

/* What an address is a multiple of: a power of two, 256 at most. */
static uint32_t alignment(const void *p) {
  uintptr_t at = (uintptr_t)p | 256;
  return (uint32_t)(at & -at);
}

static void end(call *c) {
  if (c->preference) lt.cublasLtMatmulPreferenceDestroy(c->preference);
  if (c->y) lt.cublasLtMatrixLayoutDestroy(c->y);
  if (c->x) lt.cublasLtMatrixLayoutDestroy(c->x);
  if (c->w) lt.cublasLtMatrixLayoutDestroy(c->w);
  if (c->what) lt.cublasLtMatmulDescDestroy(c->what);
}

/* Its scales; their modes are only told where they are not the one that all versions have. A status. */
static int set_scales(call *c, const nb_cuda_product *p) {
  const struct {
    const void *at;
    int pointer, mode_of, mode;
  } of[] = {{p->w_scales, LT_SCALE_A, LT_MODE_A, p->w_mode}, {p->x_scales, LT_SCALE_B, LT_MODE_B, p->x_mode}};
  int status = 0;
  for (int i = 0; i < 2 && !status; i++) {
    status = lt.cublasLtMatmulDescSetAttribute(c->what, of[i].pointer, &of[i].at, sizeof of[i].at);
    if (!status && of[i].mode != LT_OF_ALL)
      status = lt.cublasLtMatmulDescSetAttribute(c->what, of[i].mode_of, &of[i].mode, sizeof of[i].mode);
  }
  return status;
}

/* A status of the library's. */
static int begin(call *c, const nb_cuda_product *p) {
  int transposed = p->across ? 0 : LT_TRANSPOSED, epilogue = LT_EPILOGUE_BIAS, status;
  if ((status = lt.cublasLtMatmulDescCreate(&c->what, LT_COMPUTE_F32, LT_F32))) return status;
  status = lt.cublasLtMatmulDescSetAttribute(c->what, LT_OP_A, &transposed, sizeof transposed);
  if (p->bias && !status)
    status = lt.cublasLtMatmulDescSetAttribute(c->what, LT_EPILOGUE, &epilogue, sizeof epilogue);
  if (p->bias && !status)
    status = lt.cublasLtMatmulDescSetAttribute(c->what, LT_BIAS, &p->bias, sizeof p->bias);
  if (p->w_scales && !status) status = set_scales(c, p);
  uint64_t m = (uint64_t)p->m, n = (uint64_t)p->n, k = (uint64_t)p->k;
  uint64_t down = p->across ? n : k, along = p->across ? k : n;
  if (!status) status = lt.cublasLtMatrixLayoutCreate(&c->w, type_of(p->in), down, along, p->w_pitch);
  if (!status) status = lt.cublasLtMatrixLayoutCreate(&c->x, type_of(p->in), k, m, p->x_pitch);
  if (!status) status = lt.cublasLtMatrixLayoutCreate(&c->y, type_of(p->out), n, m, p->y_pitch);
  return status;
}

/* Asks for a way, with what is known of the addresses: w, x, y, y again. */
static int ask(nb_lt_choice *choice, void *handle, call *c, const uint32_t *alignments, uint64_t workspace) {
  int found = 0, status = lt.cublasLtMatmulPreferenceCreate(&c->preference);
  if (!status)
    status = lt.cublasLtMatmulPreferenceSetAttribute(c->preference, LT_MOST_WORKSPACE, &workspace,
                                                     sizeof workspace);
  for (int i = 0; i < 4 && !status; i++)
    status = lt.cublasLtMatmulPreferenceSetAttribute(c->preference, LT_ALIGNMENT_A + i,
                                                     &alignments[NB_MIN(i, 2)], sizeof *alignments);
  if (!status)
    status = lt.cublasLtMatmulAlgoGetHeuristic(handle, c->what, c->w, c->x, c->y, c->y, c->preference, 1,
                                               choice, &found);
  if (!status && found > 0) status = choice->state;
  return status ? status : found > 0 ? 0 : LT_NOT_SUPPORTED;
}

/* ---- ways that were chosen ----------------------------------------------------------- */

/* Asking takes longer than a small product; what was answered is kept, for the shapes of last. */
enum { KEPT = 128 };

typedef struct shape {
  int64_t m, n, k, x_pitch, w_pitch, y_pitch;
  int32_t in, out, across, device, x_mode, w_mode;
  uint32_t bias, workspace, alignments[3], pad_; /* bias: where it begins; 0: none */
} shape;

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
  shape shape;
  nb_lt_choice choice;
} kept[KEPT];
static int kept_next;

static int choose(nb_lt_choice *choice, void *handle, nb_cuda_device *d, call *c, const nb_cuda_product *p,
                  uint32_t workspace) {
  shape s;
  memset(&s, 0, sizeof s);
  s = (shape){p->m,
              p->n,
              p->k,
              p->x_pitch,
              p->w_pitch,
              p->y_pitch,
              p->in,
              p->out,
              p->across,
              d->number,
              p->x_mode,
              p->w_mode,
              p->bias ? alignment(p->bias) : 0,
              workspace,
              {alignment(p->w), alignment(p->x), alignment(p->y)},
              0};
  pthread_mutex_lock(&kept_lock);
  for (int i = 0; i < KEPT; i++)
    if (memcmp(&kept[i].shape, &s, sizeof s) == 0) {
      *choice = kept[i].choice;
      pthread_mutex_unlock(&kept_lock);
      return 0;
    }
  pthread_mutex_unlock(&kept_lock);
  int status = ask(choice, handle, c, s.alignments, workspace);
  if (status) return status;
  pthread_mutex_lock(&kept_lock);
  kept[kept_next % KEPT].shape = s;
  kept[kept_next++ % KEPT].choice = *choice;
  pthread_mutex_unlock(&kept_lock);
  return 0;
}

int nb_cuda_gemm(nb_cuda_device *d, const nb_cuda_product *p) {
  static const float zero = 0;
  void *handle, *workspace = NULL;
  nb_lt_choice choice;
  call c = {0};
  NB_TRY(open_once());
  NB_TRY(handle_of(&handle, d));
  int rc = nb_cuda_workspace(&workspace, d, NB_CUDA_FOR_BLAS, WORKSPACE);
  if (rc < 0 && rc != NB_ENOMEM) return rc; /* without room for it there are slower ways */
  int status = begin(&c, p);
  const char *doing = "describing a product";
  if (!status) {
    doing = "choosing how to make a product";
    status = choose(&choice, handle, d, &c, p, workspace ? WORKSPACE : 0);
    if (p->w_scales && (status == LT_INVALID_VALUE || status == LT_ARCH_MISMATCH))
      status = LT_NOT_SUPPORTED; /* what a version lacks of scales has more than one name */
  }
  if (!status) {
    doing = "beginning a product";
    status = lt.cublasLtMatmul(handle, c.what, &p->factor, p->w, c.w, p->x, c.x, &zero, p->y, c.y, p->y, c.y,
                               &choice.way, workspace, choice.workspace, nb_cuda_stream(d));
  }
  end(&c);
  if (status) {
    char text[160];
    snprintf(text, sizeof text, "%s [%lldx%lld] [%lldx%lld]^T of %s into %s", doing, (long long)p->m,
             (long long)p->k, (long long)p->n, (long long)p->k, nb_dtype_name(p->in), nb_dtype_name(p->out));
    return failed(d, status, text);
  }
  snprintf(d->last, sizeof d->last, "of cuBLASLt");
  return NB_OK;
}

/* Small floats, as the library's documentation has it (cuBLAS, 3.1.4 "Narrow precision data types usage"): E4M3 with one
 * scale a tensor from sm_89 on, since 11.8; with scales of rows or of 128 on sm_90 alone, since 12.9; E2M1 with scales
 * of 16 from sm_100 on, since 12.8. */
int nb_cuda_gemm_scaled(nb_cuda_device *d, int in, int mode) {
  NB_TRY(open_once());
  const bool rows = mode == LT_OF_ROW || mode == LT_OF_128 || mode == LT_OF_128X128;
  const int sm = d->info.sm, least = in == NB_U8 ? 100 : rows ? 90 : 89;
  const size_t since = in == NB_U8 ? 120800 : rows ? 120900 : 110800;
  if (sm < least || (rows && sm != 90))
    return nb_fail(NB_EUNSUPPORTED, "cuda:%d is sm_%d: cuBLASLt multiplies %s on sm_%d%s", d->ordinal, sm,
                   in == NB_U8 ? "4-bit floats"
                   : rows      ? "FP8 with scales of rows or blocks"
                               : "FP8",
                   least, rows ? " only" : " and later");
  if (version < since)
    return nb_fail(NB_EUNSUPPORTED, "cuBLASLt (%s) is version %zu.%zu, expected %zu.%zu or later for %s",
                   name, version / 10000, version / 100 % 100, since / 10000, since / 100 % 100,
                   in == NB_U8 ? "4-bit floats" : "FP8");
  return NB_OK;
}

/* ---- gemm --------------------------------------------------------------------------- */

static int expect_float(const nb_tensor *t, const char *what) {
  if (t->dtype == NB_F32 || t->dtype == NB_F16 || t->dtype == NB_BF16) return NB_OK;
  return nb_fail(NB_EINVAL, "%s: expected f32, bf16 or f16, found %s", what, nb_dtype_name(t->dtype));
}

static int check(nb_cuda_device **d, const nb_tensor *y, const nb_tensor *x, const nb_tensor *w,
                 const nb_tensor *bias) {
  nb_tensor seen;
  NB_TRY(nb_cuda_operand(&seen, d, x, "gemm: x"));
  NB_TRY(nb_expect(&seen, "gemm: x", -1, 2, NB_SHAPE(-1, -1)));
  NB_TRY(expect_float(x, "gemm: x"));
  NB_TRY(nb_cuda_operand(&seen, d, w, "gemm: w"));
  NB_TRY(nb_expect(&seen, "gemm: w", x->dtype, 2, NB_SHAPE(-1, x->shape[1])));
  NB_TRY(nb_cuda_operand(&seen, d, y, "gemm: y"));
  NB_TRY(nb_expect(&seen, "gemm: y", y->dtype == NB_F32 ? NB_F32 : x->dtype, 2,
                   NB_SHAPE(x->shape[0], w->shape[0])));
  if (bias) NB_TRY(nb_cuda_operand(&seen, d, bias, "gemm: bias"));
  if (bias) NB_TRY(nb_expect(&seen, "gemm: bias", y->dtype, 1, NB_SHAPE(w->shape[0])));
  for (int i = 0; i < 2; i++)
    if (x->shape[i] > INT32_MAX || w->shape[i] > INT32_MAX)
      return nb_fail(NB_EUNSUPPORTED, "gemm: %lld rows or columns are more than 2^31-1",
                     (long long)NB_MAX(x->shape[i], w->shape[i]));
  return NB_OK;
}

/* No products to add: y is bias, or zero. */
static int fill(nb_cuda_device *d, const nb_tensor *y, const nb_tensor *bias) {
  nb_cuda_ptr to = (nb_cuda_ptr)(uintptr_t)y->data;
  size_t bytes = (size_t)nb_tensor_bytes(y), row = bias ? (size_t)nb_tensor_bytes(bias) : bytes;
  int code = 0;
  for (size_t at = 0; at < bytes && !code; at += row)
    code = bias ? d->cu->cuMemcpyDtoDAsync_v2(to + at, (nb_cuda_ptr)(uintptr_t)bias->data, row,
                                              nb_cuda_stream(d))
                : d->cu->cuMemsetD8Async(to, 0, bytes, nb_cuda_stream(d));
  return code ? nb_cuda_failed(d, code, "filling y") : NB_OK;
}

int nb_device_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *w, const nb_tensor *bias) {
  nb_cuda_device *d = NULL;
  NB_TRY(check(&d, y, x, w, bias));
  int64_t m = x->shape[0], n = w->shape[0], k = x->shape[1];
  if (m == 0 || n == 0) return NB_OK;
  if (k == 0) return fill(d, y, bias);
  nb_cuda_product p = {.m = m,
                       .n = n,
                       .k = k,
                       .x_pitch = k,
                       .w_pitch = k,
                       .y_pitch = n,
                       .in = x->dtype,
                       .out = y->dtype,
                       .factor = 1,
                       .x = x->data,
                       .w = w->data,
                       .bias = bias ? bias->data : NULL,
                       .y = y->data};
  return nb_cuda_gemm(d, &p);
}
