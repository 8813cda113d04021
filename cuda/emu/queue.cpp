// queue.cpp - the stand-in driver's streams, events and graphs.
//
// Work is done as late as it may be: when something waits for it, and then, of all that could be next, what was
// asked for last. Whoever forgets to wait, or to order two streams, so reads what is not there yet, every time.
// A stream keeps its order; the default one (nullptr) waits for all others, and they for it, as CUDA's legacy
// stream does with blocking ones.
#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "standin.h"

namespace {

enum { MANY = 256 }; // a GPU's queues have an end too

struct Operation {
  long number; // later ones are greater
  Work work;
  std::vector<std::shared_ptr<Operation>> after;
  bool done = false;
};
typedef std::shared_ptr<Operation> Point;

struct Graph {
  std::vector<Work> steps;
};

struct Stream {
  int device;
  Point last;
  std::unique_ptr<Graph> capture; // what is recorded instead of queued
  bool spoilt = false;            // something forbidden was tried in between
  bool gone = false;              // destroyed, but not at its end yet
};

struct Event {
  Point point; // nullptr: not recorded yet
  std::shared_ptr<double> seconds;
};

struct Device {
  Stream legacy;
  std::set<Stream *> streams;
  std::vector<Point> pending; // in order of their numbers
};

std::map<int, Device> devices;
std::set<Event *> events;
std::set<Graph *> graphs;
long numbers;

Device &here() { return devices[current]; }

// The stream of a handle, or nullptr.
Stream *stream_of(void *handle) {
  if (!handle) return &here().legacy;
  return here().streams.count((Stream *)handle) && !((Stream *)handle)->gone ? (Stream *)handle : nullptr;
}

// Where streams record a graph, what waits for all of them is forbidden and spoils it.
bool spoil_captures() {
  bool any = false;
  for (Stream *s : here().streams)
    if (s->capture) any = s->spoilt = true;
  return any;
}

bool ready(const Point &p) {
  return std::all_of(p->after.begin(), p->after.end(), [](const Point &q) { return q->done; });
}

void run_all(std::set<Point> &wanted) {
  while (!wanted.empty()) {
    const Point *next = nullptr;
    for (const Point &p : wanted)
      if (ready(p) && (!next || p->number > (*next)->number)) next = &p;
    Point p = *next;
    wanted.erase(p);
    if (!lost)
      if (int code = p->work()) lost = code;
    p->done = true;
    p->after.clear();
    p->work = nullptr;
  }
}

// Does everything in `wanted`, which holds all that its members come after.
int finish(std::set<Point> wanted) {
  if (wanted.size() > 1) open_memory([&] { run_all(wanted); }); // once for all of it
  else run_all(wanted);
  auto &pending = here().pending;
  pending.erase(std::remove_if(pending.begin(), pending.end(), [](const Point &p) { return p->done; }),
                pending.end());
  auto &streams = here().streams;
  for (auto s = streams.begin(); s != streams.end();) {
    bool over = (*s)->gone && (!(*s)->last || (*s)->last->done);
    if (over) delete *s;
    s = over ? streams.erase(s) : std::next(s);
  }
  return lost;
}

// A point and all that it comes after.
void gather(std::set<Point> &all, const Point &p) {
  if (!p || p->done || !all.insert(p).second) return;
  for (const Point &q : p->after) gather(all, q);
}

// A new operation at the end of s, after `also` too.
int append(Stream &s, Work work, const Point &also = nullptr) {
  Device &d = here();
  Point p = std::make_shared<Operation>();
  p->number = ++numbers;
  p->work = std::move(work);
  auto add = [&](const Point &q) {
    if (q && !q->done) p->after.push_back(q);
  };
  add(s.last);
  add(also);
  if (&s == &d.legacy)
    for (Stream *other : d.streams) add(other->last);
  else add(d.legacy.last);
  s.last = p;
  d.pending.push_back(p);
  return d.pending.size() > MANY ? finish({d.pending.begin(), d.pending.end()}) : 0;
}

} // namespace

int enqueue(void *handle, Work work) {
  Stream *s = stream_of(handle);
  if (!s) return INVALID_HANDLE;
  if (s->capture) {
    s->capture->steps.push_back(std::move(work));
    return 0;
  }
  if (!handle && spoil_captures()) return CAPTURE_IMPLICIT;
  return append(*s, std::move(work));
}

int settle(void *handle) {
  Stream *s = stream_of(handle);
  if (!s) return INVALID_HANDLE;
  if (s->capture) s->spoilt = true;
  if (s->capture) return CAPTURE_UNSUPPORTED;
  if (!handle && spoil_captures()) return CAPTURE_IMPLICIT;
  std::set<Point> wanted;
  if (!handle)
    for (Stream *other : here().streams) gather(wanted, other->last);
  gather(wanted, s->last);
  return finish(std::move(wanted));
}

int settle_device() {
  if (spoil_captures()) return CAPTURE_UNSUPPORTED;
  auto &pending = here().pending;
  return finish({pending.begin(), pending.end()});
}

#pragma GCC visibility push(default)
extern "C" {

int cuStreamCreate(void **stream, unsigned flags) {
  BEGIN;
  if (flags) return INVALID_VALUE; // the others would not wait for the default stream: nibble has none
  Stream *s = new Stream;
  s->device = current;
  here().streams.insert(s);
  *stream = s;
  return 0;
}

// What it has left to do is still done.
int cuStreamDestroy_v2(void *stream) {
  BEGIN;
  if (!stream || !stream_of(stream)) return INVALID_HANDLE;
  ((Stream *)stream)->gone = true;
  return 0;
}

int cuStreamSynchronize(void *stream) {
  BEGIN;
  return settle(stream);
}

int cuEventCreate(void **event, unsigned) {
  BEGIN;
  *event = *events.insert(new Event).first;
  return 0;
}

int cuEventDestroy_v2(void *event) {
  BEGIN;
  if (!events.erase((Event *)event)) return INVALID_HANDLE;
  delete (Event *)event;
  return 0;
}

int cuEventRecord(void *event, void *stream) {
  BEGIN;
  Stream *s = stream_of(stream);
  Event *e = (Event *)event;
  if (!s || !events.count(e)) return INVALID_HANDLE;
  if (s->capture) s->spoilt = true;
  if (s->capture) return CAPTURE_UNSUPPORTED;
  if (!stream && spoil_captures()) return CAPTURE_IMPLICIT;
  auto seconds = e->seconds = std::make_shared<double>(0);
  int code = append(*s, [seconds] {
    *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    return 0;
  });
  e->point = s->last;
  return code;
}

int cuEventSynchronize(void *event) {
  BEGIN;
  if (!events.count((Event *)event)) return INVALID_HANDLE;
  std::set<Point> wanted;
  gather(wanted, ((Event *)event)->point);
  return finish(std::move(wanted));
}

int cuEventElapsedTime(float *ms, void *from, void *to) {
  BEGIN;
  Event *a = (Event *)from, *b = (Event *)to;
  if (!events.count(a) || !events.count(b) || !a->point || !b->point) return INVALID_HANDLE;
  if (!a->point->done || !b->point->done) return NOT_READY;
  *ms = (float)((*b->seconds - *a->seconds) * 1e3);
  return 0;
}

int cuStreamWaitEvent(void *stream, void *event, unsigned) {
  BEGIN;
  Stream *s = stream_of(stream);
  if (!s || !events.count((Event *)event)) return INVALID_HANDLE;
  if (s->capture) s->spoilt = true;
  if (s->capture) return CAPTURE_UNSUPPORTED;
  Point point = ((Event *)event)->point;
  return point ? append(
                     *s, [] { return 0; }, point)
               : 0;
}

int cuStreamBeginCapture_v2(void *stream, int) {
  BEGIN;
  Stream *s = stream_of(stream);
  if (!s) return INVALID_HANDLE;
  if (!stream || s->capture) return CAPTURE_UNSUPPORTED;
  s->capture.reset(new Graph);
  s->spoilt = false;
  return 0;
}

int cuStreamEndCapture(void *stream, void **graph) {
  BEGIN;
  Stream *s = stream_of(stream);
  *graph = nullptr;
  if (!s || !s->capture) return INVALID_VALUE;
  std::unique_ptr<Graph> captured = std::move(s->capture);
  if (s->spoilt) return CAPTURE_INVALIDATED;
  *graph = *graphs.insert(captured.release()).first;
  return 0;
}

int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
  BEGIN;
  if (!graphs.count((Graph *)graph)) return INVALID_HANDLE;
  *exec = *graphs.insert(new Graph(*(Graph *)graph)).first;
  return 0;
}

int cuGraphLaunch(void *exec, void *stream) {
  BEGIN;
  if (!graphs.count((Graph *)exec)) return INVALID_HANDLE;
  std::vector<Work> steps = ((Graph *)exec)->steps;
  return enqueue(stream, [steps] {
    for (const Work &step : steps)
      if (int code = step()) return code;
    return 0;
  });
}

int cuGraphDestroy(void *graph) {
  BEGIN;
  if (!graphs.erase((Graph *)graph)) return INVALID_HANDLE;
  delete (Graph *)graph;
  return 0;
}

int cuGraphExecDestroy(void *exec) {
  BEGIN;
  if (!graphs.erase((Graph *)exec)) return INVALID_HANDLE;
  delete (Graph *)exec;
  return 0;
}
}
#pragma GCC visibility pop
