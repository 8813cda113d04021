/* stream.c - when a device does what: streams, the order between them, times by events, and graphs.
 *
 * Streams are blocking ones, as the driver calls them: the default stream waits for what was begun on all others,
 * and they for what was begun on it. Only two streams of one's own go side by side. Memory needs no care: cuMemFree
 * waits for all that was begun on the device before it takes anything away. */
#include "device.h"

#include <pthread.h>

struct nb_stream {
  nb_cuda_device *device;
  void *handle, *workspaces[NB_CUDA_USERS];
};

struct nb_mark {
  nb_cuda_device *device;
  void *event;
};

struct nb_graph {
  nb_cuda_device *device;
  nb_stream *stream, *before; /* where it is captured, and which was current */
  void *exec;
  int64_t kept;
  void **rooms; /* memory that it uses: made or given back while it was captured */
};

/* The driver's CU_EVENT_DISABLE_TIMING, and CU_STREAM_CAPTURE_MODE_RELAXED, which allows to make tensors. */
enum { NO_TIMING = 2, RELAXED = 2, GRAPH_VERSION = 11040 };

static _Thread_local nb_stream *currents[NB_CUDA_DEVICES + 1]; /* by device; NULL: the default stream */

/* Guards nb_cuda_device.capture and its list: tensors are released on any thread. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t workspaces = PTHREAD_MUTEX_INITIALIZER;

void *nb_cuda_stream(const nb_cuda_device *d) {
  return currents[d->number] ? currents[d->number]->handle : NULL;
}

/* Zeros now; while a graph is captured beside it, so that they are no part of it. */
static int clear(nb_cuda_device *d, nb_cuda_ptr at, int64_t bytes) {
  void *beside = NULL;
  int code = d->capture ? d->cu->cuStreamCreate(&beside, 0) : 0;
  if (!code) code = d->cu->cuMemsetD8Async(at, 0, (size_t)bytes, beside ? beside : nb_cuda_stream(d));
  if (beside && !code) code = d->cu->cuStreamSynchronize(beside);
  if (beside) d->cu->cuStreamDestroy_v2(beside);
  return code ? nb_cuda_failed(d, code, "clearing %lld bytes", (long long)bytes) : NB_OK;
}

int nb_cuda_workspace(void **at, nb_cuda_device *d, int user, int64_t bytes) {
  int rc = NB_OK;
  nb_stream *s = currents[d->number];
  *at = NULL;
  pthread_mutex_lock(&workspaces);
  void **room = s ? &s->workspaces[user] : &d->workspaces[user];
  if (*room && nb_cuda_room_bytes(*room) < bytes) {
    nb_cuda_room_drop(*room);
    *room = NULL;
  }
  bool made = !*room;
  if (made) rc = nb_cuda_room_new(room, d, bytes);
  if (rc == NB_OK && made && (rc = clear(d, nb_cuda_room_at(*room), bytes)) < 0) {
    nb_cuda_room_drop(*room);
    *room = NULL;
  }
  if (rc == NB_OK) *at = (void *)(uintptr_t)nb_cuda_room_at(*room);
  pthread_mutex_unlock(&workspaces);
  return rc;
}

/* ---- streams ---------------------------------------------------------------------- */

int nb_stream_new(nb_stream **out, int number) {
  nb_cuda_device *d;
  *out = NULL;
  NB_TRY(nb_cuda_use(&d, number));
  nb_stream *s = nb_alloc(1, sizeof *s);
  if (!s) return NB_ENOMEM;
  s->device = d;
  int code = d->cu->cuStreamCreate(&s->handle, 0);
  if (code) {
    free(s);
    return nb_cuda_failed(d, code, "making a stream");
  }
  *out = s;
  return NB_OK;
}

void nb_stream_free(nb_stream *s) {
  if (!s) return;
  const nb_cuda_driver *cu = s->device->cu;
  if (currents[s->device->number] == s) currents[s->device->number] = NULL;
  if (!cu->cuCtxSetCurrent(s->device->context)) cu->cuStreamDestroy_v2(s->handle);
  for (int i = 0; i < NB_CUDA_USERS; i++)
    if (s->workspaces[i]) nb_cuda_room_drop(s->workspaces[i]);
  free(s);
}

nb_stream *nb_stream_current(int number) {
  return number < 1 || number > NB_CUDA_DEVICES ? NULL : currents[number];
}

int nb_stream_use(int number, nb_stream *s) {
  nb_cuda_device *d;
  nb_stream *now = nb_stream_current(number);
  if (!s && !now) return nb_cuda_use(&d, number);
  /* From one to another whatever state the device is in: who goes back to the stream from before must get there. */
  if (s && s->device->number != number)
    return nb_fail(NB_EINVAL, "the stream is one of cuda:%d, expected one of cuda:%d", s->device->ordinal,
                   number - 1);
  if (now && now->device->capture && now == now->device->capture->stream)
    return nb_fail(NB_EINVAL, "while a graph is captured, no other stream can be used");
  currents[number] = s;
  return NB_OK;
}

/* The device, where something may wait for its streams now. */
static int may_wait(nb_cuda_device **d, int number) {
  NB_TRY(nb_cuda_use(d, number));
  return nb_cuda_no_capture(*d, "nothing can wait");
}

int nb_cuda_no_capture(nb_cuda_device *d, const char *what) {
  pthread_mutex_lock(&lock);
  bool capturing = d->capture != NULL;
  pthread_mutex_unlock(&lock);
  return capturing ? nb_fail(NB_EINVAL, "cuda:%d: while a graph is captured, %s", d->ordinal, what) : NB_OK;
}

int nb_stream_wait(nb_stream *s) {
  nb_cuda_device *d;
  NB_TRY(may_wait(&d, s->device->number));
  int code = d->cu->cuStreamSynchronize(s->handle);
  return code ? nb_cuda_failed(d, code, "waiting for a stream") : NB_OK;
}

int nb_stream_after(nb_stream *s, const nb_stream *other) {
  nb_cuda_device *d, *first;
  void *event = NULL;
  NB_TRY(may_wait(&first, other->device->number));
  int code = first->cu->cuEventCreate(&event, NO_TIMING);
  if (!code) code = first->cu->cuEventRecord(event, other->handle);
  if (code) {
    if (event) first->cu->cuEventDestroy_v2(event);
    return nb_cuda_failed(first, code, "recording where a stream is");
  }
  int rc = may_wait(&d, s->device->number);
  code = rc < 0 ? 0 : d->cu->cuStreamWaitEvent(s->handle, event, 0);
  first->cu->cuEventDestroy_v2(event); /* the driver keeps it until it has come */
  return code ? nb_cuda_failed(d, code, "letting a stream wait for another") : rc;
}

/* ---- marks ------------------------------------------------------------------------ */

int nb_mark_new(nb_mark **out, int number) {
  nb_cuda_device *d;
  *out = NULL;
  NB_TRY(may_wait(&d, number));
  nb_mark *m = nb_alloc(1, sizeof *m);
  if (!m) return NB_ENOMEM;
  m->device = d;
  int code = d->cu->cuEventCreate(&m->event, 0);
  if (!code) code = d->cu->cuEventRecord(m->event, nb_cuda_stream(d));
  if (code) {
    nb_mark_free(m);
    return nb_cuda_failed(d, code, "marking the time");
  }
  *out = m;
  return NB_OK;
}

int nb_mark_ms(double *ms, nb_mark *from, nb_mark *to) {
  nb_cuda_device *d;
  float elapsed = 0;
  NB_TRY(may_wait(&d, to->device->number));
  int code = d->cu->cuEventSynchronize(to->event);
  if (!code) code = d->cu->cuEventSynchronize(from->event);
  if (!code) code = d->cu->cuEventElapsedTime(&elapsed, from->event, to->event);
  *ms = (double)elapsed;
  return code ? nb_cuda_failed(d, code, "measuring the time") : NB_OK;
}

void nb_mark_free(nb_mark *m) {
  if (!m) return;
  const nb_cuda_driver *cu = m->device->cu;
  if (m->event && !cu->cuCtxSetCurrent(m->device->context)) cu->cuEventDestroy_v2(m->event);
  free(m);
}

/* ---- graphs ----------------------------------------------------------------------- */

bool nb_cuda_keep(nb_cuda_device *d, void *room) {
  pthread_mutex_lock(&lock);
  nb_graph *g = d->capture;
  if (g) {
    void **more = realloc(g->rooms, (size_t)(g->kept + 1) * sizeof *more);
    if (more) {
      g->rooms = more;
      g->rooms[g->kept++] = room;
    } /* else it is never given back: what the graph touches must stay */
  }
  pthread_mutex_unlock(&lock);
  return g != NULL;
}

static void set_capture(nb_cuda_device *d, nb_graph *g) {
  pthread_mutex_lock(&lock);
  d->capture = g;
  pthread_mutex_unlock(&lock);
}

int nb_graph_begin(int number) {
  nb_cuda_device *d;
  NB_TRY(nb_cuda_use(&d, number));
  NB_TRY(nb_cuda_no_capture(d, "another cannot be begun"));
  if (!d->cu->cuGraphInstantiateWithFlags || d->cu->version < GRAPH_VERSION)
    return nb_fail(NB_EUNSUPPORTED,
                   "graphs need a driver for CUDA 11.4 (470) or later, the one here is for %d.%d",
                   d->cu->version / 1000, d->cu->version % 1000 / 10);
  nb_graph *g = nb_alloc(1, sizeof *g);
  if (!g) return NB_ENOMEM;
  g->device = d;
  g->before = currents[number];
  int rc = nb_stream_new(&g->stream, number);
  if (rc == NB_OK) {
    int code = d->cu->cuStreamBeginCapture_v2(g->stream->handle, RELAXED);
    if (code) rc = nb_cuda_failed(d, code, "beginning a graph");
  }
  if (rc < 0) {
    nb_stream_free(g->stream);
    free(g);
    return rc;
  }
  currents[number] = g->stream;
  set_capture(d, g);
  return NB_OK;
}

int nb_graph_end(nb_graph **out, int number) {
  nb_stream *s = nb_stream_current(number);
  nb_cuda_device *d = s ? s->device : NULL;
  void *graph = NULL;
  *out = NULL;
  if (d) pthread_mutex_lock(&lock);
  nb_graph *g = d ? d->capture : NULL;
  if (d) pthread_mutex_unlock(&lock);
  if (!g || s != g->stream)
    return nb_fail(NB_EINVAL, "cuda:%d: no graph was begun on this thread", number - 1);
  /* Whatever fails here, nothing is captured afterwards. */
  int code = d->cu->cuCtxSetCurrent(d->context), ended = d->cu->cuStreamEndCapture(s->handle, &graph);
  if (!code) code = ended;
  if (!code) code = d->cu->cuGraphInstantiateWithFlags(&g->exec, graph, 0);
  if (graph) d->cu->cuGraphDestroy(graph);
  set_capture(d, NULL);
  currents[number] = g->before;
  nb_stream_free(g->stream);
  g->stream = NULL;
  if (code) {
    nb_graph_free(g);
    return nb_cuda_failed(d, code, "making a graph of what was captured");
  }
  *out = g;
  return NB_OK;
}

int nb_graph_launch(nb_graph *g) {
  nb_cuda_device *d;
  NB_TRY(nb_cuda_use(&d, g->device->number));
  NB_TRY(nb_cuda_no_capture(d, "another cannot be launched"));
  int code = d->cu->cuGraphLaunch(g->exec, nb_cuda_stream(d));
  return code ? nb_cuda_failed(d, code, "launching a graph") : NB_OK;
}

void nb_graph_free(nb_graph *g) {
  if (!g) return;
  const nb_cuda_driver *cu = g->device->cu;
  if (g->exec && !cu->cuCtxSetCurrent(g->device->context)) {
    cu->cuCtxSynchronize(); /* it may still run, and the memory is its own */
    cu->cuGraphExecDestroy(g->exec);
  }
  for (int64_t i = 0; i < g->kept; i++) nb_cuda_room_drop(g->rooms[i]);
  free(g->rooms);
  free(g);
}
