-- Bugs for the logits' kernels, and for who launches them.
local KERNEL, HOST = "cuda/kernels/logits.cu", "cuda/logits.c"

return {
  spec = "spec/cuda_logits_spec.lua",
  bugs = {
    { "ties: the last one", KERNEL, "b.value == a.value && b.at < a.at", "b.value == a.value && b.at > a.at" },
    { "a warp's best is not heard", KERNEL, "w < WARPS; w++) {\n    const uint32_t value",
      "w < WARPS - 1; w++) {\n    const uint32_t value" },
    { "sums before all are there", KERNEL, "part[threadIdx.x / LANES] = v;\n  __syncthreads();", "part[threadIdx.x / LANES] = v;" },
    { "sums overwrite what is read", KERNEL, "cast<double>(shared_words());\n  __syncthreads();", "cast<double>(shared_words());" },
    { "sums don't shrink with a new largest", KERNEL, "    s.sum *= shrunk;\n", "" },
    { "cross sums don't shrink", KERNEL, "cross = cross * from_p.shrunk + sum_of(crossed);", "cross = cross + sum_of(crossed);" },
    { "a target outside goes unseen", KERNEL, "target < vocab ? total(s)", "true ? total(s)" },
    { "the state is not kept", KERNEL, "    store_side(state + 5, of_q);\n", "" },
    { "host: the second block again", HOST, "head = part(s->head, n0, columns)", "head = part(s->head, 0, columns)" },
    { "host: rows again", HOST, "x = part(s->x, row, rows)", "x = part(s->x, 0, rows)" },
    { "host: two dtypes taken for one", HOST, "if (x.dtype != head.dtype) {", "if (false) {" },
  },
}
