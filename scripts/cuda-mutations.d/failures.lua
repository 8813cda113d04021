-- Planted bugs of what happens when a call of the driver fails (cuda-mutations plants them one by one).
local MEMORY, STREAM, PLACE, TENSORS = "cuda/memory.c", "cuda/stream.c", "lua/nibble/place.lua", "lua/nibble/cuda/tensors.lua"

return {
  spec = "spec/cuda_failures_spec.lua",
  bugs = {
    { "a copy goes on into memory that is gone", MEMORY, "if (code) d->cu->cuCtxSynchronize();", "" },
    { "no way back to the stream from before", STREAM,
      "if (!s && !now) return nb_cuda_use(&d, number);", "NB_TRY(nb_cuda_use(&d, number));" },
    { "a graph that can't be ended is captured for ever", STREAM,
      "int code = d->cu->cuCtxSetCurrent(d->context), ended", "NB_TRY(nb_cuda_use(&d, number)); int code = 0, ended" },
    { "what the first try made stays behind", TENSORS, "C.nb_tensor_release(t) -- what", "-- what" },
    { "only a lost device is told in a sentence", PLACE, [[ or err:match "cuda:%d+: .*"]], "" },
  },
}
