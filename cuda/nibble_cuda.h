/* nibble_cuda.h - the public C API of CUDA devices; read by LuaJIT's ffi.cdef too, as nibble.h is, whose
 * conventions it keeps.
 *
 * CUDA devices count from 1: number 1 is the driver's (and PyTorch's) cuda:0. The driver is opened by the first call:
 * libcuda.so.1, or the library that NB_CUDA_DRIVER names. Without one, without a device, or with one below
 * sm_80 every function here says so (NB_EUNSUPPORTED). A failure inside a kernel loses the device: from then on
 * NB_EIO with that failure's sentence. nb_device_X does on a device what nibble.h's nb_X does in the computer's
 * memory, with the same bytes; functions outside this header take the computer's memory only. */
#ifndef NIBBLE_CUDA_H
#define NIBBLE_CUDA_H
#include "nibble.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ---- devices and their memory (device.c, memory.c) ------------------------------- */

typedef struct nb_device_info {
  char name[128];
  int64_t bytes;                                     /* its memory */
  int32_t driver, sm, multiprocessors, shared_bytes; /* 13000: CUDA 13.0; 90: sm_90; of one block, at most */
  int32_t emulated, pad_;                            /* 1: the stand-in that runs kernels on the processor */
} nb_device_info;

/* In Lua a tensor on a device is this, so that no function for the computer's memory takes it. */
typedef struct nb_device_tensor {
  nb_tensor t;
} nb_device_tensor;

/* How many devices the driver lists, those that are too old too. */
int nb_device_count(void);
/* What a device is, without beginning to use it. */
int nb_device_get(nb_device_info *out, int device);
/* NB_OK when tensors can live on it, as far as can be told without beginning to use it. */
int nb_device_usable(int device);
/* Bytes of its memory that are free now, and all of them. */
int nb_device_memory(int64_t *free_bytes, int64_t *total_bytes, int device);
/* Bytes of the tensors that live on it, without beginning to use it; -1: no device can have that number. */
int64_t nb_device_live_bytes(int device);
/* Returns when all that was begun on it is done. */
int nb_device_wait(int device);

/* A new zero-filled tensor on a device (0: nb_tensor_new). NB_ENOMEM when it has no room. Views and release as
 * for any tensor; the bytes count in nb_live_bytes. */
int nb_tensor_new_on(nb_tensor *out, int device, int dtype, int ndim, const int64_t *shape);
/* A copy of t on a device (0: in the computer's memory), whatever t is on. Reads the stop flag. */
int nb_tensor_to(nb_tensor *out, const nb_tensor *t, int device);
/* dst's bytes = src's bytes, of as many elements of one dtype; either may lie in the computer's memory, which then is waited
 * for. nb_device_zero: every byte 0. Both can be part of a graph where all lies on the device. */
int nb_device_copy(nb_tensor *dst, const nb_tensor *src);
int nb_device_zero(nb_tensor *t);

/* ---- kernels (launch.c) ------------------------------------------------------------ */

/* What this build's kernels are for ("sm_80 sm_90a and PTX, by nvcc 13.0"); NULL leaves why it has none. */
const char *nb_kernels(void);

typedef struct nb_launch {
  int32_t grid[3], block[3]; /* blocks, threads of a block */
  int32_t shared_bytes;      /* of dynamic shared memory, a block */
} nb_launch;

/* Begins a kernel by its name; arguments[i]: the address of its i-th argument, of a tensor that of
 * its data. Returns at once: what fails in the kernel shows in a later call, with its name. The first launch
 * loads the kernels. What a kernel touches is not checked here. */
int nb_device_launch(int device, const char *kernel, const nb_launch *at, void **arguments);

/* ---- streams, times, graphs (stream.c) --------------------------------------------- */

/* Work on a device is done in streams: in each in the order in which it was begun. Every function of this header that
 * works on a device does so on the calling thread's current stream there. The default stream waits for what was begun
 * on all others, and they for what was begun on it; two others go side by side. */
typedef struct nb_stream nb_stream;
int nb_stream_new(nb_stream **out, int device);
/* What was begun on it is still done. No thread may use it any more. NULL is allowed. */
void nb_stream_free(nb_stream *s);
/* Makes s (NULL: the default one) the calling thread's stream on a device; nb_stream_current is it. */
int nb_stream_use(int device, nb_stream *s);
nb_stream *nb_stream_current(int device);
/* Returns when all that was begun on s is done. */
int nb_stream_wait(nb_stream *s);
/* What is begun on s from now on comes after what was begun on `other` (of any device) until now. */
int nb_stream_after(nb_stream *s, const nb_stream *other);

/* A point of the current stream, now. nb_mark_ms: milliseconds between two of one device, once both have come. */
typedef struct nb_mark nb_mark;
int nb_mark_new(nb_mark **out, int device);
int nb_mark_ms(double *ms, nb_mark *from, nb_mark *to);
void nb_mark_free(nb_mark *m);

/* A CUDA graph: what this thread begins on the device between begin and end is not done, but captured, to be launched
 * together and again (NB_EUNSUPPORTED before CUDA 11.4). In between nothing can wait, nor be copied from or to the
 * computer's memory. Tensors made in between live as long as the graph, also where they are released; those
 * that were there before must be kept. nb_graph_end leaves no capture behind, also where it fails. */
typedef struct nb_graph nb_graph;
int nb_graph_begin(int device);
int nb_graph_end(nb_graph **out, int device);
/* Begins the whole graph on the current stream. */
int nb_graph_launch(nb_graph *g);
void nb_graph_free(nb_graph *g);

/* ---- products of floats (blas.c) ---------------------------------------------------- */

/* The cuBLASLt that products use ("libcublasLt.so.13"), opened by the first call: the newest one that the driver runs, or
 * the file that NB_CUBLASLT names. NULL leaves why there is none. */
const char *nb_cublaslt(void);

/* y[m,n] = x[m,k] w[n,k]^T + bias[n] (or NULL) on one device, float32 accumulation, by cuBLASLt. x and w of one of
 * f32, bf16, f16; y, which is filled, of the same or f32; bias as y. Its sums' order is the library's: other bytes than
 * nb_gemm's. NB_EUNSUPPORTED without the library. */
int nb_device_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *w, const nb_tensor *bias);

/* ---- the forward pass (forward.c) ----------------------------------------------------
 * As nibble.h's, on one device; activations are f32, bf16 or f16, arithmetic is f32, y is rounded once to its own dtype. The
 * processor's bytes, of NaN only that they are some; of rmsnorm all but one row in ten million, by one last place. None waits,
 * but for ids in the computer's memory, which are checked there and brought over. ids on the device are not checked: gather
 * makes NaN, scatter_add leaves out, what is outside. */

/* y and x of any of these dtypes; weight f32 [d]. y may be x. */
int nb_device_rmsnorm(nb_tensor *y, const nb_tensor *x, const nb_tensor *weight, double eps);
/* x of any; the tables f32. */
int nb_device_rope(nb_tensor *x, const nb_tensor *cosines, const nb_tensor *sines, int64_t head_dim,
                   int64_t length);
/* y f32 += x of any. */
int nb_device_add(nb_tensor *y, const nb_tensor *x);
/* Both of one dtype. */
int nb_device_swiglu(nb_tensor *gate, const nb_tensor *up);
/* table and out of any. */
int nb_device_gather(nb_tensor *out, const nb_tensor *table, const nb_tensor *ids);
/* y f32, x of any, weights f32 or NULL; dtype: what products are rounded to. ids don't descend. */
int nb_device_scatter_add(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
                          int dtype);
/* x of any. */
int nb_device_scale_rows(nb_tensor *x, const nb_tensor *weights, int dtype);
/* Waits for the device. nb_device_add_nonfinite does not: count i32 [1] there grows by it. */
int64_t nb_device_count_nonfinite(const nb_tensor *x);
int nb_device_add_nonfinite(nb_tensor *count, const nb_tensor *x);
/* nb_cast between f32, bf16 and f16, bytes of NaN too. */
int nb_device_cast(nb_tensor *dst, const nb_tensor *src, int saturate);
/* (logits.c) x f32, bf16 or f16, head too; products by cuBLASLt where it is, of operands of different dtypes in f32. Sums in
 * double. At most 1024x8192 logits of a model exist at once: the stream keeps 32 MiB for them (twice that for two models; with
 * different dtypes also 8192 rows of the head in f32). targets in the computer's memory are checked there and brought over; of
 * those on the device one outside of the vocabulary makes NaN. Reads the stop flag. */
int nb_device_logits_score(nb_tensor *nll, nb_tensor *top, const nb_tensor *x, const nb_tensor *head,
                           const nb_tensor *targets);
int nb_device_logits_compare(nb_tensor *kl, nb_tensor *nll_p, nb_tensor *nll_q, nb_tensor *top_p,
                             nb_tensor *top_q, const nb_tensor *x_p, const nb_tensor *head_p,
                             const nb_tensor *x_q, const nb_tensor *head_q, const nb_tensor *targets);
/* (attention.c) All four f16, all bf16 or all f32, heads of an even number up to 256 (else NB_EUNSUPPORTED). Scores and sums are
 * f32; weights are rounded to the dtype before the product with v. Off the exact value by less than the dtype's rounding of the
 * largest |v|, twice (f32, of scores up to 16: eight times). A NaN or Inf in v may also reach the 63 queries before it (not of f32).
 * f32 has no tensor cores and is the slow one. The same bytes in each run. */
int nb_device_attention(nb_tensor *out, const nb_tensor *q, const nb_tensor *k, const nb_tensor *v,
                        int64_t heads, int64_t kv_heads, int64_t length, int64_t sliding, double scale);

/* ---- weights into Marlin's order (repack.c) -------------------------------------------
 * As nb_marlin_repack and nb_marlin_awq_repack, with words on a device; all experts in one launch. out: empty (all
 * 0), and then made there, or a tensor there to fill. perm: on the device or in the computer's memory; its elements
 * are checked, for which the device is waited for, so no graph can hold that. NB_EUNSUPPORTED beyond 2^30 tiles. */

int nb_device_marlin_repack(nb_tensor *out, const nb_tensor *words, const nb_tensor *perm, int bits, int a8);
int nb_device_marlin_awq_repack(nb_tensor *out, const nb_tensor *words, int bits, int a8);

/* ---- scales, bias and zero-points in Marlin's order (permute.c) ----------------------------
 * As the functions of nibble.h without "device", on a device; all experts in one launch; out as above. zero_points of
 * 4 bits waits for the device, to tell of a code that does not fit, so no graph can hold it. */

int nb_device_marlin_permute_scales(nb_tensor *out, const nb_tensor *scales, int64_t k, int64_t g, int a8,
                                    int inverse);
int nb_device_marlin_permute_bias(nb_tensor *out, const nb_tensor *bias, int inverse);
int nb_device_marlin_zero_points(nb_tensor *out, const nb_tensor *zeros, int bits, int a8);
int nb_device_marlin_awq_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8);
int nb_device_marlin_packed_zero_points(nb_tensor *out, const nb_tensor *words, int bits, int a8);

/* ---- numbers for the Marlin kernels (marlin_numeric.c) ---------------------------------------
 * Likewise. fp8_preprocess: with zeros n must be a multiple of 32 (NB_EUNSUPPORTED); out may be words. int8_scales,
 * nvfp4_factor and, with a8, mx_scales wait for the device, so no graph can hold them. */

int nb_device_marlin_fp8_preprocess(nb_tensor *out, const nb_tensor *words, const nb_tensor *zeros, int bits,
                                    int inverse);
int nb_device_marlin_int8_scales(nb_tensor *out, float *global, const nb_tensor *scales);
int nb_device_marlin_nvfp4_factor(double *factor, const nb_tensor *scales);
int nb_device_marlin_nvfp4_scales(nb_tensor *out, const nb_tensor *scales, double factor);
int nb_device_marlin_mx_scales(nb_tensor *out, const nb_tensor *scales, int a8);
int nb_device_swizzle_blockscale(nb_tensor *out, const nb_tensor *scales);

/* ---- products with Marlin's weights (product.c) ----------------------------------------
 * y [m,n] = x [m,k] times the weight + bias, as nb_marlin_gemm, for weights of 4 or 8 bits in the order for 16-bit
 * activations (a8 0): integers or FP8 under float scales, MXFP8 and MXFP4 under E8M0 bytes, NVFP4 under bytes of
 * nb_marlin_nvfp4_scales. Everything lies on one device; x, y, float scales and bias are f16, or all bf16. y: empty, and
 * then made there with n columns, or a tensor there to fill, of an even number of columns. Columns that x lacks count as
 * 0. row_scale: F32 [m,1] there, or NULL; multiplies the rows of x times the weight.
 * Tensor cores take one group, or groups of 32, 64 or a multiple of 128 rows, also in an activation order with whole
 * groups; under bytes more than one group, of NVFP4 of 16 rows; of FP8 scales that carry 2^8 (f16) or 2^120 (bf16), which
 * scale_factor takes off. Others are taken a row at a time, slowly. What perm or g_idx has out of range makes NaN.
 * A code of FP8 that is NaN counts as 480, an E8M0 byte 0 as 0 and 255 as infinity: who loads weights refuses them.
 * Weights are exact; sums are f32, in an order that depends on the device and on m, not on the run; y is rounded once.
 * A stream's workspace: 128 KiB for each of the device's processors, and 257 KiB. An order, or columns that x lacks,
 * take x once more.
 * More than 256 rows are cuBLASLt's: weights rounded to x's dtype, by panels of 256 MiB at most, which the stream keeps; an
 * order is then checked (NB_EFORMAT), which waits for the device. Without cuBLASLt, or room, or with row_scale, the kernels
 * go on. Of MXFP8 and MXFP4 in f16 scales may then be too large or small for the weights.
 *
 * A weight in the order for 8-bit activations (a8; product_a8.c) takes x as codes, and row_scale is their scales, as
 * nb_device_act_quant_int8 and nb_device_act_quant_fp8 make them: I8 with NB_MARLIN_INT, scales of floats or int16;
 * F8_E4M3 with NB_MARLIN_FOLDED or NB_MARLIN_E4M3 and scales of floats, or with NB_MARLIN_E2M1 and E8M0 scales. Zero-points
 * with codes of 4 bits. y and bias are f16 or bf16, as scales of floats are; y where it is made has the dtype that it says,
 * of these two, else the 16-bit scales', else bias's, else bf16. One group, or groups of 32, 64 or a multiple of 128 rows; no
 * order; x lacks an even number of columns. Products of integers are exact, as are their sums over up to 64 rows of a group,
 * which are then times its scale summed in f32; e4m3's are the tensor cores' own (before sm_89 those of f16, which holds
 * them), over as many. */

int nb_device_marlin_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                          const nb_tensor *row_scale);

/* ---- products of FP8 codes (product_fp8.c) ------------------------------------------------
 * y [m,n] = (x codes times their scales) [m,k] (w codes times theirs) [n,k]^T + bias, all on one device: nb_gemm of what
 * nb_dequantize_float makes of both, but for the f32 sums' order, which depends on the device and on m, and of which a GPU's own FP8 product keeps fewer bits. x and w f8_e4m3 as nb_act_quant_fp8 and a
 * checkpoint have them, k a multiple of 16; scales f32: one element, or one a row ([rows] or [rows,1]), or, of groups of 128
 * columns, of x [m, ceil(k/128)] and of w [ceil(n/128), ceil(k/128)], in any pair (CTM-FP8-01). y, which is filled, f32,
 * bf16 or f16; bias [n] as y, or NULL.
 * More than 16 rows are cuBLASLt's where it has that pair (one scale a tensor from sm_89 on, the others on sm_90 from
 * CUDA 12.9 on), nibble's own kernels' otherwise; both take graphs. NB_EUNSUPPORTED: f8_e4m3fnuz, other k. */
int nb_device_fp8_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *x_scales, const nb_tensor *w,
                       const nb_tensor *w_scales, const nb_tensor *bias);
/* nb_fp8_requantize of f8_e4m3 (requantize_fp8.c), its bytes; waits for nothing. NB_EUNSUPPORTED: f8_e4m3fnuz, more than 8
 * shards, or one of a number of bytes that is no multiple of 4. */
int nb_device_fp8_requantize(nb_tensor *out, nb_tensor *max, const nb_tensor *weight, const nb_tensor *scales,
                             const int64_t *widths);

/* ---- products of 4-bit floats (product_fp4.c) -----------------------------------------------
 * y [m,n] = factor (x codes times their scales) (w codes times theirs)^T + bias, by cuBLASLt: NVFP4 on both sides, codes
 * U8 [m,k/2] and [n,k/2], the even column in the low nibble, scales of 16 columns as nb_swizzle_blockscale gives them
 * (CTM-NVFP4-14), whose sign does not count; factor: 1 / (x's global scale * w's). y, which is filled, f32, bf16 or f16; bias
 * as y, or NULL, not f32. k a multiple of 32, a row of y of 16 bytes. NB_EUNSUPPORTED with what is missing: sm_100 or later,
 * cuBLASLt 12.8 or later, such a shape; there the weight's codes are multiplied with 16-bit activations.
 * nb_device_fp4_usable: NB_OK where device and cuBLASLt have it. */
int nb_device_fp4_usable(int device);
int nb_device_fp4_gemm(nb_tensor *y, const nb_tensor *x, const nb_tensor *x_scales, const nb_tensor *w,
                       const nb_tensor *w_scales, double factor, const nb_tensor *bias);
/* nb_act_quant_fp4, its bytes; waits for nothing. */
int nb_device_act_quant_fp4(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global);

/* ---- what calibration asks of activations (statistics.c) -----------------------------------
 * As nibble.h's, the same bytes, with x f32, bf16 or f16; out of its own such dtype, to which results are rounded (scales from a
 * tensor of many rows: the stream's workspace). act_extent waits for the device. */
int nb_device_column_squares(nb_tensor *sums, const nb_tensor *x);
int nb_device_act_extent(float lohi[2], const nb_tensor *x);
int nb_device_act_fake_quant(nb_tensor *out, const nb_tensor *x, const nb_act_options *options);
int nb_device_act_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *x,
                           const nb_act_options *options);

/* out [pairs,k] of x [T,k]: row p is row p / top of x, as nb_device_act_fake_quant makes it, top being the ids i32 for a token;
 * but static scales, or NVFP4's global ones, are those of p's expert: scales f32 [experts], above 0 and finite, or NULL; and a
 * scale of a dynamic tensor (group 0) is that of all of an expert's rows. out has x's dtype; made where it is empty. map: as
 * moe_sum's. Rows of pairs whose expert isn't here stay as they are. Waits for nothing. */
int nb_device_moe_fake_quant(nb_tensor *out, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *map,
                             const nb_tensor *scales, int64_t experts, const nb_act_options *options);

/* ---- products with experts' weights (product_experts.c; weights on the input, batches: moe_rows.c) ---- */

/* Pairs of a token and one of its `top` experts, in blocks of one expert each, as nb_device_moe_align leaves them on a
 * device: sorted i32, `block` places (1 to 64) to a block; block_experts i32, -1: the block is left alone; total i32 [1]. A pair
 * p has row p / top of x. weights f32 of each pair, or NULL; globals f32 [experts], multiply the products, or NULL. */
typedef struct nb_moe_blocks {
  const nb_tensor *sorted, *block_experts, *total, *weights, *globals;
  int64_t block, top;
} nb_moe_blocks;

/* y [pairs,n] of x [pairs/top,k]: row p is p's row of x times its expert's weight + bias, all of it times p's weight; rows of
 * pairs that `sorted` doesn't list stay as they are. w: stacks [experts,...] of what nb_device_marlin_gemm takes, with
 * whose dtypes, groups, orders, workspace and sums, x as codes for 8-bit activations too; row_scale F32 [pairs/top,1],
 * or NULL. One launch for all experts, where orders (which take x once more, a row a pair) don't ask for more; nothing is
 * waited for. Made for blocks of 16, 32 and 64. */
int nb_device_marlin_moe_gemm(nb_tensor *y, const nb_tensor *x, const nb_marlin_weight *w,
                              const nb_moe_blocks *blocks, const nb_tensor *row_scale);
/* out [T*top,H] = row t of x [T,H] times weights[t,j] (f32 [T,top]), rounded to x's dtype, f16 or bf16: a router's
 * weights on the input. */
int nb_device_moe_weigh(nb_tensor *out, const nb_tensor *x, const nb_tensor *weights);
/* ids i32 [experts*most, 1] of a batch [experts, most, H] of which counts i32 [experts] rows are valid: e for those of expert e,
 * -1 for the others. */
int nb_device_moe_batch_ids(nb_tensor *ids, const nb_tensor *counts, int64_t most);

/* ---- quantization (quantize.c) ------------------------------------------------------ */

/* nb_rtn_quantize, nb_float_quantize and nb_absmax with all tensors on one device: their shapes, dtypes, bytes and
 * errors. They wait for the device, to tell of a NaN or Inf in w (which then comes to the computer's memory for its
 * place) or a scale too large. */
int nb_device_rtn_quantize(nb_tensor *codes, nb_tensor *scales, nb_tensor *zeros, const nb_tensor *w,
                           const nb_rtn_options *options);
int nb_device_float_quantize(nb_tensor *codes, nb_tensor *scales, const nb_tensor *w,
                             const nb_float_options *o);
int nb_device_absmax(float *out, const nb_tensor *w);
/* nb_act_quant_int8 and nb_act_quant_fp8 likewise; these wait for nothing. */
int nb_device_act_quant_int8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, float global);
int nb_device_act_quant_fp8(nb_tensor *q, nb_tensor *scales, const nb_tensor *x, int mode);

/* ---- dequantize (dequantize.c) ------------------------------------------------------ */

/* out f32|bf16|f16 [n,k] of a weight whose tensors lie on one device: bit for bit nb_dequantize, or nb_dequantize_float,
 * of what the unpack functions give; of a NaN only that it is one. Floats without scales: a cast. out is filled, or
 * made where it is empty (all 0). global and g_idx may also lie in the computer's memory, where they are checked; from
 * the device they are fetched for that, which waits for what was begun before. Codes of 4, 8, 16 and 32 bits, k and groups
 * multiples of 8, go at the memory's pace; others an element at a time. NB_EFORMAT: an entry of g_idx without a
 * group, or a global scale that is 0, NaN or infinite. */
int nb_device_dequantize(nb_tensor *out, const nb_weight *w, int dtype);

/* out f16|bf16 [k,n], row-major, of a weight in Marlin's order on a device (dequantize_marlin.c): what nb_marlin_gemm
 * multiplies with, of NVFP4 2^-7 of it, which f16 has room for, rounded, rows in the order of x's columns whatever perm; without global and bias, which are the product's.
 * To cuBLASLt, which counts in columns, it is W^T [n,k] with n elements from column to column: y^T = W^T x^T without a
 * transpose. out is filled, or made where it is empty. perm and g_idx: on the device or in the computer's memory, and
 * checked there; perm must have every row once. NB_EUNSUPPORTED: weights that
 * nb_device_marlin_gemm does not take. */
int nb_device_marlin_dequantize(nb_tensor *out, const nb_marlin_weight *w, int dtype);

/* ---- mixture of experts: tokens (moe_tokens.c) ----------------------------------------
 * As nb_moe_route and the like, all tensors on one device, the same bytes; of NaN only that it is one. Nothing is
 * waited for, but where it is said: so a map's entries are not checked: one outside the experts is as -1. At most 4096
 * experts. Outputs without memory (all 0) are made there; so are those whose shape says something, from it. */

/* logits and bias also f16 or bf16: scored in f32. experts [m, top], with memory or without, says how many. */
int nb_device_moe_route(nb_tensor *experts, nb_tensor *weights, const nb_tensor *logits,
                        const nb_tensor *bias, const nb_moe_router *o);
/* rows, row_weights and offsets: given. Ids outside are an error unless skip: to tell it the device is waited for. */
int nb_device_moe_group(nb_tensor *rows, nb_tensor *row_weights, nb_tensor *offsets, const nb_tensor *ids,
                        const nb_tensor *weights, const nb_tensor *map, int skip);
/* total: i32 [1], on the device too. One block of threads. */
int nb_device_moe_align(nb_tensor *sorted, nb_tensor *block_experts, nb_tensor *total, const nb_tensor *ids,
                        int64_t block, int64_t experts, const nb_tensor *map, int ignore);
/* h and up f32, f16 or bf16, out as they are; f16 and bf16 round by themselves: act->dtype is theirs. */
int nb_device_moe_activation(nb_tensor *out, const nb_tensor *h, const nb_tensor *up, const nb_moe_act *act);
/* y[t] = the sum of x[p] over the pairs p of t, those at t*top .. t*top + top-1, in the order of their local experts, as
 * moe.forward adds them: in f32, each product weights[p] * x[p] rounded to x's dtype before. y [T,H] f32, or x's dtype,
 * as which it is made; x f32, f16 or bf16 [T*top, H]; ids i32 and weights f32 [T,top], weights NULL: 1. experts: how
 * many are here. Pairs whose expert isn't are left out: their x is not read. */
int nb_device_moe_sum(nb_tensor *y, const nb_tensor *x, const nb_tensor *ids, const nb_tensor *weights,
                      const nb_tensor *map, int64_t experts);
/* moe.dispatch: batch [experts, rows, H] of x's dtype gets each expert's rows of x [T,H], in order, and zeros behind
 * them; counts i32 [experts], how many; places i32 [T,top], each pair's row in the batch, -1: none. batch, with memory
 * or without, says for how many experts and rows. An expert with more rows is an error, for which the device is waited
 * for, unless there are rows for all pairs. */
int nb_device_moe_dispatch(nb_tensor *batch, nb_tensor *counts, nb_tensor *places, const nb_tensor *x,
                           const nb_tensor *ids, const nb_tensor *map);
/* moe.combine: y[t] = the sum of weights[p] * x[places[p]] over t's pairs in the order of their places: x [experts,
 * rows, H], y as nb_device_moe_sum's, but products are not rounded. */
int nb_device_moe_combine(nb_tensor *y, const nb_tensor *x, const nb_tensor *places,
                          const nb_tensor *weights);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
