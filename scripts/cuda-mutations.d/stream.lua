-- Bugs in streams, marks and graphs on the host's side, where nothing would crash.
local STREAM, MEMORY, LAUNCH = "cuda/stream.c", "cuda/memory.c", "cuda/launch.c"

return {
  spec = "spec/cuda_stream_spec.lua spec/cuda_spec.lua",
  bugs = {
    { "launched on the default stream", LAUNCH, "nb_cuda_stream(d), arguments", "NULL, arguments" },
    { "no wait after a copy", MEMORY, "code = d->cu->cuStreamSynchronize(stream);", "" },
    { "copies on the default stream", MEMORY, "void *stream = nb_cuda_stream(d);", "void *stream = NULL;" },
    { "cleared on the default stream", MEMORY,
      "address(out), 0, (size_t)bytes, nb_cuda_stream(d))", "address(out), 0, (size_t)bytes, NULL)" },
    { "after: the wait forgotten", STREAM, "d->cu->cuStreamWaitEvent(s->handle, event, 0);", "0;" },
    { "after: recorded in the wrong stream", STREAM, "cuEventRecord(event, other->handle)", "cuEventRecord(event, s->handle)" },
    { "times before they came", STREAM, "int code = d->cu->cuEventSynchronize(to->event);", "int code = 0;" },
    { "a graph's memory is given back", MEMORY, "if (!nb_cuda_keep(r->device, r))\n    nb_cuda_room_drop(r);", "nb_cuda_room_drop(r);" },
    { "memory made in a graph is not kept", MEMORY, "if (!nb_cuda_keep(d, r)) atomic_fetch_sub", "atomic_fetch_sub" },
    { "a graph's memory is kept for ever", STREAM, "nb_cuda_room_drop(g->rooms[i])", "(void)g->rooms[i]" },
    { "capture goes on after its end", STREAM, "  set_capture(d, NULL);\n", "" },
    { "the capturing stream stays current", STREAM, "  currents[number] = g->before;\n", "" },
    { "copies to the host in a graph", MEMORY, "if (!to->device || !from->device)", "if (!to->device && !from->device)" },
  },
}
