// blas.cpp - the stand-in for cuBLASLt, in the same library as the stand-in driver: what nibble asks of it (cuda/blas.h),
// no more. Layouts, alignments, workspace and the way of a product are checked as strictly as the library might, so
// that what it would refuse on a GPU, or do wrong, fails here. Sums are in float64, rounded once, then the bias.
//
// NB_EMU_FAIL=cublasLtMatmul:1:13 makes a call fail, as for the driver; NB_EMU_CUBLASLT=120800 is its version.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "standin.h"

namespace {

enum { NOT_INITIALIZED = 1, INVALID = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14, R_8F_E4M3 = 28, R_4F_E2M1 = 33 };
enum { OF_ALL = 0, OF_16 = 1, OF_ROW = 3, OF_128 = 4, OF_128X128 = 5 }; // cublasLtMatmulMatrixScale_t

struct Layout {
  int type;
  uint64_t rows, columns; // column after column
  int64_t pitch;
};
struct Matmul {
  int transposed_a = 0, transposed_b = 0, epilogue = 1;
  const void *bias = nullptr;
  const void *scales[2] = {nullptr, nullptr}; // of a, b
  int modes[2] = {OF_ALL, OF_ALL};
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256}; // the library's own
};
// What a way was chosen for; as many bytes as cublasLtMatmulAlgo_t has.
struct Way {
  uint32_t magic, sum; // of the layouts
  uint32_t alignment[4], bias_alignment;
  uint32_t workspace;
  uint64_t pad[4];
};
static_assert(sizeof(Way) == 64, "as cublasLtMatmulAlgo_t");
struct Choice {
  Way way;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
enum { MAGIC = 0x6e696262, WORKSPACE = 1 << 16 };

bool small(int type) { return type == R_8F_E4M3 || type == R_4F_E2M1; }
// Of so many elements.
size_t bytes_of(int type, uint64_t count) {
  return type == R_4F_E2M1 ? count / 2 : count * (type == R_32F ? 4 : type == R_8F_E4M3 ? 1 : 2);
}

float half_to_float(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  float v = exponent == 31 ? (mantissa ? NAN : INFINITY)
            : exponent     ? std::ldexp((float)(mantissa + 1024), exponent - 25)
                           : std::ldexp((float)mantissa, -24);
  return h & 0x8000 ? -v : v;
}

// v in 16 bits, to nearest even: `drop` low bits of the number scaled so that its steps are whole.
uint16_t float_to_half(float v) {
  uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  if (std::isnan(v)) return (uint16_t)(sign | 0x7e00);
  double a = std::fabs((double)v);
  if (a >= 65520) return (uint16_t)(sign | 0x7c00);
  int e = a > 0 ? std::max(std::ilogb(a), -14) : -14;
  double steps = std::nearbyint(std::ldexp(a, 10 - e)); // 1024 to 2048, below it subnormal
  if (steps >= 2048) steps = 1024, e++;
  if (steps < 1024) return (uint16_t)(sign | (uint16_t)steps);
  return (uint16_t)(sign | (e + 15) << 10 | ((int)steps - 1024));
}

uint16_t float_to_bf16(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if (std::isnan(v)) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float e4m3(uint8_t code) {
  int e = code >> 3 & 15, m = code & 7;
  float v = (code & 127) == 127 ? NAN : e ? std::ldexp((float)(m + 8), e - 10) : std::ldexp((float)m, -9);
  return code & 128 ? -v : v;
}

float get(const void *p, int type, uint64_t i) {
  static const float e2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  if (type == R_8F_E4M3) return e4m3(((const uint8_t *)p)[i]);
  if (type == R_4F_E2M1) {
    int code = ((const uint8_t *)p)[i / 2] >> i % 2 * 4 & 15;
    return code & 8 ? -e2m1[code & 7] : e2m1[code & 7];
  }
  if (type == R_32F) return ((const float *)p)[i];
  uint16_t h = ((const uint16_t *)p)[i];
  if (type == R_16F) return half_to_float(h);
  uint32_t bits = (uint32_t)h << 16;
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

void put(void *p, int type, uint64_t i, float v) {
  if (type == R_32F) ((float *)p)[i] = v;
  else ((uint16_t *)p)[i] = type == R_16F ? float_to_half(v) : float_to_bf16(v);
}

// The scale of element i of a column j of op(a)^T or b: the documentation's orders ("Scaling factors layouts").
float scale(const void *scales, int mode, const Layout &l, uint64_t i, uint64_t j) {
  const float *f = (const float *)scales;
  uint64_t wide = (l.rows + 511) / 512 * 4, tile = (l.rows / 16 + 3) / 4;
  if (!scales) return 1;
  switch (mode) {
  case OF_ROW: return f[j];
  case OF_128: return f[i / 128 * l.columns + j];
  case OF_128X128: return f[j / 128 * wide + i / 128];
  case OF_16: // sign ignored
    return std::fabs(
        e4m3(((const uint8_t *)
                  scales)[(j / 128 * tile + i / 64) * 512 + j % 32 * 16 + j % 128 / 32 * 4 + i / 16 % 4]));
  default: return f[0];
  }
}
size_t scale_bytes(int mode, const Layout &l) {
  uint64_t groups = (l.rows + 127) / 128, down = (l.columns + 127) / 128;
  switch (mode) {
  case OF_ROW: return l.columns * 4;
  case OF_128: return l.columns * groups * 4;
  case OF_128X128: return down * ((groups + 3) / 4 * 4) * 4;
  case OF_16: return down * ((l.rows / 16 + 3) / 4) * 512;
  default: return 4;
  }
}

// Its numbers, column after column with nothing between, times their scales.
std::vector<float> floats(const void *p, const Layout &l, const void *scales, int mode) {
  std::vector<float> out;
  out.reserve(l.rows * l.columns);
  for (uint64_t j = 0; j < l.columns; j++)
    for (uint64_t i = 0; i < l.rows; i++)
      out.push_back(get(p, l.type, j * (uint64_t)l.pitch + i) * scale(scales, mode, l, i, j));
  return out;
}

uint32_t sum_of(const Matmul &what, const Layout &a, const Layout &b, const Layout &d) {
  uint64_t sum =
      (uint64_t)(what.epilogue * 2 + what.transposed_a + what.modes[0] * 64 + what.modes[1] * 1024);
  for (const Layout *l : {&a, &b, &d})
    for (uint64_t v : {(uint64_t)l->type, l->rows, l->columns, (uint64_t)l->pitch}) sum = sum * 1000003 + v;
  return (uint32_t)(sum ^ sum >> 32);
}

bool aligned(const void *p, uint32_t to) { return (uintptr_t)p % to == 0; }
uint32_t alignment(const void *p) { return (uint32_t)(((uintptr_t)p | 256) & -((uintptr_t)p | 256)); }

// Whether small floats can be, on this GPU and by this version: what the documentation asks for ("Narrow precision data
// types usage"; cublasLtMatmul).
int check_small(const Matmul &what, const Layout &a, const Layout &d) {
  const long sm = setting("NB_EMU_SM", 90), version = setting("NB_EMU_CUBLASLT", 130000);
  const int *mode = what.modes;
  if (!what.transposed_a || a.rows % 16 || a.pitch % 16 || bytes_of(d.type, d.rows) % 16)
    return NOT_SUPPORTED;
  if (what.epilogue == 4 && d.type == R_32F) return NOT_SUPPORTED; // a bias would be of bf16
  if (a.type == R_4F_E2M1)
    return sm < 100 || version < 120800 || a.rows % 32 || mode[0] != OF_16 || mode[1] != OF_16 ? NOT_SUPPORTED
                                                                                               : 0;
  if (mode[0] == OF_ALL && mode[1] == OF_ALL) return sm < 89 || version < 110800 ? NOT_SUPPORTED : 0;
  if (sm != 90 || version < 120900) return NOT_SUPPORTED;
  if (mode[0] == OF_ROW && mode[1] == OF_ROW) return 0;
  if (mode[0] != OF_128X128 || mode[1] != OF_128) return NOT_SUPPORTED;
  return d.rows % 4 || d.columns % 4 ? INVALID : 0;
}

// Whether these can be multiplied: op(a) [m, k] op(b) [k, n] -> d [m, n].
int check(const Matmul &what, const Layout &a, const Layout &b, const Layout &c, const Layout &d) {
  for (const Layout *l : {&a, &b, &c, &d})
    if (l->pitch < (int64_t)l->rows || !l->rows || !l->columns) return INVALID;
  if (what.transposed_b) return NOT_SUPPORTED; // nibble asks for no such
  uint64_t m = what.transposed_a ? a.columns : a.rows, k = what.transposed_a ? a.rows : a.columns;
  if (k != b.rows || d.rows != m || d.columns != b.columns) return INVALID;
  if (c.type != d.type || c.rows != d.rows || c.columns != d.columns) return INVALID;
  if (a.type != b.type || small(d.type)) return NOT_SUPPORTED;
  if (small(a.type)) {
    if (int status = check_small(what, a, d)) return status;
  } else if (what.scales[0] || what.scales[1]) return INVALID;
  else if (d.type != a.type && d.type != R_32F) return NOT_SUPPORTED;
  if (what.epilogue != 1 && what.epilogue != 4) return NOT_SUPPORTED;
  return what.epilogue == 4 && !what.bias ? INVALID : 0;
}

size_t extent(const Layout &l) { return bytes_of(l.type, (l.columns - 1) * (uint64_t)l.pitch + l.rows); }

} // namespace

#pragma GCC visibility push(default)
extern "C" {

size_t cublasLtGetVersion() { return (size_t)setting("NB_EMU_CUBLASLT", 130000); }

int cublasLtCreate(void **handle) {
  BEGIN;
  *handle = new int(current);
  return 0;
}

int cublasLtMatmulDescCreate(Matmul **what, int compute, int scale) {
  EARLY;
  if (compute != 68 || scale != R_32F) return NOT_SUPPORTED;
  *what = new Matmul;
  return 0;
}
int cublasLtMatmulDescDestroy(Matmul *what) {
  delete what;
  return 0;
}
int cublasLtMatmulDescSetAttribute(Matmul *what, int attribute, const void *value, size_t bytes) {
  EARLY;
  if (bytes != (attribute == 8 || attribute == 17 || attribute == 18 ? sizeof(void *) : 4)) return INVALID;
  switch (attribute) {
  case 3: memcpy(&what->transposed_a, value, 4); return 0;
  case 4: memcpy(&what->transposed_b, value, 4); return 0;
  case 7: memcpy(&what->epilogue, value, 4); return 0;
  case 8: memcpy(&what->bias, value, sizeof(void *)); return 0;
  case 17:
  case 18: memcpy(&what->scales[attribute - 17], value, sizeof(void *)); return 0;
  case 31:
  case 32:
    if (cublasLtGetVersion() < 120800) return INVALID;
    memcpy(&what->modes[attribute - 31], value, 4);
    return 0;
  default: return INVALID;
  }
}

int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
  EARLY;
  if (type != R_32F && type != R_16F && type != R_16BF && !small(type)) return NOT_SUPPORTED;
  *layout = new Layout{type, rows, columns, pitch};
  return 0;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) {
  delete layout;
  return 0;
}

int cublasLtMatmulPreferenceCreate(Preference **preference) {
  EARLY;
  *preference = new Preference;
  return 0;
}
int cublasLtMatmulPreferenceDestroy(Preference *preference) {
  delete preference;
  return 0;
}
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value,
                                         size_t bytes) {
  EARLY;
  if (attribute == 1 && bytes == 8) memcpy(&preference->workspace, value, 8);
  else if (attribute >= 5 && attribute <= 8 && bytes == 4)
    memcpy(&preference->alignment[attribute - 5], value, 4);
  else return INVALID;
  return 0;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, Matmul *what, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Preference *preference, int wanted, Choice *choices, int *found) {
  BEGIN;
  *found = 0;
  if (!handle || wanted < 1) return INVALID;
  if (int status = check(*what, *a, *b, *c, *d)) return status;
  Choice choice = {};
  uint32_t workspace = preference->workspace >= WORKSPACE ? WORKSPACE : 0;
  choice.way = {MAGIC, sum_of(*what, *a, *b, *d), {}, what->bias ? alignment(what->bias) : 1, workspace, {}};
  memcpy(choice.way.alignment, preference->alignment, sizeof choice.way.alignment);
  choice.workspace = workspace;
  *choices = choice;
  *found = 1;
  return 0;
}

int cublasLtMatmul(void *handle, Matmul *what, const float *alpha, const void *a, Layout *a_layout,
                   const void *b, Layout *b_layout, const float *beta, const void *c, Layout *c_layout,
                   void *d, Layout *d_layout, const Way *way, void *workspace, size_t workspace_bytes,
                   void *stream) {
  BEGIN;
  if (!handle || *(int *)handle != current || *beta != 0 || c != d) return INVALID;
  if (int status = check(*what, *a_layout, *b_layout, *c_layout, *d_layout)) return status;
  Layout la = *a_layout, lb = *b_layout, ld = *d_layout;
  const void *bias = what->epilogue == 4 ? what->bias : nullptr;
  const uint32_t *to = way->alignment;
  if (way->magic != MAGIC || way->sum != sum_of(*what, la, lb, ld))
    return INVALID; // a way for something else
  if (!aligned(a, to[0]) || !aligned(b, to[1]) || !aligned(d, to[2]) || !aligned(d, to[3])) return INVALID;
  if (bias && !aligned(bias, way->bias_alignment)) return INVALID;
  if (workspace_bytes < way->workspace || (way->workspace && !on_device(workspace, way->workspace)))
    return INVALID;
  const void *sa = what->scales[0], *sb = what->scales[1];
  int ma = what->modes[0], mb = what->modes[1];
  if (!aligned(sa, 16) || !aligned(sb, 16)) return INVALID;
  bool scales_there =
      (!sa || on_device(sa, scale_bytes(ma, la))) && (!sb || on_device(sb, scale_bytes(mb, lb)));
  // A GPU would fail in the kernel.
  if (!on_device(a, extent(la)) || !on_device(b, extent(lb)) || !on_device(d, extent(ld)) ||
      (bias && !on_device(bias, bytes_of(ld.type, ld.rows))) || !scales_there) {
    lost = 700;
    return EXECUTION_FAILED;
  }
  uint32_t scratch = way->workspace;
  bool transposed = what->transposed_a;
  float factor = *alpha;
  int code = enqueue(stream, [=] {
    return open_memory([=] {
      memset(workspace, 0xA5, scratch); // others' work in it at the same time is lost
      std::vector<float> as = floats(a, la, sa, ma), bs = floats(b, lb, sb, mb);
      uint64_t k = lb.rows, step = transposed ? 1 : la.rows;
      for (uint64_t j = 0; j < ld.columns; j++)
        for (uint64_t i = 0; i < ld.rows; i++) {
          const float *row = &as[transposed ? i * la.rows : i], *column = &bs[j * k];
          double sum = 0;
          for (uint64_t x = 0; x < k; x++) sum += (double)row[x * step] * column[x];
          put(d, ld.type, j * (uint64_t)ld.pitch + i,
              (float)sum * factor + (bias ? get(bias, ld.type, i) : 0));
        }
    });
  });
  return code ? EXECUTION_FAILED : 0;
}
}
#pragma GCC visibility pop
