-- Bugs in what is asked of cuBLASLt.
local BLAS, STREAM = "cuda/blas.c", "cuda/stream.c"

return {
  spec = "spec/cuda_blas_spec.lua",
  bugs = {
    { "w not transposed", BLAS, "transposed = p->across ? 0 : LT_TRANSPOSED", "transposed = 0" },
    { "rows of y by their width of x", BLAS, "type_of(p->out), n, m, p->y_pitch", "type_of(p->out), n, m, p->x_pitch" },
    { "y as x's dtype", BLAS, "type_of(p->out), n, m", "type_of(p->in), n, m" },
    { "bias forgotten", BLAS, "&epilogue, sizeof epilogue)", "&transposed, sizeof transposed)" },
    { "bf16 for f16", BLAS, "case NB_F16: return LT_F16;", "case NB_F16: return LT_BF16;" },
    { "alignments not told", BLAS, "for (int i = 0; i < 4 && !status; i++)", "for (int i = 0; i < 0 && !status; i++)" },
    { "x's alignment for w", BLAS, "&alignments[NB_MIN(i, 2)]", "&alignments[0]" },
    { "a way of another shape", BLAS, "memcmp(&kept[i].shape, &s, sizeof s) == 0", "kept[i].shape.m == s.m" },
    { "a way without its bias's place", BLAS, "p->bias ? alignment(p->bias) : 0", "0" },
    { "ways are not kept", BLAS, "kept[kept_next++ % KEPT].choice = *choice;", "" },
    { "no workspace", BLAS, "workspace ? WORKSPACE : 0)", "WORKSPACE)" },
    { "on the default stream", BLAS, "choice.workspace, nb_cuda_stream(d))", "choice.workspace, NULL)" },
    { "k of nothing leaves y as it was", BLAS, "if (k == 0) return fill(d, y, bias);", "if (k == 0) return NB_OK;" },
    { "workspace freed under its graph", STREAM, "if (s->workspaces[i]) nb_cuda_room_drop(s->workspaces[i]);",
      "if (s->workspaces[i]) nb_cuda_room_drop(s->workspaces[i]), nb_cuda_room_drop(s->workspaces[i]);" },
  },
}
