/* primitives.cu - ptx.cuh's primitives one by one: scripts/gpu-check holds a GPU's results to the emulator's, which is
 * blind to assembly text, fences and what nvcc makes of them. Nothing else launches these. */
#include "../ptx.cuh"

/* Primitives of numbers, by their place in this list; gpu-check's list of names is the same one. */
enum {
  FLOAT_OF_F16,
  FLOAT_OF_BF16,
  F16_PAIR,
  BF16_PAIR,
  MUL_RN,
  FMA_RN,
  FMA_F16X2,
  FMA_BF16X2,
  LOP3_AND_OR,
  LOP3_XOR,
  PICK_BYTES,
  COUNT_ONES,
  MUL_RN_F64,
  F16_PAIR_OF_E4M3,
  PICK_SIGNS,
  MAX_S16X2,
  MAX_U16X2,
  EXP2_NEAR,
};

/* A NaN of one's own for each of a pair's. */
NB_DEVICE uint32_t plain_nans(uint32_t pair) {
  for (int s = 0; s < 32; s += 16)
    if ((pair >> s & 0x7fff) > 0x7c00) pair |= 0xffffu << s;
  return pair;
}

NB_DEVICE uint32_t number(int which, uint32_t a, uint32_t b, uint32_t c) {
  switch (which) {
  case FLOAT_OF_F16: return bits_of_float(float_of_f16((uint16_t)a));
  case FLOAT_OF_BF16: return bits_of_float(float_of_bf16((uint16_t)a));
  case F16_PAIR: return f16_pair(float_of_bits(a), float_of_bits(b));
  case BF16_PAIR: return bf16_pair(float_of_bits(a), float_of_bits(b));
  case MUL_RN: return bits_of_float(mul_rn(float_of_bits(a), float_of_bits(b)) + float_of_bits(c));
  case FMA_RN: return bits_of_float(fma_rn(float_of_bits(a), float_of_bits(b), float_of_bits(c)));
  case FMA_F16X2: return fma_f16x2(a, b, c);
  case FMA_BF16X2: return fma_bf16x2(a, b, c);
  case LOP3_AND_OR: return lop3<(0xf0 & 0xcc) | 0xaa>(a, b, c);
  case LOP3_XOR: return lop3<0xf0 ^ 0xcc ^ 0xaa>(a, b, c);
  case PICK_BYTES: return pick_bytes(a, b, c & 0x7777);
  case COUNT_ONES: return (uint32_t)count_ones(a);
  case MUL_RN_F64: { /* 21 bits times 52 and a sum that an unrounded product would change; both halves of the result */
    const double x = (double)(a >> 11), y = double_of_bits(0x3ff0000000000000u | (uint64_t)b << 20 | c >> 12);
    const uint64_t r = bits_of_double(mul_rn(x, y) + -x);
    return (uint32_t)r ^ (uint32_t)(r >> 32);
  }
  case F16_PAIR_OF_E4M3: return plain_nans(f16_pair_of_e4m3(a & 0xffff));
  case PICK_SIGNS: return pick_signs(a, b, c & 0xffff);
  case MAX_S16X2: return max_s16x2(a, b);
  case MAX_U16X2: return max_u16x2(a, b);
  case EXP2_NEAR: return bits_of_float(exp2_near(float_of_bits(a) * 64)); /* near, not to the bit */
  default: return 0;
  }
}

/* out[i]: the primitive of in[i], in[count + i] and in[2 count + i]. */
extern "C" __global__ void nb_primitive_numbers(global<const uint32_t> in, global<uint32_t> out, int count,
                                                int which) {
  for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += (int)(gridDim.x * blockDim.x))
    out[i] = number(which, in[i], in[count + i], in[2 * count + i]);
}

/* A warp to a block: 32 rows of 16 bytes come to shared memory by the kinds of cp_async, a group of each kind, but for
 * row 31, which stays zero; they go out as ldmatrix deals them, word r of lane l to out[256 block + 8 l + r],
 * after a shuffle with the lane that differs in bits 1 and 8, behind those four as it deals them turned. */
extern "C" __global__ void nb_primitive_tile(global<const uint32_t> in, global<uint32_t> out) {
  const int lane = (int)threadIdx.x;
  global<const uint32_t> from = in + (blockIdx.x * 128 + lane * 4);
  shared<uint32_t> tile = shared_words();
  if (lane < 8) cp_async16(tile + lane * 4, from);
  cp_async_commit();
  if (lane >= 8 && lane < 16) cp_async16_once(true, tile + lane * 4, from, stream_once());
  cp_async_commit();
  if (lane >= 16) cp_async16_if(lane < 31, tile + lane * 4, from);
  cp_async_commit();
  cp_async_wait<1>();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4], turned[4];
  ldmatrix_x4(r, cast<const uint4>(tile) + lane);
  ldmatrix_x4_turned(turned, cast<const uint4>(tile) + lane);
  for (int i = 0; i < 4; i++) {
    out[blockIdx.x * 256 + 8 * lane + i] = shuffle_xor(r[i], 9);
    out[blockIdx.x * 256 + 8 * lane + 4 + i] = turned[i];
  }
}

/* A warp to a block: each lane's word from the lane that its low bits name, which lanes gave the same eight bits as
 * it, and the two words of a double from the lane that differs in bits 2 and 16: four words a lane. */
extern "C" __global__ void nb_primitive_lanes(global<const uint32_t> in, global<uint32_t> out) {
  const int at = (int)(blockIdx.x * 32 + threadIdx.x);
  const uint32_t word = in[at];
  const uint64_t both = bits_of_double(shuffle_xor_f64(double_of_bits((uint64_t)~word << 32 | word), 18));
  out[4 * at] = shuffle_from(word, (int)(word % 32));
  out[4 * at + 1] = match_any(word % 256 / (blockIdx.x % 16 + 1));
  out[4 * at + 2] = (uint32_t)both;
  out[4 * at + 3] = (uint32_t)(both >> 32);
}

/* The products by the tensor cores, by their place in this list. */
enum { MMA_F16, MMA_BF16, MMA_S8, MMA_E4M3 };

/* A warp to a block: of 16 words of each lane the first 4 are a, the next 4 two b, the others their sums; out: the sums. */
extern "C" __global__ void nb_primitive_mma(global<const uint32_t> in, global<uint32_t> out, int which) {
  const int at = (int)(blockIdx.x * 32 + threadIdx.x);
  global<const uint32_t> from = in + at * 16;
  uint32_t a[4], b[2][2];
  float sums[2][4];
  int32_t whole[2][4];
  for (int i = 0; i < 4; i++) a[i] = from[i];
  for (int i = 0; i < 4; i++) b[i / 2][i % 2] = from[4 + i];
  for (int i = 0; i < 8; i++) {
    whole[i / 4][i % 4] = (int32_t)from[8 + i];
    sums[i / 4][i % 4] = float_of_bits(from[8 + i]);
  }
  switch (which) {
  case MMA_F16: mma_f16<2>(sums, a, b); break;
  case MMA_BF16: mma_bf16<2>(sums, a, b); break;
  case MMA_S8: mma_s8<2>(whole, a, b); break;
  default: mma_e4m3<2>(sums, a, b);
  }
  for (int i = 0; i < 8; i++)
    out[at * 8 + i] = which == MMA_S8 ? (uint32_t)whole[i / 4][i % 4] : bits_of_float(sums[i / 4][i % 4]);
}

/* The first threads of the blocks take turns: each adds in[block] to the sum that the one before it left. flag: 0 at
 * first. */
extern "C" __global__ void nb_primitive_turns(global<const uint32_t> in, global<uint32_t> out,
                                              global<int> flag) {
  const int block = (int)blockIdx.x;
  if (threadIdx.x) return;
  while (load_acquire(cast<const int>(flag)) != block) {}
  out[block] = in[block] + (block ? out[block - 1] : 0);
  add_release(flag, 1);
}

/* The last block to arrive gives the largest of what all left in `parts`, lane by lane; behind them, by atomic_max, the
 * largest of a word of each and of 40 bits: 128 words, two and two. parts: a float4 for each thread; count: 0 at first. */
extern "C" __global__ void nb_primitive_last(global<const uint32_t> in, global<uint32_t> out,
                                             global<float4> parts, global<int> count) {
  const int lane = (int)threadIdx.x, at = (int)(blockIdx.x * 32) + lane;
  shared<uint32_t> turn = shared_words();
  parts[at] = make_float4(float_of_bits(in[at * 4]), float_of_bits(in[at * 4 + 1]),
                          float_of_bits(in[at * 4 + 2]), float_of_bits(in[at * 4 + 3]));
  atomic_max(out + 128, in[at * 4] & 0x7fffffff);
  atomic_max(cast<uint64_t>(out + 130), (uint64_t)(in[at * 4] & 0xff) << 32 | in[at * 4 + 1]);
  __syncthreads();
  if (lane == 0) turn[0] = (uint32_t)add_in_turn(count, 1);
  __syncthreads();
  if (turn[0] != gridDim.x - 1) return;
  float most[4] = {-1e30f, -1e30f, -1e30f, -1e30f};
  for (int b = 0; b < (int)gridDim.x; b++) {
    const float4 p = load_far(cast<const float4>(parts) + (b * 32 + lane));
    const float part[4] = {p.x, p.y, p.z, p.w};
    for (int i = 0; i < 4; i++)
      if (part[i] > most[i]) most[i] = part[i];
  }
  for (int i = 0; i < 4; i++) out[lane * 4 + i] = bits_of_float(most[i]);
}
