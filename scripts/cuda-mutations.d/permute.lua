-- Bugs for the kernels that permute scales, bias and zero-points, and for who launches them.
local PERMUTE, SIZES, HOST = "cuda/kernels/permute.cu", "cuda/kernels/permute.h", "cuda/permute.c"

return {
  spec = "spec/cuda_permute_spec.lua",
  bugs = {
    { "bank conflicts: words in their own places", PERMUTE, "w ^ (row * 10 + row / 2)", "w" },
    { "bank conflicts: every row moved alike", PERMUTE, "row * 10 + row / 2", "row * 8" },
    { "words fall on one another", PERMUTE, "w ^ (row * 10", "w ^ (row * 42" },
    { "the order of the next place", PERMUTE, "order.from[p % NB_PERMUTE_BLOCK]", "order.from[(p + 1) % NB_PERMUTE_BLOCK]" },
    { "the first block for all", PERMUTE, "p / NB_PERMUTE_BLOCK * NB_PERMUTE_BLOCK + ", "" },
    { "picked before all have laid down", PERMUTE, "    __syncwarp();\n    if", "    if" },
    { "laid down before all have picked", PERMUTE, "__syncwarp(); /* all", "/* all" },
    { "the next bytes asked for are these", PERMUTE, "next = in[(chunk + step) * LANES + lane]", "next = in[chunk * LANES + lane]" },
    { "asked for past the end", PERMUTE, "if ((chunk + step) * LANES + lane < units)", "if (chunk + step <= chunks)" },
    { "written past the end", PERMUTE, "lane < TO_LANES && (chunk * LANES + lane * IN / OUT) < units", "lane < TO_LANES" },
    { "the last bytes are left out", PERMUTE, "chunks = (units + LANES - 1) / LANES", "chunks = units / LANES" },
    { "warps share their memory", PERMUTE, "shared_words() + warp * CHUNK_WORDS", "shared_words()" },
    { "warps take each other's", PERMUTE, "chunk += step", "chunk += 1" },
    { "nibbles: always the low one", PERMUTE, "v = v >> (at[e] % 2 * 4) & 15", "v = v & 15" },
    { "a code that doesn't fit goes unseen", PERMUTE, "seen |= v;", "" },
    { "too little shared memory", SIZES, "NB_PERMUTE_WARPS * 512", "NB_PERMUTE_WARPS * 256" },
    { "host: AWQ's slots for plain words", HOST, "nb_marlin_zero_slots(slot, bits, order)",
      "nb_marlin_zero_slots(slot, bits, NB_MARLIN_AWQ)" },
    { "host: no order of 8-bit activations", HOST, "nb_marlin_zero_columns(j.order.from, bits, a8 != 0);\n  nb_marlin_zero_slots",
      "nb_marlin_zero_columns(j.order.from, bits, false);\n  nb_marlin_zero_slots" },
    { "host: codes not looked at", HOST, "if (!found) return NB_OK;", "return NB_OK;" },
    { "host: the mark is kept", HOST, "  nb_tensor_release(&wrong);\n", "" },
  },
}
