/* safetensors.c - fuzz driver for what reads files: safetensors headers, the
 * index, JSON, the journal. Built by scripts/fuzz-safetensors: with libFuzzer
 * where clang is, else with the mutator at the end.
 *
 * Input: byte 0 chooses the reader, byte 1 makes the n-th allocation fail (0: none),
 * the rest is the file. Each reader's result is looked at as Lua would. */
#include "base.h"

#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t seen; /* what was read, so that the reads stay */

static void look(const void *p, int64_t n) {
  for (int64_t i = 0; i < n; i++) seen += ((const unsigned char *)p)[i];
}

static void look_checkpoint(const nb_safetensors *s) {
  for (int64_t i = 0; i < nb_safetensors_count(s); i++) {
    nb_tensor_info info;
    nb_tensor t;
    if (nb_safetensors_info(&info, s, i) < 0 || nb_safetensors_find(s, info.name.data, info.name.bytes) != i)
      abort();
    if (nb_safetensors_tensor(&t, s, i) < 0) continue;
    look(t.data, nb_tensor_bytes(&t));
    nb_tensor_release(&t);
  }
  for (int64_t i = 0; i < nb_safetensors_metadata_count(s); i++) {
    nb_text value, key = nb_safetensors_metadata(s, i, &value);
    look(key.data, key.bytes);
    look(value.data, value.bytes);
  }
  for (int64_t i = 0; i < nb_safetensors_warnings(s); i++)
    look(nb_safetensors_warning(s, i), (int64_t)strlen(nb_safetensors_warning(s, i)));
}

static void look_json(const nb_json *node) {
  for (; node;) {
    nb_json_value v;
    nb_json_get(&v, node);
    if (v.string) look(v.string, (int64_t)strlen(v.string));
    if (v.key) look(v.key, (int64_t)strlen(v.key));
    look_json(v.child);
    node = v.next;
  }
}

static const char *folder; /* the index needs files beside it */

int nb_threads(void) { return 1; } /* instead of thread.c, which needs OpenMP */

static void write_file(const char *path, const uint8_t *data, size_t size) {
  FILE *f = fopen(path, "wb");
  if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
}

static void prepare(void) {
  static char name[] = "/tmp/nibble-fuzz-XXXXXX";
  static const char shard[] =
      "\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}     xy";
  char path[64];
  if (!(folder = mkdtemp(name))) abort();
  snprintf(path, sizeof path, "%s/s", folder);
  write_file(path, (const uint8_t *)shard, sizeof shard - 1);
}

static void read_one(int kind, const uint8_t *data, size_t size) {
  char path[64];
  nb_safetensors *s;
  nb_json *json;
  nb_journal *journal;
  int fd = -1;
  if (kind == 1) {
    snprintf(path, sizeof path, "%s/i.json", folder);
    write_file(path, data, size);
  } else if (kind != 2) { /* a file without a folder */
    fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  }
  if (kind <= 1 && nb_safetensors_open(&s, path) == 0) {
    look_checkpoint(s);
    nb_safetensors_close(s);
  } else if (kind == 2 && nb_json_parse(&json, (const char *)data, (int64_t)size, "fuzz") == 0) {
    look_json(json);
    nb_json_free(json);
  } else if (kind == 3 && nb_journal_open(&journal, path) == 0) {
    for (int64_t i = 0; i < nb_journal_count(journal); i++)
      look(nb_journal_line(journal, i).data, nb_journal_line(journal, i).bytes);
    if (nb_journal_append(journal, "x", 1) == 0 && nb_journal_count(journal) < 0) abort();
    nb_journal_close(journal);
  }
  if (fd >= 0) close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!folder) prepare();
  if (size < 2) return 0;
  nb_debug_fail_alloc(data[1]);
  read_one(data[0] & 3, data + 2, size - 2);
  nb_debug_fail_alloc(0);
  if (nb_live_buffers() != 0) abort(); /* a mapping was lost */
  return 0;
}

#ifdef FUZZ_STANDALONE
/* fuzz SECONDS SEED-FILE...: mutations by a fixed generator, the last input in fuzz-input. */
static uint64_t state = 88172645463325252ull;
static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static size_t mutate(uint8_t *d, size_t n, size_t room) {
  for (uint64_t k = 1 + next() % 4; k > 0 && n > 2; k--) {
    size_t at = next() % n;
    switch (next() % 5) {
    case 0: d[at] ^= (uint8_t)(1 << next() % 8); break;
    case 1: d[at] = (uint8_t) "{}[],:\"\\0123456789-.eE \n\xff"[next() % 26]; break;
    case 2: n = at > 2 ? at : n; break;
    case 3: /* a byte less, or one more */
      if (n + 1 < room && (next() & 1)) memmove(d + at + 1, d + at, n++ - at);
      else memmove(d + at, d + at + 1, --n - at);
      break;
    default: d[1] = (uint8_t)(next() % 4 ? 0 : next() % 60);
    }
  }
  return n;
}

int main(int argc, char **argv) {
  time_t until = time(NULL) + (argc > 1 ? atol(argv[1]) : 10);
  long runs = 0;
  static uint8_t input[1 << 20];
  for (int i = 2; argc > 2 && time(NULL) < until; i = i + 1 < argc ? i + 1 : 2, runs++) {
    FILE *f = fopen(argv[i], "rb");
    size_t n = f ? fread(input, 1, sizeof input - 64, f) : 0;
    if (f) fclose(f);
    n = mutate(input, n, sizeof input);
    write_file("fuzz-input", input, n);
    LLVMFuzzerTestOneInput(input, n);
  }
  printf("%ld inputs\n", runs);
  return 0;
}
#endif
